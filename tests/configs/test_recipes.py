"""Every recipe with every documented argument: it loads, has the size it should, and trains."""

import ast
import json
import math
import re
import shlex

import jax
import numpy as np
import pytest

from vit_jax import cli
from vit_jax import config as config_lib
from vit_jax.configs import common
from vit_jax.errors import ConfigError
from vit_jax.evaluate import evaluate
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.train import train

from published import (
    CIFAR10, CIFAR100, DIGITS, FASHION_MNIST, FLOWERS, IMAGENET_1K, IMAGENET_21K, PETS, SIZES,
    WHOLE_CIFAR10, plan, resolved,
)

NAMES = config_lib.recipes()
AUGREG = ("Ti/16", "S/32", "S/16", "B/32", "B/16", "L/16")
ARGUMENTS = {
    "vit_i21k": ("B/16", "B/32", "L/16", "L/32", "H/14"),
    "vit_i1k": ("B/16", "B/32", "L/16", "L/32"),
    "augreg_i21k": AUGREG,
    "augreg_i1k": AUGREG,
    "plain_vit_i1k": ("90", "150", "300"),
    "finetune": tuple(
        f"{data},{side}"
        for data in ("imagenet", "cifar10", "cifar100", "pets", "flowers")
        for side in (224, 384, 512, 518)
    ),
    "fashion_mnist": (),
    "cifar10_scratch": ("finetune",),
    "folder": ("scratch",),
    "quickstart": ("finetune",),
}
SPECS = [
    f"{name}:{argument}{local}".replace(":,", ":").rstrip(":")
    for name, arguments in ARGUMENTS.items()
    for argument in ("", *arguments) for local in ("", ",runlocal")
]


def docstring(name):
  return ast.get_docstring(ast.parse(NAMES[name].read_text()))


def test_the_table_has_all_recipes():
  assert set(ARGUMENTS) == set(NAMES) and "common" not in NAMES


@pytest.mark.parametrize("spec", SPECS)
def test_every_argument_loads(spec):
  config = config_lib.load(spec, {"seed": "3"})
  assert config.seed == 3
  assert (config.input.dataset == "digits") == ("runlocal" in spec or "quickstart" in spec)


@pytest.mark.parametrize("name", ["augreg_i21k", "augreg_i1k"])
def test_augreg_has_28_settings(name):
  assert len(set(common.AUGREG_SETTINGS)) == 28
  seen = set()
  for setting in common.AUGREG_SETTINGS:
    config = config_lib.load(f"{name}:S/16,{setting}")
    seen.add((
        config.input.rand_augment, config.batch_ops.mixup_alpha, config.model.dropout,
        config.model.stochastic_depth, config.optimizer.weight_decay,
    ))
  assert len(seen) == 28


def commands(text):
  """Words after `vit-jax` of each command that stands indented in a docstring."""
  for line in re.sub(r"\\\n\s*", " ", text).splitlines():
    if line.startswith("    vit-jax "):
      # What follows after a wide gap is a remark; "..." stands for the rest of a line above it.
      yield shlex.split(re.split(r"\s{5,}", line.strip())[0])[1:]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_docstring_shows_can_be_run(name):
  """Each command is one of the command line, with arguments and keys that exist."""
  text, shown = docstring(name), []
  for words in commands(text):
    if words[-1] == "...":
      words[-1] = "--workdir=RUN"
    arguments, overrides = cli._parse(words)
    spec = getattr(arguments, "config", None)
    if spec:
      assert spec.partition(":")[0] == name
      config_lib.load(spec, overrides)
      shown.append(spec)
    else:
      config_lib.override(config_lib.complete({}, origin="a test"), overrides)
  assert any("runlocal" in spec for spec in shown) and any("runlocal" not in spec for spec in shown)
  assert re.search(r"^.*\.$", text.splitlines()[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_same_recipe(name, tmp_path):
  copy = tmp_path / "mine.py"
  copy.write_text(NAMES[name].read_text())
  assert config_lib.load(str(copy)) == config_lib.load(name)
  assert config_lib.load(f"{copy}:runlocal") == config_lib.load(f"{name}:runlocal")


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_says_what_to_expect_and_what_is_assumed(name):
  text = docstring(name)
  assert "Expected" in text and "Time:" in text
  assert re.search(r"Assumed|assumed|All of it is ours|Different:", text)


@pytest.mark.parametrize("spec, near", [
    ("vit_i21k:B/61", "'B/16'"),
    ("vit_i1k:B16", "'B/16'"),
    ("augreg_i21k:B/16,medium3", "'medium"),
    ("augreg_i1k:S/16,strong2-drop-wd.3", "'strong2-drop-wd.03'"),
    ("plain_vit_i1k:30", "'300'"),
    ("finetune:cifar", "'cifar10'"),
    ("finetune:imagenet,383", "'384'"),
    ("fashion_mnist:run-local", "'runlocal'"),
])
def test_a_wrong_argument_is_refused_with_the_nearest(spec, near):
  with pytest.raises(ConfigError) as error:
    config_lib.load(spec)
  assert near in str(error.value) and spec in str(error.value)


@pytest.mark.parametrize("spec, words", [
    ("vit_i21k:B/16,L/16", ("'B/16'", "'L/16'")),
    ("finetune:pets,flowers", ("'pets'", "'flowers'")),
    ("plain_vit_i1k:runlocal,runlocal", ("'runlocal'",)),
    ("vit_i1k:B/16,", ("''",)),
    ("vit_i1k:xyzzy", ("'xyzzy'", "L/32")),
])
def test_two_of_a_kind_or_nothing_like_it_is_refused(spec, words):
  with pytest.raises(ConfigError) as error:
    config_lib.load(spec)
  assert all(word in str(error.value) for word in words)


# Sizes.

FIXED = {"pooling": "cls", "pre_logits": False, "learned": True}
MODELS = [
    *(("vit_i21k", v, v, IMAGENET_21K, {"pre_logits": True}) for v in ARGUMENTS["vit_i21k"]),
    *(("vit_i1k", v, v, IMAGENET_1K, {"pre_logits": True}) for v in ARGUMENTS["vit_i1k"]),
    *(("augreg_i21k", v, v, IMAGENET_21K, {"pooling": "gap"}) for v in AUGREG),
    *(("augreg_i1k", v, v, IMAGENET_1K, {"pre_logits": True}) for v in AUGREG),
    ("plain_vit_i1k", "90", "S/16", IMAGENET_1K,
     {"pooling": "gap", "pre_logits": True, "learned": False}),
]


def count(parts):
  return sum(leaf.size for leaf in jax.tree.leaves(parts.abstract.params))


@pytest.mark.parametrize("name, argument, variant, data, head", MODELS)
def test_parameters_of_pre_training(name, argument, variant, data, head):
  total, width, positions = SIZES[variant]
  head = FIXED | head
  total += (data[1] - 1000) * (width + 1)
  if head["pre_logits"]:
    total += width * width + width
  if head["pooling"] == "gap":  # neither the token nor its position
    total -= 2 * width
    positions -= 1
  if not head["learned"]:
    total -= positions * width
  assert count(plan(f"{name}:{argument}", data)) == total


@pytest.mark.parametrize("argument, variant, data, positions", [
    ("imagenet,224", "B/32", IMAGENET_1K, 7 * 7 + 1),
    ("imagenet", "B/16", IMAGENET_1K, 24 * 24 + 1),
    ("imagenet,512", "L/16", IMAGENET_1K, 32 * 32 + 1),
    ("imagenet,518", "H/14", IMAGENET_1K, 37 * 37 + 1),
    ("cifar10,224", "B/32", CIFAR10, 7 * 7 + 1),
    ("cifar10", "B/16", CIFAR10, 24 * 24 + 1),
    ("cifar10,512", "L/16", CIFAR10, 32 * 32 + 1),
    ("cifar10,518", "H/14", CIFAR10, 37 * 37 + 1),
    ("cifar100,224", "B/16", CIFAR100, 14 * 14 + 1),
    ("cifar100", "L/16", CIFAR100, 24 * 24 + 1),
    ("cifar100,512", "S/16", CIFAR100, 32 * 32 + 1),
    ("cifar100,518", "H/14", CIFAR100, 37 * 37 + 1),
    ("pets,224", "S/16", PETS, 14 * 14 + 1),
    ("pets", "B/16", PETS, 24 * 24 + 1),
    ("pets,512", "B/32", PETS, 16 * 16 + 1),
    ("pets,518", "H/14", PETS, 37 * 37 + 1),
    ("flowers,224", "L/16", FLOWERS, 14 * 14 + 1),
    ("flowers", "B/32", FLOWERS, 12 * 12 + 1),
    ("flowers,512", "S/32", FLOWERS, 16 * 16 + 1),
    ("flowers,518", "H/14", FLOWERS, 37 * 37 + 1),
])
def test_parameters_of_fine_tuning(argument, variant, data, positions):
  total, width, before = SIZES[variant]
  total += (data[1] - 1000) * (width + 1) + (positions - before) * width
  assert count(plan(f"finetune:{argument}", data, start=variant)) == total


def test_parameters_of_small_models():
  """Written out, layer by layer."""
  width, mlp = 512, 2048
  block = 3 * width * width + (width * width + width) + 4 * width  # no biases of q, k, v
  block += width * mlp + mlp + mlp * width + width
  total = (768 * width + width) + width + 37 * width + 2 * block + 2 * width + 11 * width - width
  assert count(plan("fashion_mnist", FASHION_MNIST)) == total + 10

  width, mlp = 128, 256
  block = 4 * (width * width + width) + 4 * width + width * mlp + mlp + mlp * width + width
  total = (48 * width + width) + 6 * block + 2 * width + 10 * width + 10  # fixed positions
  assert count(plan("cifar10_scratch", WHOLE_CIFAR10)) == total
  assert count(plan("cifar10_scratch:finetune", WHOLE_CIFAR10)) == total

  width, mlp = 64, 256
  block = 4 * (width * width + width) + 4 * width + width * mlp + mlp + mlp * width + width
  total = (48 * width + width) + width + 4 * block + 2 * width + 10 * width + 10
  assert count(plan("quickstart", DIGITS)) == total + 17 * width
  assert count(plan("quickstart:finetune", DIGITS)) == total + 37 * width

  total, width, _ = SIZES["S/16"]
  assert count(plan("folder:scratch", PETS)) == total - (1000 - 37) * (width + 1)


# Training.

SMALL = {"width": 32, "depth": 2, "mlp_dim": 32, "num_heads": 2}
STEPS = {
    "vit_i21k:L/16": (IMAGENET_21K, "sigmoid"),
    "vit_i1k:B/32": (IMAGENET_1K, "softmax"),
    "augreg_i21k:S/32,strong2-drop": (IMAGENET_21K, "sigmoid"),
    "augreg_i1k:S/32": (IMAGENET_1K, "softmax"),
    "plain_vit_i1k:90": (IMAGENET_1K, "softmax"),
    "fashion_mnist": (FASHION_MNIST, "softmax"),
    "cifar10_scratch": (WHOLE_CIFAR10, "softmax"),
    "cifar10_scratch:finetune": (WHOLE_CIFAR10, "softmax"),
    "vit_i21k:H/14": (IMAGENET_21K, "sigmoid"),
    "finetune:imagenet,512": (IMAGENET_1K, "softmax"),
    "finetune:imagenet,518": (IMAGENET_1K, "softmax"),
    "finetune:flowers,384": (FLOWERS, "softmax"),
    "folder": (PETS, "softmax"),
    "folder:scratch": (PETS, "softmax"),
    "quickstart": (DIGITS, "softmax"),
    "quickstart:finetune": (DIGITS, "softmax"),
}


def two_steps(spec, data, overrides):
  """The losses of two steps on noise, and the head's kernel after them."""
  parts = plan(spec, data, overrides, platform="cpu")
  size, side = parts.config.input.batch_size, parts.config.model.image_size
  rng = np.random.default_rng(0)
  batch = mesh_lib.to_devices({
      "image": rng.integers(256, size=(size, side, side, 3), dtype=np.uint8),
      "label": rng.integers(data[1], size=size).astype(np.int32),
      "mask": np.ones(size, np.float32),
  }, parts.mesh)
  state = jax.jit(parts.init, out_shardings=parts.state_shardings)(parts.init_key)
  losses = []
  for _ in range(2):
    state, values = parts.train_step(state, batch, parts.step_key)
    losses.append(float(values["loss"]))
  return losses, np.asarray(state.params["head"]["kernel"])


@pytest.mark.slow  # each is compiled for eight devices
@pytest.mark.parametrize("spec", STEPS)
def test_steps_with_only_width_depth_and_data_reduced(spec):
  """A head at zero gives the first loss in closed form, whatever is mixed or smoothed."""
  data, loss = STEPS[spec]
  overrides = {f"model.{key}": str(value) for key, value in SMALL.items()}
  if spec.endswith(",518"):  # its patches are those of the checkpoint
    overrides["model.patch_size"] = "14"
  losses, kernel = two_steps(spec, data, overrides | {"input.batch_size": "16"})
  classes = data[1]
  expected = math.log(classes)
  if loss == "sigmoid":
    expected = math.log1p(math.exp(10)) + (classes - 1) * math.log1p(math.exp(-10))
  assert losses[0] == pytest.approx(expected, rel=1e-5)
  assert math.isfinite(losses[1]) and np.all(np.isfinite(kernel)) and np.any(kernel)


def run(spec, path, **overrides):
  """Trains a local recipe for two steps; its metrics."""
  overrides = {key.replace("__", "."): value for key, value in overrides.items()}
  train(
      config_lib.load(spec, {"total": "2 steps", "log_every": "1 steps"} | overrides), workdir=path
  )
  return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_local_run_is_trained_evaluated_and_fine_tuned(tmp_path):
  run("vit_i21k:B/16,runlocal", tmp_path / "a", evaluate__every="2 steps")
  metrics = run(
      "finetune:cifar10,runlocal", tmp_path / "b", evaluate__every="2 steps",
      init__checkpoint=str(tmp_path / "a"),
  )
  assert metrics[0]["train/loss"] == pytest.approx(math.log(10), rel=1e-5)  # a new head
  assert 0 <= metrics[-1]["eval/validation/accuracy"] <= 1


@pytest.mark.slow
def test_a_run_is_fine_tuned_with_its_head_and_forked(tmp_path, capsys):
  """At twice the resolution: the head is that of before, positions keep their place."""
  run("cifar10_scratch:runlocal", tmp_path / "a", total="20 steps")
  spec = "cifar10_scratch:finetune,runlocal"
  with pytest.raises(ConfigError, match="--config.init.checkpoint=REF"):
    run("cifar10_scratch:runlocal", tmp_path / "b", init__head="keep")
  metrics = run(spec, tmp_path / "b", init__checkpoint=str(tmp_path / "a"))
  assert metrics[0]["train/loss"] != pytest.approx(math.log(10), rel=1e-3)  # not a new head
  said = capsys.readouterr().out
  assert "head of 10 classes kept" in said and "new:" not in said
  assert "from 16 px to 32 px, fixed positions stretched from 16 px" in said
  config = json.loads((tmp_path / "b" / "config.json").read_text())
  assert config["model"]["position_image_size"] == 16

  plain = evaluate(str(tmp_path / "b"), config_spec=None, overrides={})
  anew = evaluate(
      str(tmp_path / "b"), config_spec=None, overrides={"model.position_image_size": "32"}
  )
  assert anew["position_image_size"] == 32 and "position_image_size" not in plain
  assert anew["metrics"]["loss"] != pytest.approx(plain["metrics"]["loss"], rel=1e-6)

  forked = run(spec, tmp_path / "c", fork__checkpoint=f"{tmp_path / 'b'}@2", total="3 steps")
  assert forked[-1]["step"] == 3
  config = json.loads((tmp_path / "c" / "config.json").read_text())
  assert config["model"]["position_image_size"] == 16


@pytest.mark.slow
@pytest.mark.parametrize("spec", [
    "vit_i1k:B/16,runlocal", "augreg_i21k:B/16,strong2-drop,runlocal", "augreg_i1k:runlocal",
    "plain_vit_i1k:runlocal", "fashion_mnist:runlocal", "cifar10_scratch:runlocal",
    "folder:scratch,runlocal", "quickstart:runlocal",
])
def test_every_local_run_trains(spec, tmp_path):
  metrics = run(spec, tmp_path / "run")
  assert [line["step"] for line in metrics if "train/loss" in line] == [1, 2]
  assert all(math.isfinite(line["train/loss"]) for line in metrics)


@pytest.mark.slow
def test_a_local_run_learns(tmp_path):
  """All of its steps: 71 % were measured."""
  train(config_lib.load("vit_i21k:runlocal"), workdir=tmp_path / "run")
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert json.loads(lines[-1])["eval/validation/accuracy"] > 0.4


def test_a_local_recipe_keeps_its_objective_and_optimizer():
  for name in ARGUMENTS:
    if name in ("quickstart", "folder"):
      continue
    whole, local = config_lib.load(name), config_lib.load(f"{name}:runlocal")
    assert whole.objective.loss == local.objective.loss and whole.optimizer == local.optimizer
    assert whole.batch_ops == local.batch_ops and whole.schedule.name == local.schedule.name
    if name != "finetune":
      assert resolved(f"{name}:runlocal").input.short_side in (None, 18)
      assert count(plan(f"{name}:runlocal", DIGITS)) < 200_000


def test_fine_tuning_needs_a_checkpoint(tmp_path):
  with pytest.raises(ConfigError, match="--config.init.checkpoint=REF"):
    train(config_lib.load("finetune:cifar10,runlocal"), workdir=tmp_path / "run")
  assert not (tmp_path / "run" / "run.json").exists()

"""The papers' tables, typed row by row, against what a run would compute.

Sources: ViT arXiv 2010.11929, Tables 3 and 4; AugReg 2106.10270; plain ViT 2205.01580; big_vision's
and vision_transformer's configs; d2l.ai, "Transformers for Vision".
"""

import io
import math

import jax
import numpy as np
from PIL import Image
import pytest

from vit_jax import config as config_lib
from vit_jax.batch_ops.prepare import prepare_batch
from vit_jax.configs import common
from vit_jax.optim import rules
from vit_jax.optim.optimizer import make_optimizer
from vit_jax.train_input import train_transform

from published import (
    CIFAR10, CIFAR100, FASHION_MNIST, FLOWERS, IMAGENET_1K, IMAGENET_21K, PETS, WHOLE_CIFAR10, plan,
    resolved,
)

# loss, bias of the head, hidden layer before it, pooling
VIT_21K = ("sigmoid", -10.0, True, "cls")
VIT_1K = ("softmax", 0.0, True, "cls")
AUGREG_21K = ("sigmoid", -10.0, False, "gap")
PLAIN = ("softmax", 0.0, True, "gap")
TRANSFER = ("softmax", 0.0, False, "cls")
SMALL = ("softmax", 0.0, False, "gap")

# rule, peak, weight decay times the peak, what decays, clipping, dtype of the first moment, average
ADAM_21K = ("adamw", 1e-3, 3e-5, "all", None, None, None)
ADAM_1K = ("adamw", 3e-3, 9e-4, "all", 1.0, None, None)
BIG_VISION = ("adamw", 1e-3, 1e-4, "kernels", 1.0, "bfloat16", None)
BIG_VISION_LESS = ("adamw", 1e-3, 3e-5, "kernels", 1.0, "bfloat16", None)


def momentum(rate, average=None):
  return ("sgd", rate, 0.0, "none", 1.0, None, average)


# crop, smallest area, mirrored, RandAugment's layers and magnitude, Mixup, (dropout, stochastic
# depth), batch, side, evaluation (side, short side of what it is cut from)
def inception(layers=None, mixup=0.0, drop=(0.0, 0.0), batch=4096, side=224, evaluation=(224, 256)):
  return ("random_resized", 0.05, True, layers, mixup, drop, batch, side, evaluation)


SQUASHED = (224, None)
VIT_CROP = inception(drop=(0.1, 0.0), evaluation=SQUASHED)


def transfer_crop(side):
  return inception(batch=512, side=side, evaluation=(side, None))


# decay, warm-up, steps, last rate
def cosine(warmup, steps):
  return ("cosine", warmup, steps, 0.0)


ROWS = [
    # recipe, starting point, (examples, classes), head, optimizer, schedule, augmentation
    *(
        (f"vit_i21k:{variant}", None, IMAGENET_21K, VIT_21K, ADAM_21K,
         ("linear", 10_000, 272_461, 1e-5), VIT_CROP)
        for variant in ("B/16", "B/32", "L/16", "L/32", "H/14")
    ),
    *(
        (f"vit_i1k:{variant}", None, IMAGENET_1K, VIT_1K, ADAM_1K, cosine(10_000, 92_897), VIT_CROP)
        for variant in ("B/16", "B/32", "L/16", "L/32")
    ),
    *(
        (f"augreg_i21k:{argument}", None, IMAGENET_21K, AUGREG_21K, optimizer,
         cosine(10_000, 908_203), inception(*augmentation))
        for argument, optimizer, *augmentation in [
            ("Ti/16", BIG_VISION, None, 0.0),
            ("S/32", BIG_VISION, None, 0.0),
            ("S/16", BIG_VISION, "2,0", 0.0),
            ("B/32", BIG_VISION, "2,10", 0.2),
            ("B/16", BIG_VISION, "2,10", 0.2),
            ("L/16", BIG_VISION, "2,15", 0.5),
            ("B/16,none", BIG_VISION, None, 0.0),
            ("B/16,light1-drop", BIG_VISION, "2,0", 0.0, (0.1, 0.1)),
            ("B/16,medium1-wd.03", BIG_VISION_LESS, "2,15", 0.2),
            ("L/16,strong1-drop-wd.03", BIG_VISION_LESS, "2,20", 0.5, (0.1, 0.1)),
            ("B/16,strong2", BIG_VISION, "2,20", 0.8),
        ]
    ),
    *(
        (f"augreg_i1k:{argument}", None, IMAGENET_1K, VIT_1K, optimizer, cosine(10_000, 92_897),
         inception(*augmentation))
        for argument, optimizer, *augmentation in [
            ("Ti/16", BIG_VISION, "2,0", 0.0),
            ("S/32", BIG_VISION, "2,10", 0.2),
            ("S/16", BIG_VISION, "2,15", 0.5),
            ("B/32", BIG_VISION, "2,15", 0.5),
            ("B/16", BIG_VISION, "2,15", 0.5),
            ("L/16", BIG_VISION, "2,15", 0.5),
            ("B/16,light2-drop-wd.03", BIG_VISION_LESS, "2,10", 0.2, (0.1, 0.1)),
        ]
    ),
    *(
        (f"plain_vit_i1k:{epochs}", None, IMAGENET_1K, PLAIN, BIG_VISION, cosine(10_000, steps),
         inception("2,10", 0.2, batch=1024))
        for epochs, steps in ((90, 111_477), (150, 185_794), (300, 371_588))
    ),
    *(
        # Averages are kept where the paper keeps them: of ImageNet at 512 and 518 px.
        (f"finetune:{name}{argument}", "H/14" if side == 518 else variant, data, TRANSFER,
         momentum(rate, 0.9999 if name == "imagenet" and side > 384 else None),
         cosine(warmup, steps), transfer_crop(side))
        for name, variant, data, rate, warmup, steps in [
            ("imagenet", "L/16", IMAGENET_1K, 0.03, 500, 20_000),
            ("cifar10", "B/16", CIFAR10, 0.003, 500, 10_000),
            ("cifar100", "L/16", CIFAR100, 0.01, 500, 10_000),
            ("pets", "B/32", PETS, 0.003, 100, 500),
            ("flowers", "B/32", FLOWERS, 0.003, 100, 500),
        ]
        for argument, side in (("", 384), (",224", 224), (",512", 512), (",518", 518))
    ),
    ("fashion_mnist", None, FASHION_MNIST, TRANSFER,
     ("sgd", 0.1, 0.0, "none", None, None, None), ("constant", 0, 4_688, 0.1),
     ("none", None, False, None, 0.0, (0.1, 0.0), 128, 96, (96, None))),
    ("cifar10_scratch", None, WHOLE_CIFAR10, SMALL,
     ("adamw", 1e-3, 5e-5, "kernels", 1.0, None, None), cosine(547, 10_938),
     ("pad", None, True, None, 0.0, (0.0, 0.0), 64, 32, (32, None))),
    ("cifar10_scratch:finetune", None, WHOLE_CIFAR10, SMALL,
     ("adamw", 5e-4, 2.5e-5, "kernels", 1.0, None, None), cosine(78, 1_562),
     ("pad", None, True, None, 0.0, (0.0, 0.0), 64, 64, (64, None))),
]
IDS = [row[0] for row in ROWS]
KERNELS = {
    "patch_embedding/kernel", "blocks/attention/query/kernel", "blocks/attention/key/kernel",
    "blocks/attention/value/kernel", "blocks/attention/out/kernel", "blocks/mlp/fc1/kernel",
    "blocks/mlp/fc2/kernel", "pre_logits/kernel", "head/kernel",
}


@pytest.fixture(scope="module")
def parts():
  """The plan of a row, made once."""
  made = {}

  def of(row):
    if row[0] not in made:
      made[row[0]] = plan(row[0], row[2], start=row[1])
    return made[row[0]]

  return of


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_objective_and_head(row, parts):
  loss, bias, hidden, pooling = row[3]
  found = parts(row)
  assert found.objective.loss_name == loss and found.objective.head_bias == bias
  assert found.objective.class_weights is None and found.config.init.checkpoint is None
  assert ("pre_logits" in found.abstract.params) == hidden
  assert found.model_config["pooling"] == pooling
  assert found.model_config["class_token"] == (pooling == "cls")
  assert found.abstract.params["head"]["bias"].shape == (row[2][1],)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_optimizer(row, parts):
  name, rate, decay, decaying, clip, moment, average = row[4]
  found = parts(row)
  optimizer = found.config.optimizer
  assert optimizer.name == name and optimizer.learning_rate == pytest.approx(rate, rel=1e-12)
  assert optimizer.weight_decay * rate == pytest.approx(decay, rel=1e-12)
  assert not optimizer.weight_decay_independent and optimizer.learning_rate_batch_size is None
  assert optimizer.clip_global_norm == clip and optimizer.ema_decay == average
  assert (optimizer.b1, optimizer.b2, optimizer.epsilon) == (0.9, 0.999, 1e-8)
  assert optimizer.momentum == (0.0 if row[0] == "fashion_mnist" else 0.9)
  assert optimizer.layer_decay is optimizer.freeze is None and not optimizer.learning_rate_rules
  moments = {leaf.dtype.name for leaf in jax.tree.leaves(found.abstract.opt_state) if leaf.ndim}
  assert moments == {"float32", moment or "float32"}
  paths = {
      rules.path_of(path): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(
          rules.decay_mask(found.abstract.params, optimizer.weight_decay_mask)
      )
  }
  if decaying != "none":
    wanted = set(paths) if decaying == "all" else KERNELS & set(paths)
    assert {path for path, decays in paths.items() if decays} == wanted
  if decaying == "kernels":
    assert KERNELS - wanted <= {"pre_logits/kernel"}


def rate_at(step, name, peak, warmup, total, last):
  """Closed form in float64."""
  if step < warmup:
    return peak * step / warmup
  share = (step - warmup) / (total - warmup)
  if name == "cosine":
    return last + (peak - last) * math.cos(math.pi * share / 2) ** 2
  return peak + (last - peak) * share


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_schedule_and_length(row, parts):
  name, warmup, total, last = row[5]
  found, peak = parts(row), row[4][1]
  assert found.total_steps == total
  for step in (0, warmup // 2, warmup, (warmup + total) // 2, total):
    wanted = rate_at(step, name, peak, warmup, total, last)
    assert float(found.schedule(step)) == pytest.approx(wanted, rel=1e-5, abs=1e-6 * peak), step


def test_linear_scaling_is_of_the_whole_schedule():
  """Meant for batches of 1024 and trained with 4096, a rate is 4 times as large."""
  found = plan("vit_i21k:B/16", IMAGENET_21K, {"optimizer.learning_rate_batch_size": "1024"})
  assert float(found.schedule(10_000)) == pytest.approx(4e-3, rel=1e-6)
  assert float(found.schedule(found.total_steps)) == pytest.approx(4e-5, rel=1e-5)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_augmentation(row, parts):
  crop, area, flip, layers, mixup, (dropout, depth), batch, side, (size, short) = row[6]
  config = parts(row).config
  transform = train_transform(config)
  assert (transform.crop, transform.flip, transform.rand_augment) == (crop, flip, layers)
  assert area is None or transform.crop_min_area == area
  assert crop != "pad" or transform.crop_padding == side // 8
  assert not (transform.antialias or transform.three_augment or transform.color_jitter)
  assert transform.random_erasing == 0 and config.input.repeated_augmentation == 1
  assert config.batch_ops.mixup_alpha == mixup and config.batch_ops.cutmix_alpha == 0
  assert (config.model.dropout, config.model.stochastic_depth) == (dropout, depth)
  assert config.input.batch_size == batch
  assert config.model.image_size == transform.image_size == side == size
  assert config.input.short_side == short
  assert config.input.resize == ("squash" if short is None else "center")
  assert config.batch_ops.label_smoothing == (0.1 if "cifar10_scratch" in row[0] else 0.0)
  assert config.model.attention_dropout == (0.1 if row[0] == "fashion_mnist" else 0.0)
  assert transform.crop_filter == config.input.interpolation == "bilinear"


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_photo_becomes_a_training_image(row, parts):
  """At the recipe's own resolution, whatever happens to it on the way."""
  file = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
  Image.fromarray(noise).resize((600, 450)).save(file, "JPEG")
  transform, side = train_transform(parts(row).config), row[6][7]
  first, again, other = (
      transform(file.getvalue(), np.random.default_rng(seed)) for seed in (1, 1, 2)
  )
  assert first.shape == (side, side, 3) and first.dtype == np.uint8 and first.std() > 10
  np.testing.assert_array_equal(first, again)
  assert np.any(first != other) == (row[0] != "fashion_mnist")


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_pixels(row, parts):
  """To [-1, 1], d2l's to [0, 1]."""
  config = parts(row).config
  ends = {"image": np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(3, -1),
          "label": np.zeros(2, np.int32), "mask": np.ones(2, np.float32)}
  out = prepare_batch(ends, mean=config.input.mean, std=config.input.std, num_classes=2)["image"]
  low = 0.0 if row[0] == "fashion_mnist" else -1.0
  np.testing.assert_allclose(np.asarray(out)[:, 0, 0, 0], [low, 1.0], atol=1e-6)


@pytest.mark.parametrize("spec, dataset, split, evaluated, start", [
    ("vit_i21k", "array_record", "train", None, None),
    ("augreg_i21k", "array_record", "train", None, None),
    ("vit_i1k", "tfds:imagenet2012", "train[:99%]", "train[99%:]", None),
    ("augreg_i1k", "tfds:imagenet2012", "train[:99%]", "train[99%:]", None),
    ("plain_vit_i1k", "tfds:imagenet2012", "train[:99%]", "train[99%:]", None),
    ("finetune:imagenet", "tfds:imagenet2012", "train[:99%]", "train[99%:]", "B/16"),
    ("finetune:cifar10", "cifar10", "train[:98%]", "train[98%:]", "B/16"),
    ("finetune:cifar100", "cifar100", "train[:98%]", "train[98%:]", "B/16"),
    ("finetune:pets", "tfds:oxford_iiit_pet", "train[:90%]", "train[90%:]", "B/16"),
    ("finetune:flowers", "tfds:oxford_flowers102", "train[:90%]", "train[90%:]", "B/16"),
    ("fashion_mnist", "fashion_mnist", "train", "test", None),
    ("cifar10_scratch", "cifar10", "train", "test", None),
])
def test_data(spec, dataset, split, evaluated, start):
  config = resolved(spec, start=start)
  assert (config.input.dataset, config.input.split) == (dataset, split)
  assert config.evaluate.split == evaluated and config.input.path is None
  if dataset == "array_record":
    assert config.input.held_out == 0.01
  if dataset not in ("fashion_mnist", "cifar10"):
    assert config.input.exif_orientation is False


def test_the_chapters_model_is_pytorchs_by_default():
  model = plan("fashion_mnist", FASHION_MNIST).model_config
  assert (model["gelu"], model["layer_norm_epsilon"]) == ("erf", 1e-5)
  assert model["attention_dropout"] == model["dropout"] == 0.1 and model["num_heads"] == 8


@pytest.mark.parametrize("spec, rates", [
    ("finetune", [0.003, 0.01, 0.03, 0.06]),
    ("finetune:imagenet,512", [0.003, 0.01, 0.03, 0.06]),
    ("finetune:cifar10", [0.001, 0.003, 0.01, 0.03]),
    ("finetune:cifar100,224", [0.001, 0.003, 0.01, 0.03]),
    ("finetune:pets", [0.001, 0.003, 0.01, 0.03]),
    ("finetune:flowers,runlocal", [0.001, 0.003, 0.01, 0.03]),
])
def test_the_rates_of_a_sweep(spec, rates):
  assert config_lib.sweep(spec) == [{"optimizer.learning_rate": rate} for rate in rates]
  assert config_lib.load(spec).optimizer.learning_rate in rates


def test_decay_times_the_rate_is_big_visions_independent_decay():
  """lr 1e-3 and .1 against 1e-4 independent of it: the same updates along a schedule."""
  params = {"a": {"kernel": np.full((3,), 2.0, np.float32)}}
  grads = {"a": {"kernel": np.array([0.3, -0.2, 0.1], np.float32)}}
  schedule = lambda step: 1e-3 * (1 - step / 10)
  common_arguments = dict(
      schedule=schedule, b1=0.9, b2=0.999, momentum=0.9, weight_decay_mask="kernel$",
      clip_global_norm=1.0, peak_learning_rate=1e-3,
  )
  ours = make_optimizer("adamw", weight_decay=0.1, **common_arguments)
  theirs = make_optimizer(
      "adamw", weight_decay=1e-4, weight_decay_independent=True, **common_arguments
  )
  states = ours.init(params), theirs.init(params)
  for _ in range(3):
    a, first = ours.update(grads, states[0], params)
    b, second = theirs.update(grads, states[1], params)
    states = first, second
    np.testing.assert_allclose(a["a"]["kernel"], b["a"]["kernel"], rtol=1e-6)


def test_the_28_settings_are_the_papers():
  levels = {
      "none": (None, 0.0), "light1": ("2,0", 0.0), "light2": ("2,10", 0.2),
      "medium1": ("2,15", 0.2), "medium2": ("2,15", 0.5), "strong1": ("2,20", 0.5),
      "strong2": ("2,20", 0.8),
  }
  for setting in common.AUGREG_SETTINGS:
    config = resolved(f"augreg_i21k:S/32,{setting}")
    name = setting.split("-")[0]
    assert (config.input.rand_augment, config.batch_ops.mixup_alpha) == levels[name]
    drop = 0.1 if "-drop" in setting else 0.0
    assert config.model.dropout == config.model.stochastic_depth == drop
    assert config.model.stochastic_depth_schedule == "linear"
    assert config.optimizer.weight_decay == (0.03 if setting.endswith("-wd.03") else 0.1)

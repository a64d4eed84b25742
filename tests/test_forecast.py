"""Forecasts for accelerators that are not here."""

import importlib.util
import json
import re

import pytest

from vit_jax import config as config_lib
from vit_jax import forecast as forecast_lib
from vit_jax.errors import ConfigError
from vit_jax.forecast import forecast
from vit_jax.forecast_table import format_forecast
from vit_jax.known_data import DataSize, data_size
from vit_jax.observe.peaks import peak_flops
from vit_jax.parallel.chips import CHIPS
from vit_jax.parallel.topology import compile_devices, parse, prepare_environment
from vit_jax.program import Program
from vit_jax.resolve import resolve

LITTLE = {
    "model.variant": "Ti/8", "model.width": "64", "model.depth": "2", "model.mlp_dim": "128",
    "model.num_heads": "4", "model.image_size": "32", "input.batch_size": "64",
    "total": "40 steps", "schedule.warmup": "4 steps",
}
DATA = DataSize(1000, 10, "a test")


def told(topology, recipe="folder", *, data=DATA, mfu=None, **overrides):
  overrides = {key.replace("__", "."): value for key, value in overrides.items()}
  config = config_lib.load(recipe, (LITTLE if recipe == "folder" else {}) | overrides)
  target = parse(topology)
  resolved = resolve(config, checkpoint=None, platform=target.chip.platform)
  data = data or data_size(config, recipe=recipe, examples=None, classes=None)
  return forecast(resolved, target, data, mfu=mfu)


@pytest.fixture
def no_libtpu(monkeypatch):
  """As on a machine without it."""
  find = importlib.util.find_spec
  monkeypatch.setattr(
      importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else find(name, *a)
  )


def numbers_without_basis(tree, has_basis=False):
  """Paths of the numbers that no basis goes with."""
  if isinstance(tree, dict):
    has_basis = has_basis or "basis" in tree
    for key, value in tree.items():
      for path in numbers_without_basis(value, has_basis):
        yield f"{key}/{path}"
  elif isinstance(tree, list):
    for value in tree:
      yield from numbers_without_basis(value, has_basis)
  elif isinstance(tree, (int, float)) and not isinstance(tree, bool) and not has_basis:
    yield ""


def bare(found) -> list[str]:
  """Paths of the numbers that no basis goes with, but for what was asked for and shapes."""
  paths = numbers_without_basis(found)
  return [p for p in paths if not p.startswith(("config/", "mesh/", "parameter_table/"))]


@pytest.mark.parametrize("topology", ["h100:8*2", "v5p:2x2x1", "tpu7x:2x2x1*2"])
def test_every_number_has_its_basis(topology, no_libtpu):
  found = told(topology)
  assert bare(found) == []
  assert json.loads(json.dumps(found)) == found
  text = format_forecast(found)
  listed = {int(n) for n in re.findall(r"^  \[(\d+)\] .+$", text, re.M)}
  used = {int(n) for n in re.findall(r"\[(\d+)\]", text)}
  assert listed == used == set(range(1, len(listed) + 1))
  assert all(len(line) <= 100 for line in text.splitlines())


def test_every_chip_has_a_peak():
  for chip in CHIPS.values():
    assert peak_flops(chip.device_kind, "bfloat16"), chip.name


def test_without_libtpu_there_is_an_estimate_and_what_to_install(no_libtpu):
  found = told("v5e:2x2")
  assert "pip install 'vit_jax[plan]'" in found["notes"][0] and found["compilation"] is None
  assert found["memory"]["fits"]
  parts = found["memory"]["parts"]
  assert found["memory"]["peak"]["value"] == sum(part["value"] for part in parts.values())
  assert "estimated, not compiled" in format_forecast(found)


def test_gpus_are_estimated_and_say_why():
  found = told("h100:8", micro_batch="auto")
  assert "h100" in found["notes"][0] and "micro_batch" in found["notes"][1]
  assert found["config"]["micro_batch"] is None


def test_a_large_model_does_not_fit_one_small_chip(no_libtpu):
  large = {"model__variant": "G/14", "model__image_size": "224", "model__scan": "True"}
  large |= {f"model__{key}": "None" for key in ("width", "depth", "mlp_dim", "num_heads")}
  found = told("v5e:1x1", **large)
  assert not found["memory"]["fits"] and "DOES NOT FIT" in format_forecast(found)
  assert found["memory"]["peak"]["value"] > 4 * 4 * 1.8e9  # parameters, gradients, two moments


def test_h14_on_a_v5p_slice_in_days_by_hand(no_libtpu):
  """Published: 167.3 GMAC an image; 459 TFLOP/s a chip."""
  found = told("v5p:4x4x8", "vit_i21k:H/14", data=None, mfu=0.4, model__scan="True")
  images = round(90 * 12_276_000 / 4096) * 4096
  days = images * 6 * 167.3e9 / (128 * 459e12 * 0.4) / 86400
  assert found["run"]["days"]["value"] == pytest.approx(days, rel=0.01)
  assert found["run"]["chip_hours"]["value"] == pytest.approx(128 * 24 * days, rel=0.01)
  assert found["run"]["hours"]["value"] == pytest.approx(24 * days, rel=0.01)
  assert found["model"]["flops"]["value"] == pytest.approx(1004e9, rel=0.01)
  step = found["step"]
  assert step["flops"]["value"] == pytest.approx(1004e9 * 4096 / 128, rel=0.01)
  assert step["least"]["arithmetic"]["value"] == pytest.approx(1004e9 * 32 / 459e12, rel=0.01)
  assert step["images_per_second"]["value"] == pytest.approx(4096 / step["seconds"]["value"])
  assert "40%" in step["seconds"]["basis"] and "--mfu" in step["seconds"]["basis"]
  cores = step["images_per_second"]["value"] * 1.8e-3
  assert cores <= found["run"]["cores"]["value"] < cores + 1
  assert found["run"]["cores_a_host"]["value"] == -(-cores // 32)
  assert "benchmarks/README.md" in found["run"]["cores"]["basis"]


def test_the_published_share_is_the_default(no_libtpu):
  """For a step that nothing else bounds."""
  heavy = {"model__width": "512", "model__mlp_dim": "2048", "input__batch_size": "1024"}
  for topology, share, source in (
      ("v5e:2x2", 0.35, "measured on v4: B/16"), ("h200:8", 0.16, "measured on h100: ViT-B/16"),
      ("h100:8", 0.16, "measured on h100: ViT-B/16"), ("a100:8", 0.3, "measured on a100"),
  ):
    step = told(topology, **heavy)["step"]
    assert source in step["mfu"]["basis"]
    assert ("assumed of" in step["mfu"]["basis"]) == (topology in ("v5e:2x2", "h200:8"))
    assert step["mfu"]["value"] == pytest.approx(share)


def test_wide_models_reach_more_of_a_gpus_peak(no_libtpu):
  step = told("h200:8", "vit_i21k:H/14", data=None, model__depth="1")["step"]
  assert "ViT-g/14" in step["seconds"]["basis"] and "assumed of h200" in step["seconds"]["basis"]
  assert step["mfu"]["value"] == pytest.approx(0.29)


def test_enlarging_small_images_is_not_free(no_libtpu):
  """32 px to 224 px costs a CPU hundreds of times what copying 32 px does."""
  cores = {
      side: told("h100:8", "cifar10_scratch", model__image_size=str(side))["run"]["cores"]
      for side in (32, 64)
  }
  assert "in memory" in cores[32]["basis"] and "enlarged to 64 px" in cores[64]["basis"]
  assert cores[64]["value"] > cores[32]["value"]


def test_unrolled_blocks_keep_half_of_scanned_ones(no_libtpu):
  parts = {
      scan: told("h100:8", model__scan=scan)["memory"]["parts"]["activations"]
      for scan in ("True", "False")
  }
  ratio = parts["True"]["value"] / parts["False"]["value"]
  assert ratio == pytest.approx(2, rel=0.1) and "half" in parts["False"]["basis"]


def test_a_share_beyond_the_roofline_is_not_promised(no_libtpu):
  """Two slices that must sum the gradients of a tiny batch over the network."""
  found = told("v5e:2x2*2", input__batch_size="16", model__width="1024", mfu=0.99)
  least, step = found["step"]["least"], found["step"]
  assert step["bound"] == "network" and least["network"]["value"] == max(
      told["value"] for told in least.values()
  )
  assert step["seconds"]["value"] == least["network"]["value"]
  assert step["mfu"]["value"] < 0.99 and "cannot be reached" in step["seconds"]["basis"]


def test_more_slices_are_faster_and_cost_chips(no_libtpu):
  one = told("v5e:4x4", "vit_i21k:B/16", data=None, model__scan="True")
  two = told("v5e:4x4*2", "vit_i21k:B/16", data=None, model__scan="True")
  assert two["run"]["hours"]["value"] == pytest.approx(one["run"]["hours"]["value"] / 2, rel=0.01)
  assert {row["slices"] for row in two["collectives"]["rows"]} == {2}
  assert two["step"]["least"]["network"]["value"] > 0 == one["step"]["least"]["network"]["value"]


@pytest.mark.parametrize("overrides, ways", [
    ({}, "a smaller config.micro_batch, config.model.remat=block, more or larger chips"),
    ({"micro_batch": "4", "mesh__fsdp": "2"},
     "config.model.remat=block, config.mesh.fsdp=4, more or larger chips"),
    ({"micro_batch": "4", "model__remat": "block"}, "more or larger chips"),
    ({"mesh__replica": "4"},
     "a smaller config.micro_batch, config.model.remat=block, config.mesh.fsdp=2 with"
     " config.mesh.replica=2, more or larger chips"),
])
def test_what_would_make_it_fit_is_not_what_is_set_already(no_libtpu, overrides, ways):
  found = told("v5e:2x2", model__width="16384", model__mlp_dim="65536", **overrides)
  assert found["notes"][-1] == f"to make it fit: {ways}"


def test_an_axis_that_divides_nothing_is_said(no_libtpu):
  """1280 does not divide by 512: every kernel of H/14 would lie whole."""
  found = told("v5p:8x8x8", "vit_i21k:H/14", data=None, mesh__fsdp="512")
  (note,) = [note for note in found["notes"] if "does not divide" in note]
  kernels = [p for p, row in found["parameter_table"].items() if row["dropped"]]
  assert note.startswith(f"{len(kernels)} of ") and "blocks/mlp/fc1/kernel" in kernels
  assert found["parameter_table"]["blocks/mlp/fc1/kernel"]["axes"] == [None, None, "tensor"]
  assert not any("does not divide" in note for note in told("v5e:2x2", mesh__fsdp="4")["notes"])


def test_micro_batches_hold_two_sets_of_gradients(no_libtpu):
  one, two = (
      told("h100:8", micro_batch=size)["memory"]["parts"]["gradients"]["value"]
      for size in ("64", "16")
  )
  assert two == 2 * one


def test_a_batch_that_cannot_be_split_is_refused(no_libtpu):
  with pytest.raises(ConfigError, match="batch_size"):
    told("v5e:8x8", input__batch_size="64")


def test_a_program_that_does_not_fit_is_told(monkeypatch):
  """What the compiler needed and had is the answer; there are no collectives."""
  program = Program(20 * 2**30, 15 * 2**30, None, None, None, None, 1.5, 2.0)
  monkeypatch.setattr(forecast_lib, "compile_step", lambda plan: program)
  monkeypatch.setattr(
      forecast_lib, "compile_devices", lambda target: forecast_lib.imagined_devices(target)
  )
  found = told("v5e:2x2")
  memory = found["memory"]
  assert not memory["fits"] and memory["available"]["value"] == 15 * 2**30
  assert "refused" in memory["available"]["basis"]
  assert found["collectives"]["rows"] is None and "links" not in found["step"]["least"]
  text = format_forecast(found)
  assert "DOES NOT FIT" in text and "not known" in text and "config.micro_batch" in text
  assert bare(found) == [] and "does not fit, so that" in found["step"]["seconds"]["basis"]


@pytest.fixture
def libtpu():
  pytest.importorskip("libtpu", reason="pip install 'vit_jax[plan]'")
  prepare_environment()


@pytest.mark.parametrize("fsdp", ["1", pytest.param("4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype, short", [("float32", "f32"), ("bfloat16", "bf16")])
def test_gradients_are_reduced_in_the_dtype_that_the_config_promises(libtpu, dtype, short, fsdp):
  """Once, and of a model that computes in bfloat16; by itself XLA would reduce in that."""
  found = told("v5e:2x2", model__gradient_dtype=dtype, mesh__fsdp=fsdp)
  assert found["config"]["model"]["dtype"] == "bfloat16"
  reduced = {"bf16": 0, "f32": 0}
  for row in found["collectives"]["rows"]:
    if row["kind"] in ("all-reduce", "reduce-scatter"):
      reduced[row["dtype"]] += row["bytes"]
  parameters = found["model"]["parameters"]["value"]
  width = {"f32": 4, "bf16": 2}
  assert reduced.pop(short) == pytest.approx(width[short] * parameters, rel=0.1)
  ((other, size),) = reduced.items()
  assert size < 0.05 * width[other] * parameters


def test_a_topology_is_compiled_for(libtpu):
  """The quick case of `test_topologies.py`: a tiny model for two slices of four chips."""
  found = told("v5e:2x2*2")
  assert found["notes"] == [] and found["memory"]["fits"]
  assert found["compilation"]["cpu"]["value"] > 0
  rows = found["collectives"]["rows"]
  assert {tuple(row["axes"]) for row in rows} == {("replica",)}
  # Gradients are summed inside each slice, each device's share of them over the slices.
  parameters, kinds = 4 * found["model"]["parameters"]["value"], ("all-reduce", "reduce-scatter")
  taken = lambda slices: sum(
      row["bytes"] for row in rows if row["slices"] == slices and row["kind"] in kinds
  )
  assert taken(1) == pytest.approx(parameters, rel=0.05)
  assert 0.95 * parameters / 4 < taken(2) < 1.05 * parameters
  assert found["step"]["least"]["network"]["value"] > found["step"]["least"]["links"]["value"] > 0
  assert found["memory"]["peak"]["value"] > found["memory"]["parts"]["parameters"]["value"]
  assert "compilation" in format_forecast(found)
  assert bare(found) == []
  assert compile_devices(parse("v5e:2x2*2"))[0].device_kind == "TPU v5 lite"

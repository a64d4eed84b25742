"""Gradient accumulation: the large batch's numbers, on one device and on eight."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import micro_batch
from vit_jax.batch_ops.prepare import prepare_batch
from vit_jax.errors import ConfigError
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.optim.norms import norms_by_block
from vit_jax.optim.optimizer import make_optimizer
from vit_jax.optim.rules import frozen_mask
from vit_jax.parallel import sharding
from vit_jax.parallel.mesh import AXES, to_devices
from vit_jax.step import init_state, make_train_step

BATCH, CLASSES, STEPS = 32, 5, 4
MODEL = ViT(
    width=32, depth=2, mlp_dim=64, num_heads=2, patch_size=4, image_size=8, num_classes=CLASSES,
    dtype="float32",
)
PREPARE = functools.partial(
    prepare_batch, mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=CLASSES, mixup_alpha=0.2
)
MESHES = {"one device": (1, 1), "eight devices": (2, 4)}


def batch(seed):
  """Every third example of the first half is masked, so that parts weigh differently."""
  rng = np.random.default_rng(seed)
  mask = np.ones(BATCH, np.float32)
  mask[: BATCH // 2 : 3] = 0
  return {
      "image": rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8),
      "label": rng.integers(0, CLASSES, BATCH).astype(np.int32), "mask": mask,
  }


def built(mesh_name, parts, *, dropout=0.0, freeze=None, prepare=PREPARE):
  """Mesh, state and step."""
  replica, fsdp = MESHES[mesh_name]
  devices = np.array(jax.devices()[: replica * fsdp]).reshape(replica, fsdp, 1)
  mesh = jax.sharding.Mesh(devices, AXES)
  objective = Supervised(dataclasses.replace(MODEL, dropout=dropout))
  optimizer = make_optimizer(
      "sgd", schedule=lambda _: 0.1, b1=0.9, b2=0.999, momentum=0.9, weight_decay=0.0,
      weight_decay_mask="kernel$", clip_global_norm=1.0, freeze=freeze,
  )
  init = lambda key: init_state(objective, optimizer, key, {"image": np.zeros((1, 8, 8, 3))})
  abstract = jax.eval_shape(init, jax.random.key(0))
  shardings = sharding.shardings(abstract, mesh)
  state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
  kernel = 0.3 * np.random.default_rng(0).standard_normal((32, CLASSES), np.float32)
  head = state.params["head"] | {
      "kernel": jax.device_put(kernel, shardings.params["head"]["kernel"])
  }
  state = dataclasses.replace(state, params=state.params | {"head": head})
  step = make_train_step(
      objective, optimizer, prepare=prepare, mesh=mesh, state_shardings=shardings,
      micro_batches=parts, frozen=freeze and frozen_mask(abstract.params, freeze),
  )
  return mesh, state, step


@functools.cache
def trained(mesh_name, parts, *, freeze=None):
  """Losses, metrics of the last step, and parameters before and after a few steps."""
  mesh, state, step = built(mesh_name, parts, freeze=freeze)
  before = jax.device_get(state.params)
  losses = []
  for i in range(STEPS):
    state, values = step(state, to_devices(batch(i), mesh), jax.random.key(1))
    losses.append(values["loss"].item())
  return losses, jax.device_get(values), before, jax.device_get(state.params)


@pytest.mark.parametrize("mesh, parts", [
    pytest.param("one device", 4, marks=pytest.mark.slow), ("eight devices", 2),
])
def test_parts_are_the_large_batch(mesh, parts):
  losses, values, _, params = trained("one device", 1)
  found, found_values, _, found_params = trained(mesh, parts)
  np.testing.assert_allclose(found, losses, rtol=1e-6)
  assert found_values.keys() == values.keys()
  for name, value in values.items():
    np.testing.assert_allclose(found_values[name], value, rtol=2e-5, err_msg=name)
  for ours, wanted in zip(jax.tree.leaves(found_params), jax.tree.leaves(params)):
    np.testing.assert_allclose(ours, wanted, atol=1e-6)


@pytest.mark.slow
def test_each_part_has_dropout_of_its_own():
  """Of two equal parts only one counts, then only the other: what differs is their dropout."""
  plain_images = functools.partial(
      prepare_batch, mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=CLASSES
  )
  doubled = {key: np.repeat(value[::2], 2, axis=0) for key, value in batch(0).items()}
  losses = {0.0: [], 0.3: []}
  for dropout, found in losses.items():
    for part in range(2):
      mesh, state, step = built("one device", 2, dropout=dropout, prepare=plain_images)
      counted = doubled | {"mask": np.arange(BATCH) % 2 == part}
      counted["mask"] = counted["mask"].astype(np.float32)
      found.append(step(state, to_devices(counted, mesh), jax.random.key(1))[1]["loss"].item())
  assert losses[0.0][0] == losses[0.0][1] != losses[0.3][0] != losses[0.3][1]


def test_norms_are_logged_by_block():
  _, values, _, params = trained("one device", 1)
  blocks = set(norms_by_block(params)) - {"all"}
  assert {"block_00", "block_01", "head"} < blocks
  for kind in ("gradient", "parameter", "update"):
    own = {name.partition("/")[2] for name in values if name.startswith(f"{kind}_norm/")}
    assert own == blocks
    squares = sum(float(values[f"{kind}_norm/{block}"]) ** 2 for block in blocks)
    np.testing.assert_allclose(values[f"{kind}_norm"], np.sqrt(squares), rtol=1e-5)
  leaves = [np.float64(leaf) for leaf in jax.tree.leaves(params)]
  wanted = np.sqrt(sum((leaf**2).sum() for leaf in leaves))
  np.testing.assert_allclose(values["parameter_norm"], wanted, rtol=1e-5)


def test_frozen_parameters_have_no_gradient():
  _, values, before, after = trained("one device", 1, freeze="^(?!head)")
  assert values["gradient_norm/block_00"] == 0 and values["gradient_norm/head"] > 0
  for name in before:
    same = jax.tree.map(np.array_equal, before[name], after[name])
    assert all(jax.tree.leaves(same)) == (name != "head")


def test_the_largest_that_fits():
  needed = {64: 900, 32: 500, 16: 300, 8: 200}
  asked = []

  def ask(size):
    asked.append(size)
    return needed[size]

  found = micro_batch.largest_that_fits(ask, batch_size=64, data_shards=8, available=500)
  assert found == (16, 300) and asked == [64, 16, 32]  # the whole batch, then bisected
  assert micro_batch.largest_that_fits(ask, batch_size=64, data_shards=8, available=1000)[0] == 64
  with pytest.raises(ConfigError, match="is the smallest of config.input.batch_size 64"):
    micro_batch.largest_that_fits(ask, batch_size=64, data_shards=8, available=200)


@pytest.mark.parametrize("batch, shards", [(1536, 256), (96, 8), (64, 64), (720, 1)])
def test_the_largest_that_fits_of_every_size(batch, shards):
  """Whatever fits: thirds too, and each size is compiled once."""
  for wanted in micro_batch.sizes(batch, shards):
    asked = []
    found = micro_batch.largest_that_fits(
        lambda size: asked.append(size) or size, batch_size=batch, data_shards=shards,
        available=wanted / 0.92 + 1e-6,
    )
    assert found == (wanted, wanted) and len(asked) == len(set(asked)) <= 7


@pytest.mark.parametrize("size, near", [(20, 16), (4, 8), (65, 64)])
def test_what_does_not_divide(size, near):
  with pytest.raises(ConfigError, match=f"config.micro_batch is {size}.*the nearest is {near}"):
    micro_batch.micro_batches(64, size, 8)
  assert micro_batch.micro_batches(64, 16, 8) == 4


def test_memory_falls_with_the_micro_batch():
  """The compiler's own figures for a step: activations are most of it."""
  def step(size):
    def loss(w, part):
      return (jax.nn.gelu(part @ w) ** 2).sum()

    def gradient(w, x):
      add = lambda total, part: (total + jax.grad(loss)(w, part), None)
      return jax.lax.scan(add, jax.numpy.zeros_like(w), x.reshape(-1, size, 256))[0]

    return jax.jit(gradient)

  shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((256, 4096), (1024, 256))]
  whole, part = (
      micro_batch.step_bytes(step(size), *shapes, device=jax.devices()[0]) for size in (1024, 128)
  )
  activations = 1024 * 4096 * 4
  assert whole > activations and part < whole


def test_advice_when_the_devices_are_full():
  with pytest.raises(ConfigError, match="out of memory .*: try something else$"):
    with micro_batch.advice_when_out_of_memory("try something else"):
      jax.numpy.zeros(2**52, np.uint8).block_until_ready()


@pytest.mark.parametrize("values, step, evaluation", [
    ({}, "config.micro_batch=32 (now 64;", "config.evaluate.batch_size=32 (now 64)"),
    ({"micro_batch": 16, "evaluate.batch_size": 24}, "config.micro_batch=8 (now 16;",
     "config.evaluate.batch_size=12 (now 24)"),
    ({"micro_batch": 8, "evaluate.batch_size": 9}, micro_batch.SMALLER_STATE,
     "config.evaluate.batch_size=8 (now 9)"),
    ({"micro_batch": 8, "evaluate.batch_size": 8}, micro_batch.SMALLER_STATE,
     micro_batch.SMALLER_STATE),
])
def test_what_to_try_next(values, step, evaluation):
  config = config_lib.complete(values | {"input.batch_size": 64}, origin="a test")
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 8, 1), AXES)
  assert step in micro_batch.smaller_step(config, mesh)
  assert evaluation in micro_batch.smaller_evaluation(config, mesh)


def test_the_micro_batch_is_a_recipe_key_where_there_is_dropout():
  plain = config_lib.complete({}, origin="a test")
  for rate, kind in ((0.0, config_lib.RUNTIME), (0.1, config_lib.RECIPE)):
    before = config_lib.override(plain, {"model.stochastic_depth": str(rate)})
    after = config_lib.override(before, {"micro_batch": "auto"})
    assert config_lib.differences(before, after)[kind] == {"micro_batch": (None, "auto")}

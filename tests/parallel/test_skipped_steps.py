"""A skipped step leaves the state bit for bit, on every mesh and however a batch is divided."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.batch_ops.prepare import prepare_batch
from vit_jax.diagnosis import describe, make_diagnosis
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.optim.optimizer import make_optimizer
from vit_jax.parallel import sharding
from vit_jax.parallel.mesh import AXES, create_mesh, placement, replicated, to_devices
from vit_jax.step import init_state, make_train_step

from mesh_shapes import SHAPES

BATCH, CLASSES, SIZE = 32, 8, 16
MODEL = dict(
    width=32, depth=2, mlp_dim=64, num_heads=4, patch_size=8, image_size=SIZE, num_classes=CLASSES,
    scan=True,
)
OPTIMIZER = make_optimizer(
    "adamw", schedule=lambda count: 1e-2 / (1 + count), b1=0.9, b2=0.999, momentum=0.9,
    weight_decay=0.05, weight_decay_mask="kernel$", clip_global_norm=1.0,
)
PREPARE = functools.partial(prepare_batch, mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=CLASSES)


class Poisoned(Supervised):
  """The loss of a micro-batch with an example of the last class is NaN at step 1; a count is kept
  as the objective's state."""

  def init(self, key, batch):
    return super().init(key, batch)[0], {"seen": jnp.zeros((), jnp.int32)}

  def loss(self, params, state, batch, key, step, train):
    loss_sum, weight, metrics, _ = super().loss(params, {}, batch, key, step, train)
    bad = (step == 1) & jnp.any(batch["target"][:, -1] > 0)
    return (
        loss_sum * jnp.where(bad, jnp.nan, 1.0), weight, metrics, {"seen": state["seen"] + 1}
    )


def run(mesh, *, micro_batches: int, steps: int = 3):
  """States around each step and its metrics, on the host; each batch has one bad example."""
  objective = Poisoned(ViT(**MODEL, place=placement(mesh)))
  image = np.zeros((1, SIZE, SIZE, 3), np.float32)
  init = lambda key: init_state(objective, OPTIMIZER, key, {"image": image}, ema_decay=0.9)
  where = sharding.shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
  state = jax.jit(init, out_shardings=where)(jax.random.key(0))
  step = make_train_step(
      objective, OPTIMIZER, state_shardings=where, ema_decay=0.9, prepare=PREPARE, mesh=mesh,
      micro_batches=micro_batches,
  )
  key, rng = jax.device_put(jax.random.key(1), replicated(mesh)), np.random.default_rng(0)
  copied = lambda tree: jax.tree.map(np.array, tree)
  states, metrics = [copied(state)], []
  for _ in range(steps):
    label = rng.integers(0, CLASSES - 1, BATCH).astype(np.int32)
    label[5] = CLASSES - 1
    batch = to_devices({
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8), "label": label,
        "mask": np.ones(BATCH, np.float32),
    }, mesh)
    before = state
    state, values = step(state, batch, key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
    states.append(copied(state))
    metrics.append(copied(values))
  return states, metrics


@pytest.fixture(scope="module")
def alone(one_device):
  return run(one_device, micro_batches=1)


@pytest.mark.parametrize("shape, micro_batches", [
    ("mixed", 2),
    *(pytest.param(shape, parts, marks=pytest.mark.slow)
      for shape in ("data", "fsdp", "tensor", "data_fsdp") for parts in (1, 4)),
])
def test_a_skipped_step_changes_nothing(shape, micro_batches, alone):
  states, metrics = run(
      create_mesh(**dict(zip(AXES, SHAPES[shape]))), micro_batches=micro_batches
  )
  before, behind = states[1], states[2]
  for name in ("params", "ema", "objective_state"):
    jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(behind, name))
  jax.tree.map(
      np.testing.assert_array_equal, before.opt_state["scale"], behind.opt_state["scale"]
  )
  assert int(behind.opt_state["learning_rate"].count) == int(behind.step) == 2
  assert [int(values["skipped"]) for values in metrics] == [0, 1, 1]
  assert [int(values["skipped_in_a_row"]) for values in metrics] == [0, 1, 0]
  # And it goes on like one device.
  for values, other in zip(metrics, alone[1]):
    np.testing.assert_allclose(values["loss"], other["loss"], rtol=0, atol=2e-6)
    assert values["skipped"] == other["skipped"]
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-4), states[-1].params,
      alone[0][-1].params,
  )


@functools.cache
def diagnosis(mesh):
  return make_diagnosis(Poisoned(ViT(**MODEL, place=placement(mesh))), prepare=PREPARE, mesh=mesh)


def diagnosed(state, mesh, *, step=0, label=0):
  batch = {
      "image": np.full((BATCH, SIZE, SIZE, 3), 9, np.uint8),
      "label": np.full(BATCH, label, np.int32), "mask": np.ones(BATCH, np.float32),
  }
  state = dataclasses.replace(state, step=np.int32(step))
  return describe(jax.device_get(diagnosis(mesh)(state, batch, jax.random.key(1))), state.params)


def with_number(state, path, index, number):
  """The state with numbers of one parameter replaced."""
  params = jax.tree.map(np.array, state.params)
  leaf = params
  for name in path.split("/"):
    leaf = leaf[name]
  leaf[index] = number
  return dataclasses.replace(state, params=params)


@pytest.mark.parametrize("path, index, said, whole", [
    ("blocks/mlp/fc2/kernel", (1, 0, 0), "blocks/mlp/fc2/kernel of block 1 (1 of 2048)", 2),
    ("patch_embedding/bias", 3, "patch_embedding/bias (1 of 32)", 0),
])
def test_a_diagnosis_names_the_parameter(path, index, said, whole, one_device, alone):
  text, told = diagnosed(with_number(alone[0][0], path, index, np.nan), one_device)
  assert text == f"parameters broke first: {said}"
  # The tokens are whole before that block.
  assert [count > 0 for count in told["tokens"]] == [False] * whole + [True] * (3 - whole)
  # All gradients are ruined; they are listed as the forward pass goes.
  places = [(entry["path"].split("/")[0], entry["block"]) for entry in told["gradients"]]
  assert places[0][0] == "patch_embedding" and places[-1][0] == "head"
  assert places.index(("blocks", 0)) < places.index(("blocks", 1))


def test_a_diagnosis_names_the_block_or_the_loss(one_device, alone):
  state = alone[0][0]
  said, _ = diagnosed(with_number(state, "blocks/norm2/scale", 0, 3e38), one_device)
  assert said == "parameters are finite; what block 0 puts out is the first that is not"
  said, told = diagnosed(state, one_device, step=1, label=CLASSES - 1)
  assert said.startswith("parameters and the tokens of all blocks are finite; head or loss")
  assert told["parameters"] == [] and told["loss"] is None
  said, told = diagnosed(state, one_device)
  assert said.startswith("everything is finite; the gradient is longest in head: ")
  assert told["gradients"] == [] and told["loss"] > 0

"""The training step is one program whatever the mesh: equal start, equal course."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.batch_ops.prepare import prepare_batch
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.optim.optimizer import make_optimizer
from vit_jax.optim.schedule import make_schedule
from vit_jax.parallel import sharding
from vit_jax.parallel.mesh import (
    AXES, batch_sharding, create_mesh, placement, replicated, to_devices,
)
from vit_jax.step import all_finite, init_state, make_train_step

from compilations import compilations
from mesh_shapes import SHAPES

STEPS, BATCH, CLASSES, SIZE = 50, 32, 10, 16
MICRO_BATCHES = 2
# Eight heads and 64 hidden units split over eight; ten classes do over two only.
# Tokens are placed as `plan.make_plan` does it, so that what is tested is what runs.
MODEL = dict(
    width=32, depth=2, mlp_dim=64, num_heads=8, patch_size=4, image_size=SIZE,
    num_classes=CLASSES, dropout=0.1, stochastic_depth=0.2, scan=True,
)
OPTIMIZER = make_optimizer(
    "adamw",
    schedule=make_schedule(
        "cosine", learning_rate=5e-4, warmup_steps=3, total_steps=STEPS, end_learning_rate=0.0
    ),
    b1=0.9, b2=0.999, momentum=0.9, weight_decay=0.05, weight_decay_mask="kernel$",
    clip_global_norm=1.0,
)
PREPARE = functools.partial(
    prepare_batch, mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=CLASSES, mixup_alpha=0.2
)
Run = collections.namedtuple("Run", "losses gradient_norms params step compilations")


@functools.cache
def objective(mesh, dtype="float32"):
  return Supervised(ViT(**MODEL, dtype=dtype, place=placement(mesh)))


@functools.cache
def initial_state(mesh):
  """A function that draws the state before step 0 on the mesh, and the state's shardings."""
  image = np.zeros((1, SIZE, SIZE, 3), np.float32)
  init = lambda key: init_state(objective(mesh), OPTIMIZER, key, {"image": image})
  key = jax.random.key(0)
  shardings = sharding.shardings(jax.eval_shape(init, key), mesh)
  compiled = jax.jit(init, out_shardings=shardings)
  return lambda: compiled(key), shardings


@functools.cache
def train_step(mesh, dtype):
  return make_train_step(
      objective(mesh, dtype), OPTIMIZER, prepare=PREPARE, mesh=mesh, micro_batches=MICRO_BATCHES,
      state_shardings=initial_state(mesh)[1],
  )


def with_random_head(state, shardings):
  """A head that starts at zero would hide the body's gradients in the first steps."""
  kernel = 0.3 * np.random.default_rng(0).standard_normal((32, CLASSES), np.float32)
  where = shardings.params["head"]["kernel"]
  head = state.params["head"] | {"kernel": jax.device_put(kernel, where)}
  return dataclasses.replace(state, params=state.params | {"head": head})


def batches():
  """Each class is a pattern under noise; one example in sixteen is masked."""
  rng = np.random.default_rng(0)
  patterns = rng.integers(0, 256, (CLASSES, SIZE, SIZE, 3))
  for _ in range(STEPS):
    label = rng.integers(0, CLASSES, BATCH)
    image = 0.5 * patterns[label] + 0.5 * rng.integers(0, 256, (BATCH, SIZE, SIZE, 3))
    mask = (np.arange(BATCH) % 16 != 5).astype(np.float32)
    yield {
        "image": image.astype(np.uint8), "label": label.astype(np.int32), "mask": mask
    }


def train(mesh, dtype="float32") -> Run:
  init, shardings = initial_state(mesh)
  state = with_random_head(init(), shardings)
  step = train_step(mesh, dtype)
  key = jax.device_put(jax.random.key(1), replicated(mesh))
  losses, norms = [], []
  with compilations() as compiled:
    for batch in batches():
      batch, before = to_devices(batch, mesh), state
      with jax.transfer_guard("disallow"):
        state, values = step(state, batch, key)
      assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
      assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.opt_state))
      losses.append(float(values["loss"]))
      norms.append(float(values["gradient_norm"]))
  for leaf, where in zip(jax.tree.leaves(state), jax.tree.leaves(shardings)):
    assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
  params = jax.tree.map(np.asarray, state.params)
  return Run(losses, norms, params, int(state.step), compiled.count("jit(step)"))


@pytest.fixture(scope="module")
def alone(one_device):
  return train(one_device)


def differences(one, other):
  """Path to the largest absolute difference of each parameter."""
  pairs = zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other))
  return {sharding.path_name(path): np.abs(a - b).max() for (path, a), b in pairs}


def test_one_device_learns(alone):
  assert alone.step == STEPS and alone.compilations == 1
  assert np.mean(alone.losses[-3:]) < 0.9 * np.mean(alone.losses[:3])
  assert max(alone.gradient_norms) > 1.0  # the clipping is at work


@pytest.mark.parametrize("shape", [
    "mixed",
    *(pytest.param(name, marks=pytest.mark.slow) for name in SHAPES if name != "mixed"),
])
def test_every_mesh_trains_like_one_device(shape, alone):
  run = train(create_mesh(**dict(zip(AXES, SHAPES[shape]))))
  assert run.compilations == 1
  assert np.abs(np.array(run.losses) - np.array(alone.losses)).max() <= 2e-6
  apart = differences(run.params, alone.params)
  # A key bias adds the same to all logits of a query, so its gradient is zero but for rounding,
  # and Adam scales rounding up to steps of the learning rate.  All else is equal to few ulps.
  assert apart.pop("blocks/attention/key/bias") <= 1e-3
  assert max(apart.values()) <= 5e-6, apart


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_mesh_trains_like_one_device_in_bfloat16(shape, one_device):
  alone = train(one_device, "bfloat16")
  run = train(create_mesh(**dict(zip(AXES, SHAPES[shape]))), "bfloat16")
  assert np.mean(alone.losses[-3:]) < 0.9 * np.mean(alone.losses[:3])
  assert np.abs(np.array(run.losses) - np.array(alone.losses)).max() <= 1e-2


def test_random_bits_are_those_of_the_step(one_device, alone):
  """The same parameters and batch: dropout and Mixup change with the step and with the key."""
  init, shardings = initial_state(one_device)
  where = replicated(one_device)
  batch = to_devices(next(batches()), one_device)

  def loss(step, seed):
    state = with_random_head(init(), shardings)
    state = dataclasses.replace(state, step=jax.device_put(np.int32(step), where))
    key = jax.device_put(jax.random.key(seed), where)
    return float(train_step(one_device, "float32")(state, batch, key)[1]["loss"])

  assert loss(0, 1) == loss(0, 1) == alone.losses[0]
  assert len({loss(0, 1), loss(1, 1), loss(7, 1), loss(0, 2)}) == 4


@pytest.mark.parametrize("mesh", [
    shape if shape == "mixed" else pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES
], indirect=True)
def test_initial_parameters_are_the_same_bits_on_every_mesh(mesh, one_device):
  init, shardings = initial_state(mesh)
  params, wanted = init().params, initial_state(one_device)[0]().params
  jax.tree.map(np.testing.assert_array_equal, params, wanted)
  kernel = params["blocks"]["mlp"]["fc1"]["kernel"]
  assert kernel.sharding == shardings.params["blocks"]["mlp"]["fc1"]["kernel"]
  assert float(jnp.std(kernel)) == pytest.approx(np.sqrt(2 / (32 + 64)), rel=0.05)
  assert not np.any(params["head"]["kernel"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_all_finite_sees_a_single_bad_number(value):
  tree = {"a": np.ones((8, 4), np.float32), "step": np.int32(3)}
  where = batch_sharding(create_mesh(replica=4, fsdp=2, tensor=1))
  put = lambda: tree | {"a": jax.device_put(tree["a"], where)}
  assert all_finite(put())
  tree["a"][5, 2] = value
  assert not all_finite(put())

"""What the compiled training step sends, keeps and reuses, read off the program itself."""

import functools
import json
import os
import pathlib
import types

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax.parallel import sharding
from vit_jax.parallel.collectives import collectives, summarize
from vit_jax.parallel.mesh import choose_fsdp
from vit_jax.plan import abstract_arguments, make_plan
from vit_jax.resolve import resolve

from mesh_shapes import SHAPES

GOLDEN = pathlib.Path(__file__).parent / "golden_collectives.json"
DEPTH, WIDTH, HIDDEN = 4, 64, 256
MODEL = {
    "model.variant": "Ti/8", "model.width": WIDTH, "model.depth": DEPTH, "model.mlp_dim": HIDDEN,
    "model.num_heads": 8, "model.image_size": 32, "input.batch_size": 32,
    "input.dataset": "cifar10", "total": "40 steps",
    "schedule.warmup": "4 steps", "optimizer.weight_decay": 0.1,
    "batch_ops.mixup_alpha": 0.2, "model.dropout": 0.1, "model.scan": True,
}


@functools.cache
def program(shape: str, micro_batch: int | None = None):
  """The plan of a step on a mesh, and the step compiled."""
  axes = dict(zip(("mesh.replica", "mesh.fsdp", "mesh.tensor"), SHAPES[shape]))
  config = config_lib.complete(MODEL | axes | {"micro_batch": micro_batch}, origin="a test")
  plan = make_plan(
      resolve(config, checkpoint=None, platform="cpu"), examples=1000, num_classes=10
  )
  arguments = abstract_arguments(plan.config, plan.abstract)
  return plan, plan.train_step.lower(*arguments).compile()


def shapes(*names: str):
  """Kinds of meshes as parameters; the gate compiles for two."""
  return [
      name if name in ("data", "fsdp") else pytest.param(name, marks=pytest.mark.slow)
      for name in names
  ]


def bytes_of(tree) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def sent(shape: str, kind: str, **options) -> list:
  plan, compiled = program(shape, **options)
  return [c for c in collectives(compiled.as_text(), plan.mesh) if c.kind == kind]


def test_a_data_parallel_mesh_gathers_no_parameters():
  assert not sent("data", "all-gather")


@pytest.mark.parametrize("shape", shapes("data", "data_fsdp", "fsdp"))
def test_gradients_are_reduced_once(shape):
  """The bytes of all parameters once, and little beside: losses, norms, statistics."""
  plan, _ = program(shape)
  reduced = sent(shape, "all-reduce") + sent(shape, "reduce-scatter")
  total = bytes_of(plan.abstract.params)
  over_all = sum(c.total_bytes for c in reduced)
  if shape == "data_fsdp":  # over one axis and then the other, perhaps
    assert 0.99 * total <= over_all <= 2.1 * total
  else:
    assert 0.99 * total <= over_all <= 1.1 * total
  assert {c.dtype for c in reduced if c.total_bytes > 64} == {"f32"}


@pytest.mark.slow
def test_gradients_are_reduced_once_for_each_micro_batch():
  total = bytes_of(program("data")[0].abstract.params)
  reduced = sum(c.total_bytes for c in sent("data", "all-reduce", micro_batch=16))
  assert 1.98 * total <= reduced <= 2.2 * total


@pytest.mark.parametrize("shape", shapes("fsdp", "data_fsdp", "mixed"))
def test_fsdp_gathers_a_layer_at_a_time_inside_the_scan(shape):
  plan, _ = program(shape)
  gathers = [c for c in sent(shape, "all-gather") if "fsdp" in c.axes]
  layer = 4 * WIDTH * HIDDEN // plan.mesh.shape["tensor"]
  assert max(c.bytes for c in gathers) <= layer
  inside = [c for c in gathers if c.count == DEPTH]
  assert len(inside) >= 6  # query, key, value, out, fc1, fc2
  kernels = plan.abstract.params["blocks"]
  wanted = sum(
      bytes_of(kernels[a][b]["kernel"]) for a, b in (
          ("attention", "query"), ("attention", "key"), ("attention", "value"),
          ("attention", "out"), ("mlp", "fc1"), ("mlp", "fc2"),
      )
  ) // plan.mesh.shape["tensor"]
  # Forward, and again backward; not more often.
  assert wanted <= sum(c.total_bytes for c in inside) <= 2.1 * wanted


@pytest.mark.parametrize("shape", shapes(*SHAPES))
def test_the_state_is_updated_in_place(shape):
  plan, compiled = program(shape)
  own = sum(
      np.prod(where.shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize
      for leaf, where in zip(jax.tree.leaves(plan.abstract), jax.tree.leaves(plan.state_shardings))
  )
  assert compiled.memory_analysis().alias_size_in_bytes >= own


@pytest.mark.parametrize("shape", shapes(*SHAPES))
def test_collectives_are_those_on_record(shape):
  """A change here is a change of what pods send: look at it, then write it with
  VIT_JAX_WRITE_GOLDEN=1."""
  plan, compiled = program(shape)
  found = summarize(collectives(compiled.as_text(), plan.mesh))
  golden = json.loads(GOLDEN.read_text())
  if os.environ.get("VIT_JAX_WRITE_GOLDEN"):
    golden.setdefault(jax.__version__, {})[shape] = found
    GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
  if jax.__version__ not in golden:
    pytest.skip(f"nothing is on record for jax {jax.__version__}; VIT_JAX_WRITE_GOLDEN=1 writes it")
  assert found == golden[jax.__version__][shape]


def test_the_average_lies_where_its_parameters_do():
  config = config_lib.complete(
      MODEL | {"mesh.fsdp": 4, "mesh.tensor": 2, "optimizer.ema_decay": 0.9}, origin="a test"
  )
  where = make_plan(
      resolve(config, checkpoint=None, platform="cpu"), examples=1000, num_classes=10
  ).state_shardings
  assert where.ema == where.params
  split = {axis for leaf in jax.tree.leaves(where.ema) for axis in leaf.spec if axis}
  assert split == {"fsdp", "tensor"}


@pytest.mark.parametrize("share, fsdp", [(4, 1), (1, 2), (0.5, 4), (0.01, 8)])
def test_a_mesh_that_is_not_named_is_one_that_fits(share, fsdp):
  """A device has that many times the bytes of what is trained; half of them may hold it."""
  config = resolve(
      config_lib.complete(MODEL, origin="a test"), checkpoint=None, platform="cpu"
  )
  plan = functools.partial(make_plan, config, examples=1000, num_classes=10)
  state = plan().abstract
  held = bytes_of(state) + bytes_of(state.params)
  mesh = plan(device_bytes=int(share * held)).mesh
  assert dict(mesh.shape) == {"replica": 8 // fsdp, "fsdp": fsdp, "tensor": 1}


def state_bytes_a_device(plan, axes: dict) -> int:
  """Bytes of a state's shards on a mesh of any size, by the rules alone."""
  mesh = types.SimpleNamespace(shape=axes)
  total = 0
  for leaf, placed in zip(
      jax.tree.leaves(plan.abstract), sharding.place(plan.abstract, mesh), strict=True
  ):
    parts = np.prod([axes[axis] for axis in placed.spec if axis], dtype=int)
    total += leaf.size * leaf.dtype.itemsize // parts
  return total


def test_the_largest_model_is_really_sharded_over_512_chips():
  """1280 does not divide by 512: an axis of that size would leave every kernel whole."""
  config = config_lib.load("vit_i21k:H/14", {"input.batch_size": "4096"})
  plan = make_plan(
      resolve(config, checkpoint=None, platform="tpu"), examples=14_197_122, num_classes=21_843
  )
  whole = bytes_of(plan.abstract)
  assert state_bytes_a_device(plan, {"replica": 1, "fsdp": 512, "tensor": 1}) > 0.99 * whole
  trained = whole + bytes_of(plan.abstract.params)
  chips = [types.SimpleNamespace(slice_index=0)] * 512
  fsdp = choose_fsdp(
      chips, tensor=1, state_bytes=trained, width=1280, device_bytes=16 * 10**9
  )
  assert 1 < fsdp <= 256
  own = state_bytes_a_device(plan, {"replica": 512 // fsdp, "fsdp": fsdp, "tensor": 1})
  assert whole / fsdp <= own < 1.05 * whole / fsdp

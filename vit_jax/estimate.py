"""What a training step needs, without a compiler: bytes of the state and of what the backward pass
keeps, and the collectives that its shardings cannot do without."""

import math

import jax
import numpy as np

from vit_jax.models.positions import grid
from vit_jax.parallel.collectives import Collective
from vit_jax.parallel.mesh import BATCH_AXES, data_shards, slice_count
from vit_jax.parallel.sharding import path_name
from vit_jax.plan import Plan, abstract_arguments


def state_bytes(plan: Plan) -> dict[str, int]:
  """Bytes on a device of "parameters", "optimizer", "average" and "gradients", without padding."""
  state, where = plan.abstract, plan.state_shardings
  parameters = _bytes(state.params, where.params)
  accumulates = plan.config.micro_batch not in (None, plan.config.input.batch_size)
  return {
      "parameters": parameters,
      "optimizer": _bytes(state.opt_state, where.opt_state),
      "average": _bytes(state.ema, where.ema),
      # Float32 and laid out like the parameters; with micro-batches those so far and the next.
      "gradients": (2 if accumulates else 1) * parameters,
  }


def _bytes(tree, shardings) -> int:
  leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings))
  return sum(math.prod(s.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, s in leaves)


def saved_bytes(plan: Plan) -> int:
  """Bytes on a device that automatic differentiation keeps from the forward to the backward pass.

  They are counted from the residuals of `jax.vjp` of the loss, at two and at four images, half of
  whose difference is an image's; a device holds those of its part of a micro-batch.  Of scanned
  blocks XLA keeps all of them, of unrolled ones about half (B/16 on v5e: 1.1 and 0.4 times these
  bytes are temporary); what remat computes again of one block comes on top.
  """
  image = (_residuals(plan, 4) - _residuals(plan, 2)) // 2
  images = plan.config.micro_batch or plan.config.input.batch_size
  return image * images // data_shards(plan.mesh)


def _residuals(plan: Plan, images: int) -> int:
  """Bytes of the residuals for a batch of that many images, those of fixed size included."""
  side, classes = plan.config.model.image_size, plan.model_config["num_classes"]
  batch = {
      "image": jax.ShapeDtypeStruct((images, side, side, 3), np.float32),
      "target": jax.ShapeDtypeStruct((images, classes), np.float32),
      "mask": jax.ShapeDtypeStruct((images,), np.float32),
  }
  state, _, key = abstract_arguments(plan.config, plan.abstract)

  def residuals(state, batch, key):
    loss = lambda params: plan.objective.loss(
        params, state.objective_state, batch, key, state.step, True
    )[0]
    return jax.tree.leaves(jax.vjp(loss, state.params)[1])

  kept = jax.eval_shape(residuals, state, batch, key)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in kept if hasattr(leaf.dtype, "itemsize"))


def least_collectives(plan: Plan) -> list[Collective]:
  """The collectives that the shardings ask for in a step.

  Gradients are summed over the axes of the batch: by a reduce-scatter over `fsdp` where their
  parameter is split, then by an all-reduce.  Split parameters are gathered once for the forward and
  once for the backward pass.  Over `tensor`, each block sums its tokens twice in either pass
  (Megatron-LM, arXiv 1909.08053, section 3).
  """
  mesh, config = plan.mesh, plan.config
  devices, found = mesh.shape, []
  parts = config.input.batch_size // (config.micro_batch or config.input.batch_size)

  def add(kind, dtype, size, count, axes, name):
    group = math.prod(devices[axis] for axis in axes)
    if group > 1:
      width = {"bfloat16": 2, "float32": 4}[dtype]
      short = {"bfloat16": "bf16", "float32": "f32"}[dtype]
      slices = slice_count(mesh.devices.flat) if "replica" in axes else 1
      found.append(
          Collective(kind, short, size * width, count * parts, axes, group, slices, name, "")
      )

  leaves = jax.tree_util.tree_leaves_with_path(plan.abstract.params)
  for (path, leaf), where in zip(leaves, jax.tree.leaves(plan.state_shardings.params)):
    name, split = path_name(path), "fsdp" in where.spec
    part = math.prod(where.shard_shape(leaf.shape))
    gradients = config.model.gradient_dtype
    if split and devices["fsdp"] > 1:
      add("all-gather", config.model.dtype, part * devices["fsdp"], 2, ("fsdp",), name)
      add("reduce-scatter", gradients, part * devices["fsdp"], 1, ("fsdp",), name)
    reduced = ("replica",) if split else BATCH_AXES
    axes = tuple(axis for axis in reduced if devices[axis] > 1)
    add("all-reduce", gradients, part, 1, axes, name)
  model = plan.model_config
  rows, columns = grid(model["image_size"], model["patch_size"])
  images = config.input.batch_size // parts // data_shards(mesh)
  tokens = images * rows * columns * model["width"]
  add("all-reduce", config.model.dtype, tokens, 4 * model["depth"], ("tensor",), "blocks")
  return found

"""Weights of a checkpoint as the start of a new run."""

import dataclasses

import jax
import jax.numpy as jnp

from vit_jax.errors import CheckpointError
from vit_jax.loading import Checkpoint, at_image_size
from vit_jax.parallel.mesh import everywhere
from vit_jax.parallel.sharding import path_name

# Fine-tuning removes the whole pre-training head (ViT, section 3.2); the new one starts at zero.
_NEW = ("head/", "pre_logits/", "distillation_head/")
# Parts of pre-training that a run may lack, or have while the checkpoint does not.
_OPTIONAL = ("mask_token", "pixel_decoder/", "map_head/")


def warm_start(state, checkpoint: Checkpoint, *, image_size: int, interpolation: str):
  """Replaces a new state's parameters, except the head, by a checkpoint's.

  Args:
    state: a `step.TrainState`, on devices; shardings are kept.
    image_size: of the run; position embeddings are resampled to it.
    interpolation: of `models.positions.resize_position_embedding`.

  Returns:
    The state, and a sentence on what was taken.

  Raises:
    CheckpointError: parameters are missing, left over or of another shape; all are named.
  """
  resized = at_image_size(checkpoint, image_size, interpolation=interpolation)
  theirs = {path_name(p): a for p, a in jax.tree_util.tree_leaves_with_path(resized.params)}
  heads = {name.partition("/")[0] for name in theirs if name.startswith(_NEW)} - {"head"}
  theirs = {name: a for name, a in theirs.items() if not name.startswith(_NEW)}
  problems, new = [], []

  def take(path, leaf):
    name = path_name(path)
    if name.startswith(_NEW):
      new.append(name)
      return leaf
    array = theirs.pop(name, None)
    if array is None and name.startswith(_OPTIONAL):
      new.append(name)
      return leaf
    if array is None or array.shape != leaf.shape:
      found = "missing" if array is None else f"of shape {array.shape}"
      problems.append(f"{name} {leaf.shape} is {found}")
      return leaf
    return everywhere(array.astype(leaf.dtype), leaf.sharding)

  params = jax.tree_util.tree_map_with_path(take, state.params)
  left = sorted(heads | {n.partition("/")[0] for n in theirs if n.startswith(_OPTIONAL)})
  problems += [
      f"{name} is not part of the model" for name in theirs if not name.startswith(_OPTIONAL)
  ]
  if problems:
    raise CheckpointError("the checkpoint does not fit the model: " + "; ".join(problems))
  before = checkpoint.model_config["image_size"]
  resampled = ""
  if before != image_size and "position_embedding" in checkpoint.params:  # fixed ones need none
    resampled = f", positions resampled ({interpolation})"
  said = (
      f"init: weights from {before} px to {image_size} px{resampled}; new: {', '.join(new)}"
      + (f"; left out: {', '.join(left)}" if left else "")
  )
  # A copy: the step donates both.
  ema = jax.tree.map(jnp.copy, params) if state.ema else state.ema
  return dataclasses.replace(state, params=params, ema=ema), said

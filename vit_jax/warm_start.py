"""Weights of a checkpoint as the start of a new run."""

import dataclasses

import jax
import jax.numpy as jnp

from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.loading import Checkpoint, at_image_size, check_classes
from vit_jax.parallel.mesh import everywhere
from vit_jax.parallel.sharding import path_name

# Fine-tuning removes the whole pre-training head (ViT, section 3.2); the new one starts at zero.
_HEAD = ("head/", "pre_logits/", "distillation_head/")
# Parts of pre-training that a run may lack, or have while the checkpoint does not.
_OPTIONAL = ("mask_token", "pixel_decoder/", "map_head/")


def warm_start(state, checkpoint: Checkpoint, *, model, keep_head: bool = False):
  """Replaces a new state's parameters by a checkpoint's, those of the head only if it is kept.

  Args:
    state: a `step.TrainState`, on devices; shardings are kept.
    model: `config.model`, resolved; learned positions are resampled to its image_size by its
      position_interpolation.
    keep_head: whether the checkpoint's head is taken, too; `kept_head` says whether it fits.

  Returns:
    The state, and a sentence on what was taken.

  Raises:
    CheckpointError: parameters are missing, left over or of another shape; all are named.
  """
  removed = () if keep_head else _HEAD
  resized = at_image_size(
      checkpoint, model.image_size, interpolation=model.position_interpolation
  )
  theirs = {path_name(p): a for p, a in jax.tree_util.tree_leaves_with_path(resized.params)}
  heads = {name.partition("/")[0] for name in theirs if name.startswith(removed)} - {"head"}
  theirs = {name: a for name, a in theirs.items() if not name.startswith(removed)}
  problems, new = [], []

  def take(path, leaf):
    name = path_name(path)
    if name.startswith(removed):
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
  said = "; ".join([
      f"init: {_sizes(checkpoint, model)}",
      *([f"new: {', '.join(new)}"] if new else []),
      *([f"left out: {', '.join(left)}"] if left else []),
  ])
  # A copy: the step donates both.
  ema = jax.tree.map(jnp.copy, params) if state.ema else state.ema
  return dataclasses.replace(state, params=params, ema=ema), said


def _sizes(checkpoint: Checkpoint, model) -> str:
  """What is said of the image sizes, and of the positions where these differ."""
  before = checkpoint.model_config["image_size"]
  said = f"weights from {before} px to {model.image_size} px"
  if before == model.image_size:
    return said
  if "position_embedding" in checkpoint.params:
    return f"{said}, positions resampled ({model.position_interpolation})"
  counted = model.position_image_size
  anew = counted in (None, model.image_size)
  return f"{said}, fixed positions {'counted anew' if anew else f'stretched from {counted} px'}"


def needs_weights(config) -> str | None:
  """What in a config asks for weights to start from where it names none; None where nothing does.
  """
  if config.init.checkpoint or config.fork.checkpoint:
    return None
  if config.init.required:
    return "config.init.required"
  return "config.init.head is 'keep'" if config.init.head == "keep" else None


def kept_head(checkpoint: Checkpoint, dataset, *, by_order: bool) -> str:
  """Holds that a checkpoint's head can be kept for the data; what is to be said of it.

  Args:
    by_order: whether as many classes will do, under other names, but not these in another order.

  Raises:
    ConfigError: there is no head, or it is for other classes.
  """
  otherwise = "leave config.init.head at 'new'"
  if not checkpoint.model_config["num_classes"]:
    raise ConfigError(f"config.init.head is 'keep', but {checkpoint.ref} has no head: {otherwise}")
  odd = check_classes(checkpoint, dataset, by_order=by_order, otherwise=otherwise)
  said = f"head of {len(dataset.classes)} classes kept"
  if odd is None:
    return said
  if sorted(checkpoint.labels) == sorted(dataset.classes):
    raise ConfigError(
        f"config.init.head is 'keep', but {checkpoint.ref} has the classes in another order, "
        f"{odd[0]!r} where the data has {odd[1]!r}: {otherwise}"
    )
  return f"{said} by their order, though {odd[0]!r} there is {odd[1]!r} here"

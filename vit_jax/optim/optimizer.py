"""The optimizer: clip, scale, decay, step."""

import re

import jax
import optax

OPTIMIZERS = ("adamw", "sgd")


def make_optimizer(
    name: str, *, schedule, b1: float, b2: float, momentum: float, weight_decay: float,
    weight_decay_mask: str, clip_global_norm: float | None,
) -> optax.GradientTransformation:
  """Chains gradient clipping, Adam or momentum, decoupled weight decay and the learning rate.

  Args:
    name: "adamw" (arXiv 1711.05101) or "sgd" with heavy-ball momentum.
    schedule: learning rate as a function of the step.
    b1, b2: decay of Adam's moments; not used by "sgd".
    momentum: of "sgd"; not used by "adamw".
    weight_decay: multiplied by the learning rate, as in PyTorch's AdamW.
    weight_decay_mask: regular expression; parameters whose path it finds decay.
    clip_global_norm: largest l2 norm of the whole gradient; None for no clipping.
  """
  if name == "adamw":
    scale = optax.scale_by_adam(b1=b1, b2=b2)
  elif name == "sgd":
    scale = optax.trace(decay=momentum)
  else:
    raise ValueError(f"unknown optimizer {name!r}; choose one of {OPTIMIZERS}")
  chain = [optax.clip_by_global_norm(clip_global_norm)] if clip_global_norm else []
  chain.append(scale)
  if weight_decay:
    mask = lambda params: decay_mask(params, weight_decay_mask)
    chain.append(optax.add_decayed_weights(weight_decay, mask))
  return optax.chain(*chain, optax.scale_by_learning_rate(schedule))


def decay_mask(params, pattern: str):
  """Returns a tree of bools: whether `re.search(pattern, path)` finds a parameter's path."""

  def matches(path, _):
    return bool(re.search(pattern, jax.tree_util.keystr(path, simple=True, separator="/")))

  return jax.tree_util.tree_map_with_path(matches, params)

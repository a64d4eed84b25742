"""Which parameters decay, learn slower or not at all: regular expressions over their paths.

A path is the names down to a leaf joined by slashes, as in `blocks/mlp/fc1/kernel`; a rule takes
those that `re.search` finds its expression in.  The blocks being stacked, no path carries a block's
number: a rule takes a parameter in all blocks, and only layer-wise decay tells them apart.
"""

import difflib
import math
import re
from typing import Sequence

import jax
import numpy as np

from vit_jax.errors import ConfigError

DEFAULT_DECAY_MASK = "kernel$"
# What turns an image into the first block's input is layer 0 (`layer_multipliers`).
_EMBEDDINGS = (
    "patch_embedding", "class_token", "distillation_token", "mask_token", "register_tokens",
    "position_embedding",
)


def path_of(path) -> str:
  """Joins a jax key path with slashes: `blocks/mlp/fc1/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def decay_mask(params, pattern: str):
  """Returns a tree of bools: whether `re.search(pattern, path)` finds a parameter's path."""
  return _map(lambda path, _: bool(re.search(pattern, path)), params)


def frozen_mask(params, pattern: str | None):
  """Returns a tree of bools: whether `pattern` finds a path; None finds nothing."""
  return _map(lambda path, _: pattern is not None and bool(re.search(pattern, path)), params)


def multipliers(
    params, *, learning_rate_rules: Sequence[tuple[str, float]] = (),
    layer_decay: float | None = None, depth: int | None = None,
):
  """What each parameter's learning rate is multiplied with.

  Args:
    params: tree of arrays or shapes, those under `blocks` stacked along a leading axis.
    learning_rate_rules: (regex, multiplier); the first that finds a path counts, else 1.
    layer_decay: d of layer-wise decay, see `layer_multipliers`; None for none.
    depth: number of blocks; needed by `layer_decay`.

  Returns:
    A tree like `params` of floats, or float32 `[depth, 1, ...]` (as many axes as the parameter)
    where the blocks differ.
  """

  def multiplier(path, leaf):
    by_rule = next((m for pattern, m in learning_rate_rules if re.search(pattern, path)), 1.0)
    if layer_decay is None:
      return float(by_rule)
    by_layer = layer_multipliers(path, layer_decay=layer_decay, depth=depth)
    if not isinstance(by_layer, np.ndarray):
      return by_rule * by_layer
    if leaf.shape[0] != depth:
      raise ValueError(f"{path} has {leaf.shape[0]} blocks, not {depth}")
    return (by_rule * by_layer).astype(np.float32).reshape(depth, *[1] * (leaf.ndim - 1))

  return _map(multiplier, params)


def layer_multipliers(path: str, *, layer_decay: float, depth: int):
  """d^(depth + 1 - layer): a float, or float64 `[depth]` for a path of the stacked blocks.

  Embeddings and tokens are layer 0, block i is layer i + 1, everything else (final norm, pooling,
  heads) is layer depth + 1 and learns at the full rate.  As in BEiT's `optim_factory.py`
  (arXiv 2106.08254) and MAE's `util/lr_decay.py` (arXiv 2111.06377); timm lets the final norm share
  the last block's.
  """
  top = path.partition("/")[0]
  if top == "blocks":
    return layer_decay ** (depth - np.arange(depth, dtype=np.float64))
  return float(layer_decay ** (depth + 1)) if top in _EMBEDDINGS else 1.0


def check_rules(
    params, *, weight_decay_mask: str, learning_rate_rules=(), freeze: str | None = None
) -> None:
  """Holds that every rule takes some parameter.

  Raises:
    ConfigError: an expression takes none (the default `weight_decay_mask` may), `freeze` takes all,
      or a multiplier is negative or not finite; the text names the key, the expression and the
      nearest paths.
  """
  paths = _paths(params)
  if weight_decay_mask != DEFAULT_DECAY_MASK:
    _take("weight_decay_mask", weight_decay_mask, paths, paths)
  if freeze is not None and len(_take("freeze", freeze, paths, paths)) == len(paths):
    raise ConfigError(
        f"config.optimizer.freeze {freeze!r} finds every parameter, so that nothing would be "
        "trained: name fewer"
    )
  left = paths
  for pattern, multiplier in learning_rate_rules:
    if not (math.isfinite(multiplier) and multiplier >= 0):
      raise ConfigError(
          f"config.optimizer.learning_rate_rules multiplies the rate of {pattern!r} by "
          f"{multiplier}; it must be a finite number, at least 0"
      )
    taken = _take("learning_rate_rules", pattern, left, paths)
    left = [path for path in left if path not in taken]


def by_path(
    params, *, weight_decay_mask: str, learning_rate_rules=(), layer_decay: float | None = None,
    freeze: str | None = None, depth: int | None = None,
) -> dict[str, dict]:
  """What the rules make of every parameter, by path.

  Returns:
    "decays", "frozen", and "rates", the multipliers of its learning rate in the first and in the
    last block, which are the same unless there is layer-wise decay.

  Raises:
    ConfigError: see `check_rules`.
  """
  check_rules(
      params, weight_decay_mask=weight_decay_mask, learning_rate_rules=learning_rate_rules,
      freeze=freeze,
  )
  decays = jax.tree.leaves(decay_mask(params, weight_decay_mask))
  frozen = jax.tree.leaves(frozen_mask(params, freeze))
  rates = jax.tree.leaves(
      multipliers(
          params, learning_rate_rules=learning_rate_rules, layer_decay=layer_decay, depth=depth
      )
  )
  return {
      path: {
          "decays": decay and not fixed, "frozen": fixed,
          "rates": [0.0, 0.0] if fixed else np.ravel(rate)[[0, -1]].tolist(),
      }
      for path, decay, fixed, rate in zip(_paths(params), decays, frozen, rates)
  }


def describe(params, **told) -> list[str]:
  """A table of `by_path`: a heading, then a line each.

  Columns: path, shape, whether it decays, the multiplier of its learning rate (that of the first
  and of the last block where they differ), `frozen`.
  """
  rows = [("parameter", "shape", "decays", "rate", "")]
  for (path, rule), leaf in zip(by_path(params, **told).items(), jax.tree.leaves(params)):
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    rate = "-" if rule["frozen"] else "..".join(
        dict.fromkeys(f"{end:.3g}" for end in rule["rates"])
    )
    note = "frozen" if rule["frozen"] else ""
    rows.append((path, shape, "yes" if rule["decays"] else "no", rate, note))
  widths = [max(map(len, column)) for column in zip(*rows)]
  return [
      "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
  ]


def _map(function, params):
  """Maps `function(path, leaf)` over the leaves."""
  return jax.tree_util.tree_map_with_path(lambda p, leaf: function(path_of(p), leaf), params)


def _paths(params) -> list[str]:
  return [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _take(key: str, pattern: str, left: list[str], paths: list[str]) -> list[str]:
  """Returns those of the paths `left` that the pattern finds; none is an error."""
  taken = [path for path in left if re.search(pattern, path)]
  if taken:
    return taken
  plain = re.sub(r"[^\w/]", "", pattern)
  near = ", ".join(difflib.get_close_matches(plain, paths, n=3, cutoff=0.0))
  if any(re.search(pattern, path) for path in paths):
    raise ConfigError(
        f"config.optimizer.{key}: the rules before {pattern!r} take all that it finds; the first "
        "that finds a parameter counts, so move it up or drop it"
    )
  stacked = " (blocks are stacked: no path has their number)" if "blocks" in pattern else ""
  raise ConfigError(
      f"config.optimizer.{key}: {pattern!r} finds no parameter{stacked}; near it are {near}"
  )

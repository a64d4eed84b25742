"""A head of many classes measured on some of them, as ImageNet-21k's on ImageNet-1k."""

from typing import Callable

import jax.numpy as jnp
import numpy as np

from vit_jax.errors import ConfigError

# Far below any logit, and finite in float16 too.
_NEVER = -1e4


def restricted(logits: Callable, indices) -> Callable:
  """Returns `logits` of the chosen classes alone, for `Classification` and `PredictionCollector`.

  The softmax is then over these, as if the head had no others.

  Args:
    logits: function of (params, prepared batch) to float `[B, classes]`.
    indices: int `[C]`, for each class of the data its place in the head; -1 where the head has
      none, and then it is never answered.

  Returns:
    Function of (params, prepared batch) to float `[B, C]`; its tracing raises ConfigError where
    the head has less classes than the indices say.

  Raises:
    ConfigError: indices that are not whole numbers, are below -1, or name a class twice.
  """
  indices = np.asarray(indices)
  if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer) or (indices < -1).any():
    raise ConfigError("a class map is a list of indices into the head, -1 for what is not there")
  there = indices[indices >= 0]
  if len(np.unique(there)) < len(there):
    raise ConfigError(f"the class map names {len(there) - len(np.unique(there))} indices twice")

  def chosen(params, batch):
    scores = logits(params, batch)
    if indices.max(initial=-1) >= scores.shape[-1]:
      raise ConfigError(
          f"the class map names index {indices.max()}, the head has {scores.shape[-1]} classes"
      )
    return jnp.where(indices >= 0, scores[:, np.maximum(indices, 0)], _NEVER)

  return chosen

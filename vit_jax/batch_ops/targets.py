"""Labels to target probabilities."""

import jax
import jax.numpy as jnp


def one_hot(label, num_classes: int, *, smoothing: float = 0.0):
  """int `[B]` to float32 `[B, num_classes]`, rows of which sum to 1.

  Args:
    smoothing: share that is spread evenly over all classes (arXiv 1512.00567, section 7).
  """
  target = jax.nn.one_hot(label, num_classes)
  return target * (1 - smoothing) + smoothing / num_classes if smoothing else target


def multi_hot(labels, num_classes: int, *, smoothing: float = 0.0):
  """int `[B, K]`, padded with -1, to float32 `[B, num_classes]` of ones and zeros.

  Args:
    smoothing: as `one_hot`, of each of the ones.
  """
  # -1 is outside of all classes: its row is zeros.  Of equal labels one counts.
  target = jnp.max(jax.nn.one_hot(labels, num_classes), axis=1)
  if not smoothing:
    return target
  spread = jnp.sum(target, axis=1, keepdims=True) * smoothing / num_classes
  return target * (1 - smoothing) + spread

"""Mixup (arXiv 1710.09412): shares of an example and its neighbour in the global batch."""

import jax
import jax.numpy as jnp


def coefficients(key, alpha: float, count: int = 1):
  """float32 `[count]`, drawn from Beta(alpha, alpha) and folded to >= 1/2, so that each example
  keeps the larger share of its own image (big_vision, `utils.get_mixup`)."""
  share = jax.random.beta(key, alpha, alpha, None if count == 1 else (count,))
  return jnp.atleast_1d(jnp.maximum(share, 1.0 - share))


def swap_neighbours(x):
  """Exchanges rows 2i and 2i + 1 of `[B, ...]`, B even."""
  return x.reshape((-1, 2) + x.shape[1:])[:, ::-1].reshape(x.shape)

"""Dropout and stochastic depth with explicit keys.

Linen's own dropout draws from module-path rngs, whose bits differ between scanned and unrolled
blocks, and refuses a traced rate; these draw from the key they are given.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


def dropout(x, rate: float, key):
  """Zeroes elements with probability `rate` and scales the rest by 1 / (1 - rate).

  Args:
    x: any shape.
    rate: in [0, 1); at 0 the input is returned and `key` is not used.
    key: a jax PRNG key.

  Source: arXiv 1207.0580.
  """
  if rate == 0.0:
    return x
  # Else XLA draws the mask again in every fusion that reads it, instead of writing it down once.
  keep = jax.lax.optimization_barrier(jax.random.bernoulli(key, 1.0 - rate, x.shape))
  keep = checkpoint_name(keep, "dropout_mask")
  return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def stochastic_depth(branch, rate, key):
  """Drops a residual branch for whole examples and scales the rest by 1 / (1 - rate).

  Args:
    branch: `[B, ...]`, what is added to the residual stream.
    rate: probability in [0, 1), a float or a traced scalar.
    key: a jax PRNG key.

  Source: Deep Networks with Stochastic Depth (arXiv 1603.09382), scaled at training time.
  """
  shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
  keep = jax.random.uniform(key, shape) >= rate
  return jnp.where(keep, branch / (1.0 - rate), 0).astype(branch.dtype)

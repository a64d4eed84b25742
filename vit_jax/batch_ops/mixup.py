"""Mixup (arXiv 1710.09412) between neighbours of the global batch."""

import jax
import jax.numpy as jnp


def mixup(images, targets, mask, *, alpha: float, key):
  """Mixes examples 2i and 2i + 1 with one coefficient for the batch.

  Neighbours lie on one device whatever the mesh, so mixing needs no communication and does not
  depend on the mesh.  A pair with a masked member is left as it is.

  Args:
    images: float `[B, H, W, 3]`, normalised, B even.
    targets: float `[B, classes]`.
    mask: float `[B]`, 0 for examples that do not count.
    alpha: the coefficient is drawn from Beta(alpha, alpha) and folded to >= 1/2, so that each
      example keeps the larger share of its own image (big_vision, `utils.get_mixup`).
    key: PRNG key, the same on every device.

  Returns:
    images and targets of the same shapes.
  """
  share = jax.random.beta(key, alpha, alpha)
  share = jnp.maximum(share, 1.0 - share)
  whole = jnp.repeat(jnp.min(mask.reshape(-1, 2), axis=1), 2)
  share = jnp.where(whole > 0, share, 1.0)

  def mix(x):
    weight = share.reshape((-1,) + (1,) * (x.ndim - 1))
    return x * weight + swap_neighbours(x) * (1.0 - weight)

  return mix(images), mix(targets)


def swap_neighbours(x):
  """Exchanges rows 2i and 2i + 1 of `[B, ...]`, B even."""
  return x.reshape((-1, 2) + x.shape[1:])[:, ::-1].reshape(x.shape)

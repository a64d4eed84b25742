"""Pixels to the range a model was trained with."""

import jax.numpy as jnp


def normalize(images, mean, std):
  """uint8 `[B, H, W, 3]` to float32, `(pixel / 255 - mean) / std`.

  Args:
    mean, std: three floats each, of pixels in 0..1.
  """
  mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
  return (images.astype(jnp.float32) * (1 / 255) - mean) / std

"""Pixels from tokens, and the loss of masked image modelling on them."""

import jax.numpy as jnp


def pixel_shuffle(x, grid: tuple[int, int], patch_size: int):
  """Channels of patches to pixels.

  From `[B, rows * columns, 3 * P * P]` to `[B, rows * P, columns * P, 3]`.

  Channel c * P * P + i * P + j is colour c of row i and column j (torch.nn.PixelShuffle, which
  SimMIM, arXiv 2111.09886, and Hugging Face use).
  """
  batch, (rows, columns) = x.shape[0], grid
  x = x.reshape(batch, rows, columns, 3, patch_size, patch_size)
  return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, rows * patch_size, columns * patch_size, 3)


def masked_l1(images, reconstruction, patch_mask, patch_size: int):
  """Mean absolute error over the pixels of masked patches, over colours too.

  Args:
    images, reconstruction: `[B, H, W, 3]`.
    patch_mask: bool `[B, (H/P) * (W/P)]`, True where the patch was masked.

  Returns:
    A float32 scalar, sum(|x - y| mask) / (sum(mask) + 1e-5) / 3 with the mask in pixels (SimMIM,
    arXiv 2111.09886, equation 1; transformers `ViTForMaskedImageModeling`).
  """
  batch, height, width, colours = images.shape
  mask = patch_mask.reshape(batch, height // patch_size, width // patch_size, 1)
  mask = jnp.repeat(jnp.repeat(mask, patch_size, 1), patch_size, 2).astype(jnp.float32)
  error = jnp.abs(images - reconstruction).astype(jnp.float32)
  return jnp.sum(error * mask) / (jnp.sum(mask) + 1e-5) / colours

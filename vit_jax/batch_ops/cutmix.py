"""CutMix (arXiv 1905.04899): boxes to exchange between neighbours of the global batch."""

import jax
import jax.numpy as jnp


def own_pixels(key, shape: tuple[int, int], *, alpha: float, count: int = 1):
  """Draws boxes, and says which pixels an example keeps.

  The box has 1 - lambda of the area, lambda from Beta(alpha, alpha), the image's aspect, and its
  centre on a pixel of the image; what lies outside is cut off (Algorithm 1 of the paper, sides
  rounded as timm's `rand_bbox`).

  Args:
    shape: H, W of the images.
    count: of boxes, N.

  Returns:
    bool `[N, H, W]`, False within the box, and float32 `[N]`, the exact share of True.
  """
  height, width = shape
  size_key, row_key, column_key = jax.random.split(key, 3)
  side = jnp.sqrt(1.0 - jax.random.beta(size_key, alpha, alpha, (count,)))
  rows = _outside(row_key, height, side)
  columns = _outside(column_key, width, side)
  own = rows[:, :, None] | columns[:, None, :]
  cut = jnp.sum(~rows, axis=1) * jnp.sum(~columns, axis=1)
  return own, 1.0 - cut / (height * width)


def _outside(key, length: int, share):
  """Along one side: bool `[N, length]`, False on a stretch of `share` `[N]` of the length."""
  stretch = (share * length).astype(jnp.int32)
  centre = jax.random.randint(key, share.shape, 0, length)
  place = jnp.arange(length)[None]
  start, end = centre - stretch // 2, centre + (stretch + 1) // 2
  return (place < start[:, None]) | (place >= end[:, None])

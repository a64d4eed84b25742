"""Position embeddings of one image size, resampled to another."""

import numpy as np


def resize_position_embedding(table, *, patches_per_side: int, interpolation: str):
  """Resamples a learned table of positions in 2-D.

  Args:
    table: float `[1, n * n (+ 1), D]`; a first row beyond a square number is the class token's and
      stays as it is.
    patches_per_side: side of the new grid.
    interpolation: "bicubic" as PyTorch's and Hugging Face's `interpolate_pos_encoding` (a = -0.75,
      pixel centres, no antialias), or "bilinear" with aligned corners, as `scipy.ndimage.zoom`
      in google-research/vision_transformer.

  Returns:
    float32 `[1, patches_per_side ** 2 (+ 1), D]`.

  Raises:
    ValueError: the table is not a square grid, or no such interpolation.
  """
  if interpolation not in INTERPOLATIONS:
    raise ValueError(f"unknown interpolation {interpolation!r}; choose one of {INTERPOLATIONS}")
  table = np.asarray(table, np.float32)
  side = int(np.sqrt(table.shape[1]))
  prefix = table.shape[1] - side * side
  if prefix not in (0, 1):
    raise ValueError(f"{table.shape[1]} positions are neither n*n nor n*n + 1")
  if side == patches_per_side:
    return table
  weights = _WEIGHTS[interpolation](side, patches_per_side)
  grid = table[:, prefix:].reshape(side, side, -1)
  grid = np.einsum("ai,bj,ijd->abd", weights, weights, grid.astype(np.float64), optimize=True)
  grid = grid.reshape(1, patches_per_side**2, -1).astype(np.float32)
  return np.concatenate([table[:, :prefix], grid], axis=1)


def _aligned_bilinear(old: int, new: int):
  """Weights `[new, old]` of linear interpolation with the corner points kept."""
  where = np.arange(new) * ((old - 1) / max(new - 1, 1))
  return np.maximum(0.0, 1.0 - np.abs(where[:, None] - np.arange(old)[None]))


def _torch_bicubic(old: int, new: int):
  """Weights `[new, old]` of cubic convolution (Keys 1981, a = -0.75), the border repeated."""
  a = -0.75
  where = (np.arange(new) + 0.5) * (old / new) - 0.5
  first = np.floor(where).astype(int)
  weights = np.zeros((new, old))
  for tap in range(-1, 3):
    distance = np.abs(where - (first + tap))
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    column = np.clip(first + tap, 0, old - 1)
    np.add.at(weights, (np.arange(new), column), np.where(distance <= 1, near, far))
  return weights


_WEIGHTS = {"bilinear": _aligned_bilinear, "bicubic": _torch_bicubic}
INTERPOLATIONS = tuple(_WEIGHTS)

"""Position embeddings: the fixed ones, and a learned table resampled to another grid of patches.

A grid is (rows, columns) of patches; tables are row-major.
"""

from typing import Mapping

import jax.numpy as jnp
import numpy as np

# Of `position_image_size`: fixed positions count the patches of any image anew, as big_vision's do.
ANY_SIZE = "any"


def grid(image_size, patch_size: int) -> tuple[int, int]:
  """Returns (rows, columns) of patches.

  Args:
    image_size: the side in pixels, or (height, width).

  Raises:
    ValueError: not positive, or not a multiple of the patch size.
  """
  sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
  if len(sides) != 2 or any(side < 1 or side % patch_size for side in sides):
    raise ValueError(f"image size {image_size} is not a multiple of the patch size {patch_size}")
  return sides[0] // patch_size, sides[1] // patch_size


def sincos2d(kind: str, rows: int, columns: int, width: int, *, counted=None):
  """Fixed sine and cosine embeddings of the patches' coordinates.

  Args:
    kind: "sincos2d" as big_vision (`models/vit.py`, posemb_sincos_2d): frequencies
      10000^-(k / (D/4 - 1)); or "sincos2d_mae" as MAE (`util/pos_embed.py`): 10000^-(k / (D/4)).
      Both lay out sin x, cos x, sin y, cos y, a quarter of the width each.
    counted: the grid whose patches the coordinates count, stretched over this one so that pixels
      keep their place: what resampling is to learned positions.  None: this one.

  Returns:
    float32 `[rows * columns, width]`.

  Raises:
    ValueError: the width is not a multiple of 4, or no such kind.
  """
  if kind not in ("sincos2d", "sincos2d_mae"):
    raise ValueError(f"unknown fixed position embedding {kind!r}")
  if width % 4:
    raise ValueError(f"{kind} needs a width that is a multiple of 4, not {width}")
  steps = width // 4 - 1 if kind == "sincos2d" else width // 4
  frequencies = 10000.0 ** (-np.arange(width // 4) / max(steps, 1))
  counts = counted or (rows, columns)
  sides = [
      (np.arange(new) + 0.5) * (old / new) - 0.5 for old, new in zip(counts, (rows, columns))
  ]
  y, x = (axis.reshape(-1, 1) * frequencies for axis in np.meshgrid(*sides, indexing="ij"))
  return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1).astype(np.float32)


def fixed_positions(model: Mapping):
  """The fixed positions of a description (attributes of `models.vit.ViT`), at its image size.

  Returns:
    float32 `[rows * columns, width]`.

  Raises:
    ValueError: see `grid` and `sincos2d`.
  """
  size, patch_size = model["image_size"], model["patch_size"]
  counted = counted_grid(model.get("position_image_size"), size, patch_size)
  rows, columns = grid(size, patch_size)
  return sincos2d(model["position_embedding"], rows, columns, model["width"], counted=counted)


def counted_grid(position_image_size, image_size, patch_size: int) -> tuple[int, int] | None:
  """The grid whose patches fixed positions count; None where they count any image's own.

  Args:
    position_image_size: as of `models.vit.ViT`.
    image_size: that of the model, which counts where the other is None.

  Raises:
    ValueError: see `grid`.
  """
  if position_image_size == ANY_SIZE:
    return None
  return grid(position_image_size or image_size, patch_size)


def counted_image_size(model: Mapping, image_size):
  """The `position_image_size` with which a description's fixed positions go on counting the same
  patches at another image size; None where they are learned, or count that size's own.

  Args:
    image_size: the side in pixels, or (height, width).

  Raises:
    ValueError: see `grid`.
  """
  theirs = model["position_image_size"]
  counted = counted_grid(theirs, model["image_size"], model["patch_size"])
  if counted is None:
    return ANY_SIZE
  if model["position_embedding"] == "learned" or counted == grid(image_size, model["patch_size"]):
    return None
  return theirs or model["image_size"]


def learned_positions(model: Mapping, params: Mapping) -> tuple[dict, dict]:
  """The same description and parameters with the fixed positions as a learned table, float32
  `[1, rows * columns, D]`, for patches alone.

  Raises:
    ValueError: see `grid` and `sincos2d`.
  """
  learned = {
      "position_embedding": "learned", "class_token_position": False, "position_image_size": None,
  }
  return {**model, **learned}, {**params, "position_embedding": fixed_positions(model)[None]}


def resize_position_embedding(table, *, old_grid, new_grid, interpolation: str):
  """Resamples a learned table of positions in 2-D.

  Args:
    table: float `[1, T + rows * columns of old_grid, D]`, NumPy or (when traced) jax; the first T
      rows belong to class and distillation token and stay as they are.
    old_grid, new_grid: (rows, columns).
    interpolation:
      "bicubic", Hugging Face's `interpolate_pos_encoding`: PyTorch's a = -0.75, pixel centres;
      "bilinear", google-research/vision_transformer: `scipy.ndimage.zoom`, corners aligned;
      "bicubic_antialias", timm's `resample_abs_pos_embed`: PyTorch's antialias=True, a = -0.5;
      "bilinear_antialias", SigLIP 2's.

  Returns:
    float32 `[1, T + rows * columns of new_grid, D]`.

  Raises:
    ValueError: the table is not of the old grid, or no such interpolation.
  """
  if interpolation not in INTERPOLATIONS:
    raise ValueError(f"unknown interpolation {interpolation!r}; choose one of {INTERPOLATIONS}")
  old_grid, new_grid = tuple(old_grid), tuple(new_grid)
  prefix = table.shape[1] - old_grid[0] * old_grid[1]
  if prefix not in (0, 1, 2):
    raise ValueError(f"{table.shape[1]} positions are not those of {old_grid} patches")
  if old_grid == new_grid:
    return table
  vertical, horizontal = (
      _WEIGHTS[interpolation](old, new) for old, new in zip(old_grid, new_grid)
  )
  patches = table[:, prefix:].reshape(*old_grid, -1)
  if isinstance(table, np.ndarray):
    patches = np.einsum("ai,bj,ijd->abd", vertical, horizontal, patches, optimize=True)
    new = patches.astype(np.float32)
  else:
    vertical, horizontal = (jnp.asarray(w, jnp.float32) for w in (vertical, horizontal))
    new = jnp.einsum("ai,bj,ijd->abd", vertical, horizontal, patches, precision="highest")
  join = np.concatenate if isinstance(table, np.ndarray) else jnp.concatenate
  return join([table[:, :prefix], new.reshape(1, -1, table.shape[-1])], axis=1)


def _aligned_bilinear(old: int, new: int):
  """Weights `[new, old]` of linear interpolation with the corner points kept."""
  where = np.arange(new) * ((old - 1) / max(new - 1, 1))
  return np.maximum(0.0, 1.0 - np.abs(where[:, None] - np.arange(old)[None]))


def _cubic(distance, a: float):
  """The kernel of cubic convolution (Keys 1981)."""
  near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
  far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
  return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _torch_bicubic(old: int, new: int):
  """Weights `[new, old]` of cubic convolution with a = -0.75, the border repeated."""
  where = (np.arange(new) + 0.5) * (old / new) - 0.5
  first = np.floor(where).astype(int)
  weights = np.zeros((new, old))
  for tap in range(-1, 3):
    distance = np.abs(where - (first + tap))
    column = np.clip(first + tap, 0, old - 1)
    np.add.at(weights, (np.arange(new), column), _cubic(distance, -0.75))
  return weights


def _antialiased(kernel):
  """Weights `[new, old]` of a kernel widened when shrinking, normalised inside of the border."""

  def weights(old: int, new: int):
    scale = old / new
    centre = (np.arange(new)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(old)[None] + 0.5 - centre) / max(scale, 1.0)
    found = kernel(distance)
    return found / found.sum(axis=1, keepdims=True)

  return weights


_WEIGHTS = {
    "bicubic": _torch_bicubic,
    "bilinear": _aligned_bilinear,
    "bicubic_antialias": _antialiased(lambda distance: _cubic(distance, -0.5)),
    "bilinear_antialias": _antialiased(lambda distance: np.maximum(0.0, 1.0 - distance)),
}
INTERPOLATIONS = tuple(_WEIGHTS)

"""Colours of an image: what RandAugment, 3-Augment and colour jitter are made of.

Every function takes uint8 `[H, W, 3]` and returns a new array of the same shape; pixels equal those
of Pillow's `ImageOps`, `ImageEnhance` and `ImageFilter`, on which the published recipes rest.
"""

import cv2
import numpy as np
from PIL import Image, ImageFilter

_LEVELS = np.arange(256)
# ITU-R 601 in 16 bits, as Pillow's conversion to "L"; sums stay below 2^24, exact in float32.
_LUMA = np.array([19595, 38470, 7471], np.float32)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def invert(image: np.ndarray) -> np.ndarray:
  """The negative."""
  return 255 - image


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
  """The negative of what is at least `threshold`; above 255 nothing is."""
  return _mapped(image, np.where(_LEVELS < threshold, _LEVELS, 255 - _LEVELS))


def solarize_add(image: np.ndarray, addition: int, threshold: int = 128) -> np.ndarray:
  """Adds to what is below `threshold`, at most up to 255."""
  return _mapped(image, np.where(_LEVELS < threshold, _LEVELS + addition, _LEVELS))


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
  """Keeps the upper `bits` of each channel: 0 gives black, 8 and more the image itself."""
  return image & np.uint8(0xFF << 8 - max(0, min(8, bits)) & 0xFF)


def auto_contrast(image: np.ndarray) -> np.ndarray:
  """Stretches each channel to 0..255."""
  tables = []
  for low, high in zip(image.min(axis=(0, 1)).tolist(), image.max(axis=(0, 1)).tolist()):
    scale = 255 / (high - low) if high > low else 1.0
    tables.append(_LEVELS * scale - low * scale if high > low else _LEVELS)
  return _mapped(image, np.stack(tables, axis=-1))


def equalize(image: np.ndarray) -> np.ndarray:
  """Makes the histogram of each channel as flat as a table of levels can."""
  tables = []
  for channel in range(3):
    counts = np.bincount(image[..., channel].ravel(), minlength=256)
    # The brightest level present does not count: it is mapped to 255 in any case.
    step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
    below = np.cumsum(counts) - counts
    tables.append((below + step // 2) // step if step else _LEVELS)
  return _mapped(image, np.stack(tables, axis=-1))


def grayscale(image: np.ndarray) -> np.ndarray:
  """Luma in all three channels."""
  return np.repeat(_luma(image)[..., None], 3, axis=-1)


def color(image: np.ndarray, factor: float) -> np.ndarray:
  """Saturation: 0 gives gray, 1 the image, more than 1 stronger colours."""
  return _blended(_luma(image)[..., None], image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """0 gives the mean luma everywhere, 1 the image, more than 1 more contrast."""
  return toward(image, int(_luma(image).mean() + 0.5), factor)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """0 gives black, 1 the image, more than 1 a brighter one."""
  return toward(image, 0, factor)


def toward(image: np.ndarray, gray: int, factor: float) -> np.ndarray:
  """Blends with one gray: factor 0 gives that, 1 the image, and more moves away from it."""
  return _mapped(image, _blended(np.full(256, gray), _LEVELS, factor))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
  """0 smooths with a 3 x 3 kernel, 1 gives the image, more sharpens; the outer pixels stay."""
  smooth = image.copy()
  if min(image.shape[:2]) > 2:
    smooth[1:-1, 1:-1] = cv2.filter2D(np.ascontiguousarray(image), -1, _SMOOTH)[1:-1, 1:-1]
  return _blended(smooth, image, factor)


def gaussian_blur(image: np.ndarray, radius: float) -> np.ndarray:
  """Pillow's blur with a standard deviation of `radius` pixels: three box filters, which on white
  noise differ from the true Gaussian by a twentieth of the noise, on photos by less."""
  return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _luma(image: np.ndarray) -> np.ndarray:
  """uint8 `[H, W]`."""
  total = image.astype(np.float32) @ _LUMA
  total += 0x8000
  total *= 2.0**-16
  return total.astype(np.uint8)


def _blended(start: np.ndarray, end: np.ndarray, factor: float) -> np.ndarray:
  """start + factor (end - start), cut to 0..255 and down to whole numbers, uint8.

  In float32, as Pillow and TensorFlow both do.
  """
  start, blend = start.astype(np.float32), end.astype(np.float32)
  blend -= start
  blend *= np.float32(factor)
  blend += start
  # Between the two nothing leaves 0..255, and cutting costs as much as the rest.
  return (blend if 0 <= factor <= 1 else np.clip(blend, 0, 255, out=blend)).astype(np.uint8)


def _mapped(image: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Looks every pixel up in numbers `[256]` or, by channel, `[256, 3]`, cut to 0..255."""
  table = np.clip(table, 0, 255).astype(np.uint8)
  table = np.broadcast_to(table[:, None] if table.ndim == 1 else table, (256, 3))
  return cv2.LUT(np.ascontiguousarray(image), np.ascontiguousarray(table[None]))

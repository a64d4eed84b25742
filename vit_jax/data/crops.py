"""Which part of a training image is used, and how it becomes a square."""

import math

import cv2
import numpy as np
from PIL import Image

from vit_jax.data.preprocess import resize

_MIN_ASPECT, _MAX_ASPECT = 3 / 4, 4 / 3
_ATTEMPTS = 10
_FAST = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_ANTIALIASED = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# A strip of pixels, resized until its short side is that of the model, would fill the memory.
_LONGEST_STRIP = 16


def resize_box(
    box: np.ndarray, size: int, *, crop_filter: str = "bilinear", antialias: bool = False
) -> np.ndarray:
  """Resizes uint8 `[H, W, 3]`, cut out of an image, to `[size, size, 3]`.

  Args:
    crop_filter: "bilinear" or "bicubic".
    antialias: Pillow's filter, which averages where it makes smaller, as timm and torchvision
      train; else OpenCV's at fixed width, as big_vision does: one core then keeps up with
      TensorFlow's decode-and-crop, where Pillow reaches two thirds of that.
  """
  if not antialias:
    return cv2.resize(box, (size, size), interpolation=_FAST[crop_filter])
  return np.asarray(Image.fromarray(box).resize((size, size), _ANTIALIASED[crop_filter]))


def sample_box(
    height: int, width: int, *, min_area: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
  """Draws the box of a random resized crop, as torchvision's `RandomResizedCrop.get_params`.

  Its share of the area is uniform in [min_area, 1], the logarithm of its aspect uniform between
  those of 3/4 and 4/3; after ten boxes that do not fit, the largest centred one of a permitted
  aspect.

  Returns:
    (top, left, height, width) in pixels.
  """
  for _ in range(_ATTEMPTS):
    area = height * width * rng.uniform(min_area, 1)
    aspect = math.exp(rng.uniform(math.log(_MIN_ASPECT), math.log(_MAX_ASPECT)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
  w = min(width, round(height * _MAX_ASPECT))
  h = min(height, round(width / _MIN_ASPECT))
  return (height - h) // 2, (width - w) // 2, h, w


def pad_crop(image: np.ndarray, *, padding: int, rng: np.random.Generator) -> np.ndarray:
  """A random window of uint8 `[S, S, 3]` after zeros were put around it; the same shape."""
  height, width = image.shape[:2]
  top, left = rng.integers(2 * padding + 1, size=2)
  padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  return padded[top : top + height, left : left + width]


def simple_crop(
    image: np.ndarray, *, size: int, rng: np.random.Generator, crop_filter: str
) -> np.ndarray:
  """DeiT-III's for ImageNet-21k (arXiv 2204.07118, section 4): nearly the whole image.

  The short side becomes `size`; 4 pixels are mirrored on at each side; then a random window.

  Returns:
    uint8 `[size, size, 3]`.
  """
  image = resize_short_side(image, size, crop_filter=crop_filter)
  image = cv2.copyMakeBorder(image, 4, 4, 4, 4, cv2.BORDER_REFLECT_101)
  return random_window(image, size=size, rng=rng)


def resize_short_side(image: np.ndarray, short: int, *, crop_filter: str) -> np.ndarray:
  """Pillow's antialiased resize; the long side is rounded down, as torchvision's `Resize`.

  Of a strip longer than 16 times its width the middle is taken.
  """
  height, width = image.shape[:2]
  longest = _LONGEST_STRIP * min(height, width)
  if max(height, width) > longest:
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    image = image[top : top + longest, left : left + longest]
    height, width = image.shape[:2]
  long = int(short * max(height, width) / min(height, width))
  rows, columns = (long, short) if width <= height else (short, long)
  return resize(image, rows, columns, interpolation=crop_filter)


def random_window(image: np.ndarray, *, size: int, rng: np.random.Generator) -> np.ndarray:
  """`[size, size, 3]` at a random place of `[H, W, 3]`, which is at least as large."""
  top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
  return image[top : top + size, left : left + size]


def centre_window(image: np.ndarray, *, size: int) -> np.ndarray:
  """`[size, size, 3]` in the middle of `[H, W, 3]`, which is at least as large."""
  top, left = ((side - size) // 2 for side in image.shape[:2])
  return image[top : top + size, left : left + size]

"""Shears, shifts and rotations of an image, by Pillow.

Every function takes uint8 `[H, W, 3]`, a Pillow filter, and the colour for what comes from outside,
three levels; it returns a new array of the same shape.  `shear_x` with a positive factor takes the
pixel at x from x + factor y, `translate_x` from x + pixels, and so on: the picture moves the other
way.  Pillow and not OpenCV, which rounds positions to 1/32 pixel and blends the edge with what lies
outside.
"""

import numpy as np
from PIL import Image

Color = tuple[int, int, int]


def shear_x(
    image: np.ndarray, factor: float, resample: int, fill: Color, *, still: float = 0.0
) -> np.ndarray:
  """Moves each row in proportion to its distance from the height `still`: 0 the upper edge, as
  Pillow's users do; 0.5 the middle of the first row, as TensorFlow."""
  return _affine(image, (1, factor, -factor * still, 0, 1, 0), resample, fill)


def shear_y(
    image: np.ndarray, factor: float, resample: int, fill: Color, *, still: float = 0.0
) -> np.ndarray:
  """Moves each column in proportion to its distance from the place `still`, as `shear_x`."""
  return _affine(image, (1, 0, 0, factor, 1, -factor * still), resample, fill)


def translate_x(image: np.ndarray, pixels: float, resample: int, fill: Color) -> np.ndarray:
  """Moves all pixels along the rows."""
  return _affine(image, (1, 0, pixels, 0, 1, 0), resample, fill)


def translate_y(image: np.ndarray, pixels: float, resample: int, fill: Color) -> np.ndarray:
  """Moves all pixels along the columns."""
  return _affine(image, (1, 0, 0, 0, 1, pixels), resample, fill)


def rotate(image: np.ndarray, degrees: float, resample: int, fill: Color) -> np.ndarray:
  """Turns counterclockwise about the centre."""
  return np.array(Image.fromarray(image).rotate(degrees, resample, fillcolor=fill))


def cutout(image: np.ndarray, top: int, left: int, bottom: int, right: int, fill: Color):
  """Fills a box, which may reach beyond the image (arXiv 1708.04552)."""
  image = image.copy()
  image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = fill
  return image


def _affine(image: np.ndarray, matrix: tuple, resample: int, fill: Color) -> np.ndarray:
  picture = Image.fromarray(image)
  method = Image.Transform.AFFINE
  return np.array(picture.transform(picture.size, method, matrix, resample, fillcolor=fill))

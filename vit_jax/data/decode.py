"""Encoded images to RGB pixels."""

import functools
import io
from typing import Callable

import cv2
import numpy as np
from PIL import Image, ImageOps

from vit_jax.data import turbojpeg
from vit_jax.data.turbojpeg import Box
from vit_jax.errors import DataError

# Parallelism is the pipeline's: OpenCV's own threads would only compete with it.
cv2.setNumThreads(1)

# Half a GiB of RGB: where Pillow, too, refuses a file as a decompression bomb.  Checked here as
# well because other libraries switch Pillow's check off for the whole process.
MAX_PIXELS = 178_956_970

# What is opened, by its content.  Pillow knows more, such as EPS: a program for an interpreter.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
_JPEG_START = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
# What makes an image upright: exchange rows and columns, then mirror rows, mirror columns.
_TURNS = {
    2: (False, False, True), 3: (False, True, True), 4: (False, True, False),
    5: (True, False, False), 6: (True, False, True), 7: (True, True, True),
    8: (True, True, False),
}
# These are bits of their own: the colour is said beside them.
_REDUCED = {
    1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class UnreadableImage(DataError):
  """An image that cannot be decoded.

  Attributes:
    reason: why, without a name.
  """

  def __init__(self, reason: str, *, name: str | None = None):
    super().__init__(f"{name}: {reason}" if name else reason)
    self.reason = reason


def decode(data: bytes, *, exif_orientation: bool) -> np.ndarray:
  """Decodes an image file of one of `_FORMATS`, whatever its name; of animations the first frame.

  Pixels equal those of `PIL.Image.open(...).convert("RGB")`, except that 16-bit gray is scaled
  to 8 bits, where Pillow clips, and what is transparent shows white, as in transformers.

  Args:
    data: the file's content.
    exif_orientation: turn the image as its EXIF data says (`PIL.ImageOps.exif_transpose`).

  Returns:
    uint8 `[H, W, 3]`.

  Raises:
    UnreadableImage: empty, corrupt, truncated, of unknown format, or above `MAX_PIXELS`.
  """
  return decode_part(data, lambda *size: (0, 0, *size), exif_orientation=exif_orientation)


def decode_part(
    data: bytes, choose: Callable[[int, int], Box], *, exif_orientation: bool,
    at_least: int | None = None,
) -> np.ndarray:
  """Decodes a box of an image file, at the pixels that `decode` gives it.

  Args:
    data: the file's content.
    choose: gives (top, left, height, width) of the box when told height and width of the
      upright image; called once, or not at all where the file is unreadable.
    exif_orientation: turn the image as its EXIF data says.
    at_least: decode JPEGs at 1/8, 1/4 or 1/2 of their sides where those of the box are then no
      shorter than this; None for the full size.

  Returns:
    uint8 `[height, width, 3]`, or that fraction of it.

  Raises:
    UnreadableImage: as `decode`.
  """
  if not data:
    raise UnreadableImage("the file is empty")
  try:
    with open_image(data) as image:
      if data.startswith(_JPEG_START) and image.mode in ("RGB", "L"):
        return _jpeg_part(data, image, choose, exif_orientation, at_least)
      pixels = to_rgb(image, exif_orientation=exif_orientation)
      return _cut(pixels, choose(*pixels.shape[:2]))
  except (UnreadableImage, MemoryError):
    raise
  except Image.UnidentifiedImageError as error:
    raise UnreadableImage("not an image, or of unknown format") from error
  except Exception as error:  # damaged files make Pillow raise nearly anything
    raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def open_image(data: bytes) -> Image.Image:
  """Pillow's image of a file, its header read; `UnidentifiedImageError` for other `_FORMATS`."""
  return Image.open(io.BytesIO(data), formats=_known_formats())


@functools.cache
def _known_formats() -> tuple[str, ...]:
  """Those that this Pillow was built with."""
  Image.init()
  return tuple(name for name in _FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image, *, exif_orientation: bool) -> np.ndarray:
  """Pixels of a Pillow image of any mode, uint8 `[H, W, 3]`; transparency shows white.

  Raises:
    UnreadableImage: above `MAX_PIXELS`; and whatever Pillow raises when the file is damaged.
  """
  _check_size(image)
  if exif_orientation:
    image = ImageOps.exif_transpose(image)
  if image.mode == "I" or image.mode.startswith("I;16"):
    # Mode I is what older Pillows make of a 16-bit PNG.
    gray = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)
  if image.mode == "F":
    raise UnreadableImage("its pixels are floating-point numbers, of which no range is known")
  if image.has_transparency_data:  # onto white, as transformers 5 and browsers show it
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  return np.array(image.convert("RGB"))


def _jpeg_part(
    data: bytes, header: Image.Image, choose, exif_orientation: bool, at_least: int | None
) -> np.ndarray:
  """By libjpeg-turbo, or else OpenCV, which give Pillow's pixels; `header` is its unread image."""
  _check_size(header)
  orientation = header.getexif().get(_ORIENTATION) if exif_orientation else None
  turn = _TURNS.get(orientation, (False, False, False))
  size = header.size if turn[0] else header.size[::-1]
  full = choose(*size)
  reduction = next(
      (r for r in turbojpeg.REDUCTIONS if at_least and min(full[2:]) >= r * at_least), 1
  )
  box = tuple(x // reduction for x in full)
  size = tuple(-(-x // reduction) for x in size)
  stored, stored_size = _stored(box, size, turn)
  pixels = turbojpeg.decode_part(data, stored, size=stored_size, reduction=reduction)
  if pixels is not None:
    return _turned(pixels, turn)
  flags = _REDUCED[reduction] | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  if pixels is None:  # Pillow says what is wrong, or knows better
    return _cut(to_rgb(header, exif_orientation=exif_orientation), full)
  return _cut(_turned(pixels, turn), box)


def _stored(box: Box, size: tuple[int, int], turn) -> tuple[Box, tuple[int, int]]:
  """Box and size of an upright image to those of the image as it is stored."""
  (top, left, height, width), (rows, columns) = box, size
  exchange, mirror_rows, mirror_columns = turn
  top = rows - top - height if mirror_rows else top
  left = columns - left - width if mirror_columns else left
  if exchange:
    return (left, top, width, height), (columns, rows)
  return (top, left, height, width), size


def _turned(pixels: np.ndarray, turn) -> np.ndarray:
  """An image as it is stored to the upright one."""
  exchange, mirror_rows, mirror_columns = turn
  pixels = pixels.transpose(1, 0, 2) if exchange else pixels
  pixels = pixels[::-1] if mirror_rows else pixels
  return np.ascontiguousarray(pixels[:, ::-1] if mirror_columns else pixels)


def _cut(pixels: np.ndarray, box: Box) -> np.ndarray:
  """The box (top, left, height, width) of `[H, W, 3]`."""
  top, left, height, width = box
  return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def _check_size(image: Image.Image) -> None:
  if image.width * image.height > MAX_PIXELS:
    raise UnreadableImage(
        f"{image.width}x{image.height} pixels are more than the limit of {MAX_PIXELS}"
    )

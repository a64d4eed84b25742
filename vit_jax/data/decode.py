"""Encoded images to RGB pixels."""

import io

import cv2
import numpy as np
from PIL import Image, ImageOps

from vit_jax.errors import DataError

# Parallelism is the pipeline's: OpenCV's own threads would only compete with it.
cv2.setNumThreads(1)

# Half a GiB of RGB: where Pillow, too, refuses a file as a decompression bomb.  Checked here as
# well because other libraries switch Pillow's check off for the whole process.
MAX_PIXELS = 178_956_970

_JPEG_START = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
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
  """Decodes an image file of any format that Pillow knows; of animations the first frame.

  Pixels equal those of `PIL.Image.open(...).convert("RGB")`, except that 16-bit gray is scaled
  to 8 bits, where Pillow clips.

  Args:
    data: the file's content.
    exif_orientation: turn the image as its EXIF data says (`PIL.ImageOps.exif_transpose`).

  Returns:
    uint8 `[H, W, 3]`.

  Raises:
    UnreadableImage: empty, corrupt, truncated, of unknown format, or above `MAX_PIXELS`.
  """
  if not data:
    raise UnreadableImage("the file is empty")
  try:
    with Image.open(io.BytesIO(data)) as image:
      if data.startswith(_JPEG_START) and image.mode in ("RGB", "L"):
        return _decode_jpeg(data, image, exif_orientation)
      return to_rgb(image, exif_orientation=exif_orientation)
  except (UnreadableImage, MemoryError):
    raise
  except Image.UnidentifiedImageError as error:
    raise UnreadableImage("not an image, or of unknown format") from error
  except Exception as error:  # damaged files make Pillow raise nearly anything
    raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image, *, exif_orientation: bool) -> np.ndarray:
  """Pixels of a Pillow image of any mode, uint8 `[H, W, 3]`; transparency is dropped.

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
  if image.has_transparency_data:  # onto white, as transformers 5 and browsers show it
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  return np.array(image.convert("RGB"))


def _decode_jpeg(data: bytes, header: Image.Image, exif_orientation: bool) -> np.ndarray:
  """By OpenCV, which is faster and gives the same pixels; `header` is Pillow's unread image."""
  _check_size(header)
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  if pixels is None:  # Pillow says what is wrong, or knows better
    return to_rgb(header, exif_orientation=exif_orientation)
  orientation = header.getexif().get(_ORIENTATION) if exif_orientation else None
  turn = _UPRIGHT.get(orientation)
  return np.ascontiguousarray(turn(pixels)) if turn else pixels


def _check_size(image: Image.Image) -> None:
  if image.width * image.height > MAX_PIXELS:
    raise UnreadableImage(
        f"{image.width}x{image.height} pixels are more than the limit of {MAX_PIXELS}"
    )

"""The bytes of items, and what is stored of them."""

import functools
import hashlib
import io
from typing import BinaryIO

from PIL import Image

from vit_jax.data.decode import UnreadableImage, decode, open_image
from vit_jax.data.prepare import parquet
from vit_jax.data.prepare.items import Item
from vit_jax.errors import DataError

_ORIENTATION = 0x0112


def read(item: Item, source: str) -> bytes:
  """Returns an item's image file.

  Raises:
    DataError: what holds it has gone or is shorter than it was.
  """
  if source == "parquet":
    return parquet.read_row(item.path, item.offset)
  if source == "tfds":
    return _tfds_split(item.path, item.split).record(item.offset)["image"]
  try:
    file = _open(item.path)
    file.seek(item.offset)
    data = file.read(item.size)
  except OSError as error:
    raise DataError(f"cannot read {item.path}: {error.strerror}; restore it") from error
  if len(data) != item.size:
    raise DataError(
        f"{item.path} is shorter than when it was listed: {item.name} has {len(data)} of "
        f"{item.size} bytes; restore it and repeat the command"
    )
  return data


def close_files() -> None:
  """Forgets what `read` keeps open, so that a file that was replaced is opened anew."""
  _open.cache_clear()
  _tfds_split.cache_clear()
  parquet.close_files()


def digest(data: bytes) -> bytes:
  """Returns the sha256 that tells identical images."""
  return hashlib.sha256(data).digest()


def stored(data: bytes, *, short_side: int | None, quality: int) -> bytes:
  """Returns what is kept of an image file that can be decoded: itself, or a reduced JPEG.

  An image whose short side is not above `short_side` is kept as it is.  Otherwise it is resized
  with Pillow's antialiased bicubic filter; its EXIF orientation stays, and is still to be applied.

  Raises:
    UnreadableImage: it cannot be decoded.
  """
  pixels = decode(data, exif_orientation=False)
  height, width = pixels.shape[:2]
  if short_side is None or min(height, width) <= short_side:
    return data
  scale = short_side / min(height, width)
  size = (max(1, round(width * scale)), max(1, round(height * scale)))
  reduced = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
  options = {}
  if (orientation := _orientation(data)) not in (None, 1):
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    options["exif"] = exif
  file = io.BytesIO()
  reduced.save(file, "JPEG", quality=quality, **options)
  return file.getvalue()


def _orientation(data: bytes) -> int | None:
  with open_image(data) as image:
    value = image.getexif().get(_ORIENTATION)
  return value if value in range(1, 9) else None


def fault_of(error: UnreadableImage) -> str:
  """Why an image is unreadable, in one line."""
  return " ".join(error.reason.split())


@functools.lru_cache(maxsize=1)
def _open(path: str) -> BinaryIO:
  """The file that was read last stays open: neighbours lie in one archive."""
  return open(path, "rb")


@functools.lru_cache(maxsize=4)
def _tfds_split(directory: str, split: str):
  from pathlib import Path

  from vit_jax.data.tfds import open_tfds_directory

  return open_tfds_directory(Path(directory), held_out=0, decode_small=False).splits[split]

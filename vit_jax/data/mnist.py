"""MNIST (LeCun, Cortes, Burges) and Fashion-MNIST (Xiao et al. 2017) from their original files."""

import gzip
import hashlib
import os
from pathlib import Path
import struct
import zlib

import numpy as np

from vit_jax.data.source import ArraySource, DataSet
from vit_jax.errors import DataError

_CLASSES = {
    "mnist": tuple(map(str, range(10))),
    "fashion_mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
        "Bag", "Ankle boot",
    ),
}
_FILES = {"train": "train", "test": "t10k"}
# A header that claims more is damaged; the largest of the family (EMNIST) has 0.7 GB.
_MAX_BYTES = 2 * 1024**3


def open_mnist(name: str, *, path: str | os.PathLike) -> DataSet:
  """Opens the set as uint8 `[N, 28, 28, 3]` in memory, gray repeated over the channels.

  Args:
    name: "mnist" or "fashion_mnist"; the files of both are called alike.
    path: directory with train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz] and the two
      t10k files.

  Raises:
    DataError: a file is missing, truncated, or not of the idx format.
  """
  root, classes = Path(path), _CLASSES[name]
  digest, splits = hashlib.sha256(name.encode()), {}
  for split, prefix in _FILES.items():
    images = _read_idx(_find(root, f"{prefix}-images", 3, name), 3)
    labels_file = _find(root, f"{prefix}-labels", 1, name)
    labels = _read_idx(labels_file, 1)
    if len(images) != len(labels) or labels.size and labels.max() >= len(classes):
      raise DataError(
          f"{labels_file} has {len(labels)} labels for {len(images)} images, or labels beyond "
          f"{len(classes)} classes: the files are not of one set; download them again"
      )
    digest.update(images.tobytes() + labels.tobytes())
    splits[split] = ArraySource(
        name, split, classes, np.repeat(images[..., None], 3, axis=-1), labels.astype(np.int32)
    )
  return DataSet(name, classes, splits, digest.hexdigest(), shuffled=True)


def _find(root: Path, stem: str, dimensions: int, name: str) -> Path:
  """The file of a name in one of its spellings."""
  for dot in "-.":
    for end in (".gz", ""):
      file = root / f"{stem}{dot}idx{dimensions}-ubyte{end}"
      if file.is_file():
        return file
  raise DataError(
      f"{root / stem}-idx{dimensions}-ubyte.gz is missing: download the four files of {name} "
      "into the directory that config.input.path names"
  )


def _read_idx(file: Path, dimensions: int) -> np.ndarray:
  """Reads uint8 of so many dimensions: magic 0 0 8 d, the sizes as big-endian uint32, bytes."""
  head = 4 + 4 * dimensions
  try:
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
      start = stream.read(head)
      if start[:4] != bytes((0, 0, 8, dimensions)) or len(start) < head:
        raise ValueError(f"it does not begin as idx files of {dimensions} dimensions do")
      shape = struct.unpack(f">{dimensions}I", start[4:])
      size = int(np.prod(shape, dtype=object))
      if size > _MAX_BYTES:
        raise ValueError(f"its header claims {size} bytes")
      data = stream.read(size)
      if len(data) != size or stream.read(1):
        raise ValueError(f"it should hold {size} bytes and does not")
  except (OSError, EOFError, ValueError, zlib.error) as error:
    raise DataError(
        f"{file} is truncated or damaged ({error}): download it again"
    ) from error
  return np.frombuffer(data, np.uint8).reshape(shape)

"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their original archives."""

import hashlib
import io
import os
from pathlib import Path
import pickle
import pickletools
import tarfile
from typing import Callable

import numpy as np

from vit_jax.data.source import ArraySource, DataSet
from vit_jax.errors import DataError

_PIXELS = 3 * 32 * 32
_MAX_BYTES = 1 << 28  # of a file; the largest, CIFAR-100's train, has 155 MB
_URL = "https://www.cs.toronto.edu/~kriz/cifar.html"
# Per data set: stems of archive and directory, files of (train, test), names of the classes.
_PYTHON = {
    "cifar10": (
        "cifar-10-python.tar.gz", "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], "batches.meta",
        b"labels", b"label_names",
    ),
    "cifar100": (
        "cifar-100-python.tar.gz", "cifar-100-python", ["train"], ["test"], "meta",
        b"fine_labels", b"fine_label_names",
    ),
}
_BINARY = {
    "cifar10": (
        "cifar-10-binary.tar.gz", "cifar-10-batches-bin",
        [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"],
        "batches.meta.txt", 1,
    ),
    "cifar100": (
        "cifar-100-binary.tar.gz", "cifar-100-binary", ["train.bin"], ["test.bin"],
        "fine_label_names.txt", 2,
    ),
}


def open_cifar(name: str, *, path: str | os.PathLike) -> DataSet:
  """Opens CIFAR as uint8 `[N, 32, 32, 3]` in memory, with its splits train and test.

  Args:
    name: "cifar10" or "cifar100" (its 100 fine classes).
    path: the archive as downloaded, python or binary version, or the directory that holds it, or
      its unpacked directory.

  Raises:
    DataError: it is not there, truncated or damaged, or a pickle asks for anything but arrays.
  """
  read, where, binary = _locate(name, Path(path))
  if binary:
    _, _, train, test, meta, label_bytes = _BINARY[name]
    classes = tuple(read(meta).decode().split())
    parts = {
        split: [_binary_batch(read(file), label_bytes, where(file)) for file in files]
        for split, files in (("train", train), ("test", test))
    }
  else:
    _, _, train, test, meta, labels_key, names_key = _PYTHON[name]
    names = _field(_unpickle(read(meta), where(meta)), names_key, where(meta))
    classes = tuple(label.decode() for label in names)
    parts = {
        split: [
            _python_batch(_unpickle(read(file), where(file)), labels_key, where(file))
            for file in files
        ]
        for split, files in (("train", train), ("test", test))
    }
  digest, splits = hashlib.sha256(repr(classes).encode()), {}
  for split, batches in parts.items():
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
      raise DataError(
          f"{path}: {split} has labels outside the {len(classes)} classes: download it again "
          f"from {_URL}"
      )
    digest.update(images.tobytes() + labels.tobytes())
    splits[split] = ArraySource(name, split, classes, images, labels)
  return DataSet(name, classes, splits, digest.hexdigest(), shuffled=True)


def _locate(name: str, path: Path) -> tuple[Callable[[str], bytes], Callable[[str], str], bool]:
  """How to read a file of the data set by name, what to call it, and which version it is."""
  for table, binary in ((_PYTHON, False), (_BINARY, True)):
    archive, directory, train, test, meta, *_ = table[name]
    for folder in (path, path / directory):
      if (folder / meta).is_file():
        return (lambda file: _read(folder / file)), (lambda file: str(folder / file)), binary
    for file in (path, path / archive):
      if file.name == archive and file.is_file():
        members = _members(file, {*train, *test, meta})
        return (
            lambda name: _member(members, name, file), lambda name: f"{file}: {name}", binary
        )
  names = f"{_PYTHON[name][0]} or {_BINARY[name][0]}"
  raise DataError(
      f"{path} holds no {name}: download {names} from {_URL} and give its directory as "
      "config.input.path"
  )


def _read(file: Path) -> bytes:
  try:
    return file.read_bytes()
  except OSError as error:
    raise DataError(
        f"cannot read {file}: {error.strerror}; unpack the archive again"
    ) from error


def _members(archive: Path, wanted: set[str]) -> dict[str, bytes]:
  """Wanted files of an archive by their last name; nothing is unpacked to the disk."""
  try:
    with tarfile.open(archive, "r:*") as tar:
      found = {}
      for member in tar:
        if member.isreg() and (name := Path(member.name).name) in wanted:
          if not 0 <= member.size <= _MAX_BYTES:
            raise ValueError(f"{name} claims {member.size:,} bytes")
          found[name] = tar.extractfile(member).read()
      return found
  except (OSError, EOFError, tarfile.TarError, ValueError) as error:
    raise DataError(
        f"{archive} is truncated or damaged ({error}): download it again from {_URL}"
    ) from error


def _member(members: dict[str, bytes], name: str, archive: Path) -> bytes:
  if name not in members:
    raise DataError(f"{archive} has no {name} in it: download it again from {_URL}")
  return members[name]


class _ArraysOnly(pickle.Unpickler):
  """Reads lists, dicts, strings and NumPy arrays; a pickle can otherwise run any program."""

  _ALLOWED = {
      (f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")
  } | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

  def find_class(self, module, name):
    if (module, name) not in self._ALLOWED:
      raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
    # NumPy 1 wrote a name that NumPy 2 only knows with a warning.
    return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(data: bytes, where: str) -> dict:
  try:
    # A number in the memo, which is an array in C, can claim terabytes.
    if any(
        type(place) is int and place > len(data) for code, place, _ in pickletools.genops(data)
        if "PUT" in code.name
    ):
      raise pickle.UnpicklingError("it numbers more objects than it has bytes")
    return _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
  except Exception as error:  # a damaged pickle raises nearly anything
    raise DataError(
        f"{where} cannot be read as arrays ({error}): download it again from {_URL}"
    ) from error


def _field(fields: dict, key: bytes, where: str):
  # What a newer Python wrote has text where Python 2 had bytes.
  value = fields.get(key, fields.get(key.decode())) if isinstance(fields, dict) else None
  if value is None:
    raise DataError(f"{where} has no {key.decode()}: download it again from {_URL}")
  if isinstance(value, list) and value and isinstance(value[0], str):
    return [text.encode() for text in value]
  return value


def _python_batch(fields: dict, labels_key: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
  data = np.asarray(_field(fields, b"data", where))
  labels = np.asarray(_field(fields, labels_key, where))
  if labels.dtype.kind not in "iu" or labels.ndim != 1:
    raise DataError(f"{where} has labels that are no numbers: download it again from {_URL}")
  if data.dtype != np.uint8 or data.shape != (len(labels), _PIXELS):
    raise DataError(
        f"{where} has {data.shape} pixels of {data.dtype} for {len(labels)} labels; it should "
        f"be [{len(labels)}, {_PIXELS}] of uint8: download it again from {_URL}"
    )
  return _images(data), labels.astype(np.int32)


def _binary_batch(data: bytes, label_bytes: int, where: str) -> tuple[np.ndarray, np.ndarray]:
  row = label_bytes + _PIXELS
  if not data or len(data) % row:
    raise DataError(
        f"{where} has {len(data)} bytes, no multiple of {row}; it is truncated: download it "
        f"again from {_URL}"
    )
  rows = np.frombuffer(data, np.uint8).reshape(-1, row)
  # Of CIFAR-100's two labels the second is the fine one.
  return _images(rows[:, label_bytes:]), rows[:, label_bytes - 1].astype(np.int32)


def _images(rows: np.ndarray) -> np.ndarray:
  """Planes to pixels: uint8 `[N, 3072]` to `[N, 32, 32, 3]`."""
  return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))

"""NumPy archives (.npz) read and written an array at a time, never executing a pickle.

An .npz is a ZIP of .npy files; bfloat16, which NumPy does not know, lies in it as 2-byte voids.
"""

import hashlib
import io
import math
from pathlib import Path
from typing import Callable, Mapping
import zipfile
import zlib

import ml_dtypes
import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.interop.file_kinds import open_error
from vit_jax.interop.safetensors_writer import as_stored, round_to
from vit_jax.interop.tensor_table import first_ten

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_MAX_HEADER = 1 << 16  # bytes of an array's header
_MAX_DEFLATED = 1032  # bytes that one byte of deflate can stand for, by its format


class Npz:
  """The arrays of an .npz; a context manager.

  Attributes:
    path: of the file.
    shapes: shape of each array by its name.
  """

  def __init__(self, path: Path):
    """Opens the file and reads the arrays' headers; the arrays stay on disk.

    Raises:
      CheckpointError: not an .npz, truncated, or it claims arrays that its bytes cannot hold.
    """
    self.path = Path(path)
    self.shapes, self._dtypes = {}, {}
    if self.path.suffix != ".npz":
      raise CheckpointError(
          f"{self.path} does not end in .npz. Give the file the ending of its format if it lost it."
      )
    try:
      self._zip = zipfile.ZipFile(self.path)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
      raise open_error(self.path, "NumPy archive (.npz)", str(error)) from error
    try:
      self._check_claims()
      for member in self._zip.namelist():
        if member.endswith(".npy"):
          self._header(member)
    except BaseException:
      self._zip.close()
      raise

  def _check_claims(self) -> None:
    """Holds that the members' sizes are possible, before anything of such a size is allocated."""
    members = self._zip.infolist()
    packed = sum(member.compress_size for member in members)
    if packed > self.path.stat().st_size:
      raise CheckpointError(self._damaged(f"they claim {packed:,} bytes", "its members"))
    for member in members:
      most = {
          zipfile.ZIP_STORED: member.compress_size,
          zipfile.ZIP_DEFLATED: _MAX_DEFLATED * member.compress_size,
      }.get(member.compress_type, -1)
      if member.file_size > most:
        said = f"it claims {member.file_size:,} bytes, packed in {member.compress_size:,}"
        raise CheckpointError(self._damaged(said, member.filename))

  def _header(self, member: str) -> None:
    name = member.removesuffix(".npy")
    try:
      with self._zip.open(member) as packed:
        file = io.BytesIO(packed.read(_MAX_HEADER))
        version = np.lib.format.read_magic(file)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = header(file)
      size = math.prod(shape) * dtype.itemsize
      if not dtype.hasobject and (
          min(shape, default=0) < 0 or size != self._zip.getinfo(member).file_size - file.tell()
      ):
        raise ValueError(f"its header speaks of {shape}, which is not its size")
      self.shapes[name], self._dtypes[name] = shape, dtype
    except (*_DAMAGED, KeyError) as error:
      raise CheckpointError(self._damaged(error, name)) from error

  def read(self, name: str) -> np.ndarray:
    """Reads one array as float32, which is exact.

    Raises:
      CheckpointError: damaged, or not an array of float16, bfloat16 or float32.
    """
    dtype = self._dtypes[name]
    if dtype not in (np.float32, np.float16, "V2", _BFLOAT16):
      raise CheckpointError(
          f"{self.path} holds {name} as {dtype}; what is read is float32, float16 and bfloat16 "
          "(2-byte voids). Save the checkpoint in one of these."
      )
    try:
      with self._zip.open(f"{name}.npy") as file:
        values = np.lib.format.read_array(file, allow_pickle=False)
    except _DAMAGED as error:
      raise CheckpointError(self._damaged(error, name)) from error
    values = values.view(_BFLOAT16) if dtype == "V2" else values
    return values.astype(np.float32, copy=False)

  def _damaged(self, error: Exception | str, name: str) -> str:
    return f"{self.path} is damaged at {name} ({error}). Copy it again from its source."

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._zip.close()


_DAMAGED = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError)


def write_npz(
    path: Path, shapes: Mapping[str, tuple[int, ...]], values: Callable[[str], np.ndarray],
    *, dtype: str,
) -> str:
  """Writes an .npz an array at a time; equal arrays make equal bytes.

  Args:
    path: of the new file.
    shapes: of the arrays, in the order in which they are written.
    values: gives the array of a name, any float dtype and memory order.
    dtype: of the arrays in the file, a key of `safetensors_writer.DTYPES`.

  Returns:
    The sha256 of the file in hexadecimal.

  Raises:
    CheckpointError: a value is not finite, or no longer is in `dtype`.
    OSError: the disk is full or not writable.
  """
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    for name, shape in shapes.items():
      _put(archive, name, as_stored(name, values(name), shape, dtype))
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def append_npz(path: Path, name: str, values: np.ndarray, *, dtype: str) -> None:
  """Adds an array to an .npz, rounded to a key of `safetensors_writer.DTYPES`."""
  with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
    _put(archive, name, round_to(values, dtype))


def _put(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
  array = np.ascontiguousarray(array)
  stored = array.view("V2") if array.dtype == _BFLOAT16 else array
  # ZipInfo's own date is constant, where ZipFile.write would take the clock's.
  with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
    np.lib.format.write_array(file, stored, allow_pickle=False)


def find_npz(path: Path) -> Path:
  """The .npz in a directory, or the file itself.

  Raises:
    CheckpointError: a directory without one, or with several.
  """
  if not path.is_dir():
    return path
  found = sorted(path.glob("*.npz"))
  if len(found) != 1:
    raise CheckpointError(
        f"{path} holds {len(found)} .npz files ({first_ten(file.name for file in found)}); name "
        "the one to read."
    )
  return found[0]

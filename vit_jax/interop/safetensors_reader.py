"""Reading safetensors files with NumPy.

The format (github.com/huggingface/safetensors): the header's length as a little-endian uint64, the
header as JSON, then the tensors without gaps.  Read into memory that we own, never mapped: mapped
pages count as the process's memory for as long as the file is open.
"""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.interop.file_kinds import open_error

# Read exactly into float32.
_READABLE = {
    "F32": np.dtype("<f4"), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2"),
}
_MAX_HEADER = 100_000_000  # bytes; the format's own library takes no more either
_ITEM_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16,
    "BF16": 16, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8,
}


class SafetensorsFile:
  """One file; see `tensor_files.TensorSource`."""

  lasting = True

  def __init__(self, path: Path):
    """Reads and checks the header.

    Raises:
      CheckpointError: truncated, or another kind of file.
    """
    self.path = path
    try:
      with open(path, "rb") as file:
        self._start, self._entries = _header(file, path)
    except _Damaged as error:
      raise open_error(path, "safetensors", str(error)) from error
    self.shapes = {name: tuple(entry["shape"]) for name, entry in self._entries.items()}

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor as float32."""
    entry = self._entries[name]
    dtype = _READABLE.get(entry["dtype"])
    if dtype is None:
      raise CheckpointError(
          f"{self.path}: {name} is of dtype {entry['dtype']}; float32, bfloat16 and float16 are "
          "read. Save the checkpoint in one of these."
      )
    values = np.fromfile(
        self.path, dtype, count=math.prod(entry["shape"]),
        offset=self._start + entry["data_offsets"][0],
    )
    return values.astype(np.float32, copy=False).reshape(entry["shape"])

  def close(self):
    """Nothing is open between reads."""


class _Damaged(Exception):
  """What is wrong with a header."""


def _header(file, path: Path) -> tuple[int, dict]:
  """(where the tensors start, the header's entries by name), every entry checked."""
  size = path.stat().st_size
  length = int.from_bytes(file.read(8), "little")
  if size < 8 or length > size - 8:
    raise _Damaged("its header is longer than the file")
  if length > _MAX_HEADER:
    raise _Damaged(f"its header claims {length:,} bytes, at most {_MAX_HEADER:,} are read")
  try:
    header = json.loads(file.read(length))
  except (ValueError, RecursionError) as error:
    raise _Damaged(f"its header is not JSON: {error}") from error
  if not isinstance(header, dict):
    raise _Damaged("its header is not a JSON object")
  header.pop("__metadata__", None)
  end = 0
  try:
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
      first, last = entry["data_offsets"]
      if any(type(n) is not int for n in (first, last, *entry["shape"])):
        raise TypeError(f"{name} has sizes that are no whole numbers")
      bits = math.prod(entry["shape"]) * _ITEM_BITS[entry["dtype"]]
      if first != end or (last - first) * 8 != bits or any(n < 0 for n in entry["shape"]):
        raise _Damaged(f"the place of {name} overlaps another's, leaves a gap or is not its size")
      end = last
  except (KeyError, TypeError, ValueError) as error:
    raise _Damaged(f"its header has an entry of an unknown form: {error!r}") from error
  if 8 + length + end != size:
    raise _Damaged(f"it has {size:,} bytes, its header speaks of {8 + length + end:,}")
  return 8 + length, header

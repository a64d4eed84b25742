"""Writing safetensors files as a stream: one file, or shards with their index."""

from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import math
from pathlib import Path
from typing import Callable, Iterable, Mapping

import ml_dtypes
import numpy as np

from vit_jax.errors import CheckpointError, ConfigError

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# The bits of an infinity: nothing finite has as many in its exponent.
_INFINITY = {"bfloat16": 0x7F80, "float16": 0x7C00}

# Bytes a call: on ext4 a GB took 0.5 s of CPU time in calls of 16 to 256 KiB, and 3 to 5 s in calls
# of a whole tensor (measured, Linux 6).
_WRITE = 1 << 16


def check_dtype(dtype: str) -> None:
  """Raises ConfigError where `dtype` is no key of `DTYPES`."""
  if dtype not in DTYPES:
    raise ConfigError(f"dtype {dtype!r} is not written; choose one of {', '.join(DTYPES)}.")


def round_to(array, dtype: str) -> np.ndarray:
  """Rounds a float array of any shape to nearest-even in `dtype`, a key of `DTYPES`.

  What is too large for float16 becomes infinite.
  """
  with np.errstate(over="ignore"):
    return np.asarray(array).astype(DTYPES[dtype], copy=False)


def check_finite(name: str, values: np.ndarray, dtype: str) -> None:
  """Holds that all values are finite, without a second array of their size in the usual case.

  Args:
    name: for the error.
    values: any shape, rounded to `dtype`.

  Raises:
    CheckpointError: a value is infinite or NaN.
  """
  if dtype == "float32":
    flat = values.reshape(-1)
    # A sum of squares is finite only where every value is; it overflows for huge ones alone.
    with np.errstate(over="ignore", invalid="ignore"):
      finite = np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all()
  else:
    infinity = _INFINITY[dtype]
    finite = ((values.view(np.uint16) & infinity) != infinity).all()
  if not finite:
    raise CheckpointError(
        f"{name} has values that are infinite or NaN in {dtype}, so nothing was "
        "written. Convert an earlier checkpoint, or use float32 if the weights are finite."
    )


def as_stored(name: str, array, shape: tuple[int, ...], dtype: str) -> np.ndarray:
  """The values of a float array as a file holds them: rounded to `dtype`, in C order.

  Raises:
    ValueError: it is not of `shape`, which the file's table says.
    CheckpointError: a value is not finite, or no longer is in `dtype`.
  """
  # A transposed view has the right shape and the wrong bytes: copy it into C order.
  values = np.ascontiguousarray(round_to(array, dtype))
  if values.shape != tuple(shape):
    raise ValueError(f"{name} is {values.shape}, its table says {shape}")
  check_finite(name, values, dtype)
  return values


def write_shards(
    directory: Path, shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], np.ndarray], *, dtype: str, max_shard_bytes: int,
) -> dict[str, str]:
  """Writes `model.safetensors`, or shards with `model.safetensors.index.json` if it would exceed
  `max_shard_bytes` of tensors.

  Args:
    directory: an existing one.
    Others: as in `write_tensors`.

  Returns:
    The sha256 of each file by its name.

  Raises: as `write_tensors`.
  """
  shards = _split(shapes, dtype, max_shard_bytes)
  if len(shards) == 1:
    path = directory / "model.safetensors"
    return {path.name: write_tensors(path, shapes, tensor, dtype=dtype)}
  hashes, owner = {}, {}
  for number, names in enumerate(shards, start=1):
    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    owner |= dict.fromkeys(names, file)
    hashes[file] = write_tensors(
        directory / file, {name: shapes[name] for name in names}, tensor, dtype=dtype
    )
  parameters = sum(map(math.prod, shapes.values()))
  index = {
      "metadata": {
          "total_parameters": parameters, "total_size": parameters * DTYPES[dtype].itemsize
      },
      "weight_map": owner,
  }
  data = (json.dumps(index, indent=2) + "\n").encode()
  path = directory / "model.safetensors.index.json"
  path.write_bytes(data)
  return hashes | {path.name: hashlib.sha256(data).hexdigest()}


def _split(shapes: Mapping, dtype: str, max_shard_bytes: int) -> list[list[str]]:
  """Names in order, so many in a shard as fit; a tensor larger than a shard has one of its own."""
  shards, room = [[]], max_shard_bytes
  for name, shape in shapes.items():
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if size > room and shards[-1]:
      shards.append([])
      room = max_shard_bytes
    shards[-1].append(name)
    room -= size
  return shards


def write_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], tensor: Callable[[str], np.ndarray],
    *, dtype: str,
) -> str:
  """Writes a safetensors file; memory holds the tensor that is written and the one before it.

  Args:
    path: of the new file.
    shapes: of the tensors, in the order in which they are written.
    tensor: gives the values of a name, any float dtype and memory order.
    dtype: of the tensors in the file, a key of `DTYPES`.

  Returns:
    The sha256 of the file in hexadecimal.

  Raises:
    CheckpointError: a value is not finite, or no longer is in `dtype`.
    OSError: the disk is full or not writable.
  """
  digest = hashlib.sha256()
  # Hashing takes about as long as writing, and both let other threads run meanwhile.
  with ThreadPoolExecutor(1) as hasher, open(path, "wb") as file:
    hashed = None
    for data in _pieces(shapes, tensor, dtype):
      if hashed is not None:
        hashed.result()
      hashed = hasher.submit(digest.update, data)
      for start in range(0, len(data), _WRITE):
        file.write(data[start : start + _WRITE])
  return digest.hexdigest()


def _pieces(shapes: Mapping, tensor: Callable, dtype: str) -> Iterable:
  """The bytes of the file: its header, then each tensor."""
  header, offset = {"__metadata__": {"format": "pt"}}, 0
  for name, shape in shapes.items():
    end = offset + math.prod(shape) * DTYPES[dtype].itemsize
    header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
    offset = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  yield len(text).to_bytes(8, "little") + text
  for name, shape in shapes.items():
    yield as_stored(name, tensor(name), shape, dtype).reshape(-1).view(np.uint8)

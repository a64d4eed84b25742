"""safetensors files: reading one or several as one set of tensors, and writing one as a stream.

The format (github.com/huggingface/safetensors): the header's length as a little-endian uint64,
the header as JSON padded with spaces to 8 bytes, then the tensors in the header's order.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Callable, Mapping

import ml_dtypes
import numpy as np
import safetensors

from vit_jax.errors import CheckpointError

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def round_to(array, dtype: str) -> np.ndarray:
  """Rounds a float array of any shape to nearest-even in `dtype`, a key of `DTYPES`.

  What is too large for float16 becomes infinite.
  """
  with np.errstate(over="ignore"):
    return np.asarray(array).astype(DTYPES[dtype], copy=False)


def read_json(path: Path) -> dict:
  """Reads a JSON object.

  Raises:
    CheckpointError: the file is unreadable or holds something else.
  """
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise CheckpointError(
        f"{path} cannot be read as JSON ({error}). Copy the file again from its source."
    ) from error
  if not isinstance(value, dict):
    raise CheckpointError(
        f"{path} holds a JSON {type(value).__name__} instead of an object. "
        "Copy the file again from its source."
    )
  return value


class TensorFiles:
  """The tensors of a directory's `model.safetensors`, or of the shards its index names.

  Attributes:
    path: the file, or the index of the shards: what an error should name.
    shapes: shape of each tensor by its name.
  """

  def __init__(self, directory: Path):
    """Opens the files and reads their headers; the tensors stay on disk.

    Raises:
      CheckpointError: no such file, a shard missing, a file truncated or not safetensors,
        tensors that are not float32, bfloat16 or float16.
    """
    self._files = contextlib.ExitStack()
    self._owner = {}
    self.shapes = {}
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
      self.path, shards = single, [single]
    elif index.is_file():
      self.path, shards = index, _shards(index)
    else:
      raise CheckpointError(_no_weights(directory))
    with contextlib.ExitStack() as undo:
      undo.callback(self._files.close)
      for shard in shards:
        self._open(shard)
      undo.pop_all()

  def _open(self, path: Path):
    try:
      file = self._files.enter_context(safetensors.safe_open(path, framework="numpy"))
    except (safetensors.SafetensorError, OSError) as error:
      raise CheckpointError(
          f"{path} is truncated or not a safetensors file ({error}). "
          "Copy it again from its source."
      ) from error
    others = []
    for name in file.keys():
      tensor = file.get_slice(name)
      self._owner[name] = file
      self.shapes[name] = tuple(tensor.get_shape())
      if tensor.get_dtype() not in _CODES.values():
        others.append(f"{name} ({tensor.get_dtype()})")
    if others:
      raise CheckpointError(
          f"{path} has tensors that are not float32, bfloat16 or float16: {first_ten(others)}. "
          "Save the checkpoint in one of these."
      )

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor as float32 (exact for all three dtypes)."""
    return self._owner[name].get_tensor(name).astype(np.float32)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._files.close()


def _shards(index: Path) -> list[Path]:
  """The files named by a `model.safetensors.index.json`."""
  names = read_json(index).get("weight_map")
  if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
    raise CheckpointError(f"{index} has no \"weight_map\" of tensor names to files.")
  names = sorted(set(names.values()))
  outside = [name for name in names if Path(name).name != name]
  missing = [name for name in names if not (index.parent / name).is_file()]
  if outside or missing:
    raise CheckpointError(
        f"{index} names files that are not in its directory: {first_ten(outside or missing)}. "
        "Copy the missing shards beside it."
    )
  return [index.parent / name for name in names]


def _no_weights(directory: Path) -> str:
  others = [name for name in ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5")
            if (directory / name).is_file()]
  if others:
    return (
        f"{directory} holds its weights as {', '.join(others)}; only safetensors are read. "
        "Load and save the model once with transformers 4.57, which writes model.safetensors."
    )
  return (
      f"{directory} has neither model.safetensors nor model.safetensors.index.json. "
      "Copy the weights beside its config.json."
  )


def first_ten(names) -> str:
  """Joins names by commas; of more than ten the rest is a count."""
  names = list(names)
  rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
  return ", ".join(names[:10]) + rest


def write_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], tensor: Callable[[str], np.ndarray],
    *, dtype: str,
) -> str:
  """Writes a safetensors file one tensor at a time: memory holds one copy of one tensor.

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
  header, offset = {"__metadata__": {"format": "pt"}}, 0
  for name, shape in shapes.items():
    end = offset + int(np.prod(shape)) * DTYPES[dtype].itemsize
    header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
    offset = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  digest = hashlib.sha256()
  with open(path, "wb") as file:

    def put(data):
      digest.update(data)
      file.write(data)

    put(len(text).to_bytes(8, "little") + text)
    for name in shapes:
      # A transposed view has the right shape and the wrong bytes: copy it into C order.
      values = np.ascontiguousarray(round_to(tensor(name), dtype))
      if values.shape != shapes[name]:
        raise ValueError(f"{name} is {values.shape}, its header says {shapes[name]}")
      if not np.isfinite(values).all():
        raise CheckpointError(
            f"{name} has values that are infinite or NaN in {dtype}, so {path.parent.name} "
            "was not written. Convert an earlier checkpoint, or use float32 if the weights are "
            "finite."
        )
      put(values.reshape(-1).view(np.uint8))
  return digest.hexdigest()

"""The tensors of somebody's checkpoint, by name, whichever kind of file holds them."""

import contextlib
import json
from pathlib import Path
from typing import Callable, Protocol

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.interop.msgpack_reader import MsgpackFile
from vit_jax.interop.safetensors_reader import SafetensorsFile
from vit_jax.interop.tensor_table import first_ten
from vit_jax.interop.torch_reader import TorchFile

_READERS: dict[str, Callable] = {
    ".safetensors": SafetensorsFile,
    ".bin": TorchFile,
    ".pth": TorchFile,
    ".pt": TorchFile,
    ".msgpack": MsgpackFile,
}
_MAX_JSON = 1 << 26  # bytes; an index of ten thousand tensors has about one million
# In a directory the first that is there is read.
_NAMES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "flax_model.msgpack",
)


class _File(Protocol):
  """An open file: what `TensorSource` needs of a reader."""

  path: Path
  shapes: dict[str, tuple[int, ...]]

  def read(self, name: str) -> np.ndarray:
    ...

  def close(self) -> None:
    ...


class TensorSource:
  """Tensors of one file, or of the shards that an index names; a context manager.

  Attributes:
    path: the file, or the index of the shards: what an error should name.
    shapes: shape of each tensor by its name.
    lasting: whether tensors can be read after the source is closed.
  """

  def __init__(self, path: Path, files: list[Path]):
    """Opens the files; the tensors stay on disk where the format allows it.

    Raises:
      CheckpointError: a file is not what its name says, or truncated; no torch for its kind.
    """
    self.path = path
    self.shapes = {}
    self._owner: dict[str, _File] = {}
    with contextlib.ExitStack() as opened:
      for file in files:
        part = _READERS[file.suffix](file)
        opened.callback(part.close)
        if twice := self.shapes.keys() & part.shapes.keys():
          raise CheckpointError(
              f"{file} holds tensors that another file of {path} holds too: "
              f"{first_ten(sorted(twice))}. Copy the files again from their source."
          )
        self._owner |= dict.fromkeys(part.shapes, part)
        self.shapes |= part.shapes
      self._opened = opened.pop_all()
    self.lasting = all(getattr(part, "lasting", False) for part in self._owner.values())

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor as float32, which holds every value of the dtypes that are read.

    Raises:
      CheckpointError: it is neither float32 nor bfloat16 nor float16.
    """
    return self._owner[name].read(name)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._opened.close()


def open_tensors(path) -> TensorSource:
  """Opens a checkpoint's tensors.

  Args:
    path: a file that ends in .safetensors, .bin, .pth, .pt or .msgpack, or a directory with
      weights under one of transformers' names, single or in shards.

  Raises:
    CheckpointError: nothing there, a shard missing, truncated, or not what its name says.
  """
  path = Path(path)
  if path.is_dir():
    found = [path / name for name in _NAMES if (path / name).is_file()]
    if not found:
      raise CheckpointError(_no_weights(path))
    path = found[0]
  elif not path.is_file():
    raise CheckpointError(f"There is no file {path}. Check the path.")
  if path.name.endswith(".index.json"):
    return TensorSource(path, _shards(path))
  if path.suffix not in _READERS:
    raise CheckpointError(
        f"{path} does not end in any of {', '.join(_READERS)}, the files of tensors that are "
        "read. Name it by what it is."
    )
  return TensorSource(path, [path])


def _no_weights(directory: Path) -> str:
  tensorflow = directory / "tf_model.h5"
  if tensorflow.is_file():
    return (
        f"{directory} holds its weights as {tensorflow.name} alone, which is not read. Load it "
        "with transformers 4.57 and from_tf=True, and save it: that writes model.safetensors."
    )
  return f"{directory} has none of {', '.join(_NAMES)}. Copy the weights beside its config.json."


def _shards(index: Path) -> list[Path]:
  """The files named by an index."""
  names = read_json(index).get("weight_map")
  if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
    raise CheckpointError(f"{index} has no \"weight_map\" of tensor names to files.")
  names = sorted(set(names.values()))
  outside = [name for name in names if Path(name).name != name or Path(name).suffix not in _READERS]
  missing = [name for name in names if not (index.parent / name).is_file()]
  if outside or missing:
    raise CheckpointError(
        f"{index} names files that are not in its directory: {first_ten(outside or missing)}. "
        "Copy the missing shards beside it."
    )
  return [index.parent / name for name in names]


def read_json(path: Path) -> dict:
  """Reads a JSON object.

  Raises:
    CheckpointError: the file is unreadable, too large or holds something else.
  """
  try:
    if path.stat().st_size > _MAX_JSON:
      raise ValueError(f"it is larger than {_MAX_JSON:,} bytes")
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise CheckpointError(
        f"{path} cannot be read as JSON ({error}). Copy the file again from its source."
    ) from error
  if not isinstance(value, dict):
    raise CheckpointError(
        f"{path} holds a JSON {type(value).__name__} instead of an object. "
        "Copy the file again from its source."
    )
  return value

"""flax_model.msgpack, which transformers 4 wrote for its Flax classes, under PyTorch's names."""

from pathlib import Path

from flax import serialization
import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.interop.file_kinds import open_error
from vit_jax.interop.safetensors_writer import DTYPES
from vit_jax.interop.tensor_table import leaves

# Flax's names of the leaves of dense, convolution, embedding and norm layers.
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


class MsgpackFile:
  """One file, read whole; see `tensor_files.TensorSource`.

  Names and shapes are those of the PyTorch class: kernels [in, out] and [height, width, in, out]
  are turned to [out, in] and [out, in, height, width].
  """

  def __init__(self, path: Path):
    """Reads the file.

    Raises:
      CheckpointError: truncated, or another kind of file.
    """
    self.path = path
    try:
      tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack's own errors share no base class
      raise open_error(path, "msgpack", str(error) or type(error).__name__) from error
    if not isinstance(tree, dict):
      raise open_error(path, "msgpack", "it holds no tree of arrays")
    self._tensors = {}
    for (*parents, name), leaf in leaves(tree):
      array = np.asarray(leaf)
      if name == "kernel":
        array = array.transpose(*range(array.ndim)[:-3:-1], *range(array.ndim - 2))
      self._tensors[".".join((*parents, _LEAVES.get(name, name)))] = array
    self.shapes = {name: array.shape for name, array in self._tensors.items()}

  def read(self, name: str) -> np.ndarray:
    """One tensor as float32."""
    array = self._tensors[name]
    if array.dtype not in DTYPES.values():
      raise CheckpointError(
          f"{self.path}: {name} is of dtype {array.dtype}; float32, bfloat16 and float16 are read. "
          "Save the checkpoint in one of these."
      )
    return array.astype(np.float32)

  def close(self):
    self._tensors = {}

"""PyTorch's own files (.bin, .pth, .pt): tensors alone, no pickle is executed."""

import argparse
from pathlib import Path
import pickle
import re
from typing import Mapping

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.interop.file_kinds import open_error
from vit_jax.interop.tensor_table import first_ten

# Where training code keeps the weights beside optimizer and settings; DINO, DeiT, MAE and timm.
_WRAPPERS = ("model", "state_dict", "teacher")
# What torch says of an object that it would have to import and call.
_REASON = re.compile(r"(?:Unsupported global: GLOBAL|Unsupported class) (\S+)")


class TorchFile:
  """One file; see `tensor_files.TensorSource`."""

  def __init__(self, path: Path):
    """Reads the names; the tensors stay on disk, mapped, where the file is of the newer kind.

    Raises:
      CheckpointError: torch is not installed, or the file is truncated, of another kind, or holds
        more than tensors and plain values.
    """
    self.path = path
    content = _load(path)
    while isinstance(content, Mapping) and (inside := _wrapped(content)) is not None:
      content = inside
    tensors = {}
    if isinstance(content, Mapping):
      tensors = {str(k): v for k, v in content.items() if hasattr(v, "is_floating_point")}
    if not tensors:
      raise CheckpointError(
          f"{path} holds no tensors by name: neither at its top nor under "
          f"{' or '.join(_WRAPPERS)}. Give the file of the model's weights."
      )
    if empty := [name for name, tensor in tensors.items() if not _is_stored(tensor)]:
      raise CheckpointError(
          f"{path} holds tensors that claim more numbers than the file has: "
          f"{first_ten(sorted(empty))}. Copy it again from its source."
      )
    self._tensors = tensors
    self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor as float32."""
    import torch

    tensor = self._tensors[name]
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
      raise CheckpointError(
          f"{self.path}: {name} is of dtype {str(tensor.dtype).removeprefix('torch.')}; float32, "
          "bfloat16 and float16 are read. Save the checkpoint in one of these."
      )
    return tensor.detach().float().numpy()

  def close(self):
    self._tensors = {}


def _is_stored(tensor) -> bool:
  """Whether every number of a tensor lies in the file; not so of expanded, sparse and meta ones."""
  import torch

  if tensor.layout != torch.strided or tensor.device.type != "cpu":
    return False
  return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _wrapped(content: Mapping):
  """The dict of weights inside of a training checkpoint, None where `content` is that dict."""
  return next((content[k] for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)


def _load(path: Path):
  try:
    import torch
  except ImportError as error:
    raise CheckpointError(
        f"{path} is read by PyTorch, which is not installed: pip install 'vit_jax[torch]', or "
        "save the model as safetensors where it is."
    ) from error
  with open(path, "rb") as file:
    start = file.read(4)
  zipped = start == b"PK\x03\x04"
  if not zipped and start[:1] != b"\x80":  # nor a pickle, which older files are
    raise open_error(path, "PyTorch", "it is neither an archive nor a pickle")
  try:
    # Training scripts keep their arguments beside the weights; a Namespace runs nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
      return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
  except pickle.UnpicklingError as error:
    reason = _REASON.search(str(error))
    if reason is None:
      raise open_error(path, "PyTorch", "its pickle breaks off or is damaged") from error
    raise CheckpointError(
        f"{path} holds Python objects besides tensors ({reason[1]}). Loading these means executing "
        "the file, which is never done here. Where you trust it, load it with torch.load(..., "
        "weights_only=False) and save its state_dict alone."
    ) from error
  except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
    raise open_error(path, "PyTorch", str(error).partition("\n")[0]) from error

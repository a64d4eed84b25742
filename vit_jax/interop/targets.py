"""The formats that a checkpoint is written to, by the name of `convert --to`.

Each is a module of one shape:
  read(path, *, streamed) -> Imported, see `tensor_table.read_params`
  choose(model, architecture or None) -> the class to write
  fit(model, params, architecture) -> (model, params), the same function as the format stores it
  write(directory, *, model, params, preprocessing, labels, architecture, dtype,
        max_shard_bytes) -> report
  judge(directory, batches, patch_mask) -> {batch: {name: array}} by another library, or None
"""

import importlib
from types import ModuleType
from typing import Mapping

from vit_jax.errors import CheckpointError

TARGETS = {
    "huggingface": "huggingface",
    "timm": "timm_directory",
    "google-npz": "google_npz",
    "big-vision-npz": "big_vision_npz",
    "orbax": "orbax_directory",
}


def target(name: str) -> ModuleType:
  """The module of a format, imported when it is needed; `name` is a key of `TARGETS`."""
  return importlib.import_module(f"vit_jax.interop.{TARGETS[name]}")


def choose(module: ModuleType, model: Mapping, architecture: str | None) -> str:
  """As `module.choose`, but a refusal names the other formats that hold the whole model.

  Raises:
    ConfigError: no such class.
    CheckpointError: the format cannot hold the model.
  """
  try:
    return module.choose(model, architecture)
  except CheckpointError as error:
    others = [
        f"--to={name}" for name in TARGETS if target(name) is not module and _holds(name, model)
    ]
    raise CheckpointError(f"{error} Whole it can be written {' or '.join(others)}.") from error


def _holds(name: str, model: Mapping) -> bool:
  try:
    target(name).choose(model, None)
  except CheckpointError:
    return False
  return True

"""Whatever lies at a path, read by the format that it is in."""

from pathlib import Path
import re

from vit_jax.errors import CheckpointError
from vit_jax.interop.export_directory import MARK
from vit_jax.interop.imported import Imported
from vit_jax.interop.targets import TARGETS, target
from vit_jax.interop.tensor_files import read_json

_STATE_DICTS = (".safetensors", ".bin", ".pth", ".pt")
# Of a directory, whose config.json says what model they are.
_OF_DIRECTORIES = re.compile(r"(model|pytorch_model|flax_model)(-\d+-of-\d+)?\.\w+")

# What a file can provoke that was made to, beyond what its reader foresees.
_UNSOUND = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError,
    ValueError,
)


def read(path: Path, *, streamed: bool = False) -> Imported:
  """Reads a directory (Hugging Face, timm, or one of our exports) or a file of weights.

  Args:
    streamed: leave the blocks' parameters in the file where that can be, see `read_params`.

  Raises:
    CheckpointError: nothing that is known, or damaged; the text says what was looked for.
  """
  path = Path(path)
  try:
    return _read(path, streamed)
  except _UNSOUND as error:
    raise CheckpointError(
        f"{path} is unsound ({type(error).__name__}: {error}). Copy it again from its source."
    ) from error


def _read(path: Path, streamed: bool) -> Imported:
  if path.is_dir():
    return _read_directory(path, streamed)
  if not path.is_file():
    raise CheckpointError(f"there is no file or directory {path}")
  if path.suffix == ".npz":
    from vit_jax.interop import npz_files

    return npz_files.read(path)
  if path.suffix in (*_STATE_DICTS, ".msgpack"):
    if _OF_DIRECTORIES.fullmatch(path.name) and (path.parent / "config.json").is_file():
      return _read_directory(path.parent, streamed)
    if path.suffix in _STATE_DICTS:
      return target("timm").read(path, streamed=streamed)
    raise CheckpointError(
        f"{path} says nothing of its model: keep it as flax_model.msgpack beside its config.json"
    )
  raise CheckpointError(
      f"{path} is not a checkpoint that can be read: known are directories of Hugging Face, timm "
      f"and vit_jax, and files ending in .npz, {', '.join(_STATE_DICTS)} or .msgpack. Give the "
      "file the ending of its format if it lost it."
  )


def _read_directory(directory: Path, streamed: bool) -> Imported:
  config_file, mark = directory / "config.json", directory / MARK
  written = read_json(mark).get("format") if mark.is_file() else None
  if written in TARGETS:
    return target(written).read(directory, streamed=streamed)
  if config_file.is_file():
    config = read_json(config_file)
    # A timm directory names an architecture, a Hugging Face one a model_type.
    timm = "architecture" in config and config.get("model_type", "timm_wrapper") == "timm_wrapper"
    return target("timm" if timm else "huggingface").read(directory, streamed=streamed)
  files = sorted(directory.glob("*.npz"))
  if len(files) == 1:
    return read(files[0])
  raise CheckpointError(
      f"{directory} is neither a run of vit_jax (run.json and checkpoints/) nor a directory of "
      "Hugging Face or timm (config.json and weights), nor one of our exports"
  )

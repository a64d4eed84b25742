"""Whatever lies at a path, read by the format that it is in."""

from pathlib import Path

from vit_jax.errors import CheckpointError
from vit_jax.interop.export_directory import MARK
from vit_jax.interop.imported import Imported
from vit_jax.interop.targets import TARGETS, target
from vit_jax.interop.tensor_files import read_json

_STATE_DICTS = (".safetensors", ".bin", ".pth", ".pt")


def read(path: Path) -> Imported:
  """Reads a directory (Hugging Face, timm, or one of our exports) or a file of weights.

  Raises:
    CheckpointError: nothing that is known, or damaged; the text says what was looked for.
  """
  path = Path(path)
  if path.is_dir():
    return _read_directory(path)
  if not path.is_file():
    raise CheckpointError(f"there is no file or directory {path}")
  if path.suffix == ".npz":
    from vit_jax.interop import npz_files

    return npz_files.read(path)
  if path.suffix in (*_STATE_DICTS, ".msgpack"):
    if (path.parent / "config.json").is_file():
      return _read_directory(path.parent)
    if path.suffix in _STATE_DICTS:
      return target("timm").read(path)
    raise CheckpointError(
        f"{path} has no config.json beside it, which says what model it is: copy it there"
    )
  raise CheckpointError(
      f"{path} is not a checkpoint that can be read: known are directories of Hugging Face, timm "
      f"and vit_jax, and files ending in .npz, {', '.join(_STATE_DICTS)} or .msgpack. Give the "
      "file the ending of its format if it lost it."
  )


def _read_directory(directory: Path) -> Imported:
  config_file, mark = directory / "config.json", directory / MARK
  written = read_json(mark).get("format") if mark.is_file() else None
  if written in TARGETS:
    return target(written).read(directory)
  if config_file.is_file():
    config = read_json(config_file)
    # A timm directory names an architecture, a Hugging Face one a model_type.
    timm = "architecture" in config and config.get("model_type", "timm_wrapper") == "timm_wrapper"
    return target("timm" if timm else "huggingface").read(directory)
  files = sorted(directory.glob("*.npz"))
  if len(files) == 1:
    return read(files[0])
  raise CheckpointError(
      f"{directory} is neither a run of vit_jax (run.json and checkpoints/) nor a directory of "
      "Hugging Face or timm (config.json and weights), nor one of our exports"
  )

"""A directory of exported files that appears complete or not at all."""

import contextlib
import os
from pathlib import Path
import shutil
from typing import Iterator

from vit_jax.errors import CheckpointError
from vit_jax.interop.tensor_files import first_ten

# Every export has it: a directory without it was not written here.
MARK = "conversion.json"


@contextlib.contextmanager
def new_export(directory, *, files: set[str]) -> Iterator[Path]:
  """Gives an empty directory to fill, and puts it in the place of `directory` at the end.

  Args:
    directory: where the export is wanted; parents are made.
    files: names that an export may consist of, `MARK` among them.  An earlier export there is
      replaced, a directory with anything else is refused.

  Yields:
    The directory to write into, a sibling that vanishes if the writing fails.

  Raises:
    CheckpointError: the place is taken, or the disk is full or not writable.
  """
  target = Path(directory).resolve()
  _refuse_foreign(target, files)
  partial = target.parent / f".{target.name}.writing"
  try:
    # A writer that was killed left this behind; nobody reads it.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    _replace(partial, target)
  except OSError as error:
    raise CheckpointError(
        f"{target} cannot be written: {error}. Free some space or choose another directory."
    ) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _refuse_foreign(target: Path, files: set[str]):
  if not target.exists():
    return
  if not target.is_dir():
    raise CheckpointError(f"{target} is a file; choose a directory that does not exist yet.")
  present = {path.name for path in target.iterdir()}
  if present and (present - files or MARK not in present):
    raise CheckpointError(
        f"{target} holds files that were not exported by vit_jax: "
        f"{first_ten(sorted(present - files) or sorted(present))}. "
        "Choose another directory, or move them away."
    )


def _replace(partial: Path, target: Path):
  """Renames `partial` to `target`; an earlier one makes room, and returns if that fails."""
  if not target.exists():
    os.rename(partial, target)
    return
  old = target.parent / f".{target.name}.replaced"
  shutil.rmtree(old, ignore_errors=True)
  os.rename(target, old)
  try:
    os.rename(partial, target)
  except OSError:
    os.rename(old, target)
    raise
  shutil.rmtree(old)

"""A directory of exported files that appears complete or not at all."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import Iterator, Mapping

import vit_jax
from vit_jax.errors import CheckpointError
from vit_jax.interop.tensor_files import read_json
from vit_jax.interop.tensor_table import first_ten

# Every export has it, and it lists the export's other files: a directory without it was not
# written here.
MARK = "conversion.json"
# Publishing adds a model card.
_ADDED = ("README.md",)


@contextlib.contextmanager
def new_export(directory) -> Iterator[Path]:
  """Gives an empty directory to fill, and puts it in the place of `directory` at the end.

  Args:
    directory: where the export is wanted; parents are made.  An earlier export there is replaced,
      a directory with anything else is refused.

  Yields:
    The directory to write into, a sibling that vanishes if the writing fails.

  Raises:
    CheckpointError: the place is taken, or the disk is full or not writable.
  """
  target = Path(directory).resolve()
  partial = target.parent / f".{target.name}.writing"
  try:
    _recover(target)
    _refuse_foreign(target)
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


def write_report(directory: Path, report: Mapping) -> dict:
  """Writes the report on an export, whose proof is still to come, and returns what it wrote."""
  report = {**report, "vit_jax": vit_jax.__version__, "verification": None}
  write_json(directory / MARK, report)
  return report


def write_json(path: Path, content: Mapping) -> str:
  """Writes a JSON file that people can read; gives its sha256 in hexadecimal."""
  data = (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
  path.write_bytes(data)
  return hashlib.sha256(data).hexdigest()


def _replaced(target: Path) -> Path:
  """Where an earlier export waits while the new one takes its place."""
  return target.parent / f".{target.name}.replaced"


def _recover(target: Path):
  """Puts an earlier export back that a writer left aside, killed between its two renames."""
  if _replaced(target).is_dir() and not target.exists():
    os.rename(_replaced(target), target)


def _refuse_foreign(target: Path):
  if not target.exists():
    return
  if not target.is_dir():
    raise CheckpointError(f"{target} is a file; choose a directory that does not exist yet.")
  present = {
      path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()
  }
  if not present:
    return
  ours = set()
  if MARK in present:
    ours = {MARK, *_ADDED, *(read_json(target / MARK).get("files") or ())}
  if foreign := present - ours:
    raise CheckpointError(
        f"{target} holds files that were not exported by vit_jax: {first_ten(sorted(foreign))}. "
        "Choose another directory, or move them away."
    )


def _replace(partial: Path, target: Path):
  """Renames `partial` to `target`; an earlier one makes room, and returns if that fails."""
  if not target.exists():
    os.rename(partial, target)
    return
  old = _replaced(target)
  shutil.rmtree(old, ignore_errors=True)
  os.rename(target, old)
  try:
    os.rename(partial, target)
  except OSError:
    os.rename(old, target)
    raise
  shutil.rmtree(old)

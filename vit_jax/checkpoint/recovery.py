"""Putting a directory of checkpoints in order after a crash, before anything is saved to it."""

import os
from typing import NamedTuple

from etils import epath

from vit_jax.bucket.path import is_bucket
from vit_jax.checkpoint import manifest
from vit_jax.errors import CheckpointError

_TEMPORARY = "orbax-checkpoint-tmp"


class Recovery(NamedTuple):
  """What was found and done: one sentence a change, and the newest good step or None."""

  notes: list[str]
  step: int | None


def step_directories(directory: epath.Path) -> dict[int, epath.Path]:
  """Every STEP/ below `directory`, committed or not, ascending; OSError if it cannot be seen."""
  if not _is_there(directory):
    return {}
  found = {
      int(path.name): path
      for path in directory.iterdir()
      if path.name.isascii() and path.name.isdigit()
  }
  return dict(sorted(found.items()))


def _is_there(directory: epath.Path) -> bool:
  """Whether there is such a directory.

  Raises:
    OSError: it cannot be seen, or is a link to what is not there, as where a disk is not mounted.
  """
  if is_bucket(directory):
    return directory.is_dir()
  try:
    os.scandir(directory).close()
  except FileNotFoundError:
    if os.path.lexists(directory):
      raise
    return False
  return True


def is_lost(directory: epath.Path) -> bool:
  """Whether there are only steps that were set aside."""
  if not _is_there(directory) or step_directories(directory):
    return False
  return any(".corrupt" in path.name for path in directory.iterdir())


def recover(directory: epath.Path, *, strict: bool = False, beyond: int = -1) -> Recovery:
  """Removes what was never committed and sets damaged steps aside as STEP.corrupt.

  Orbax refuses to save a step below the newest that it sees, so an unusable step must not keep
  its name.  Verification starts with the newest step and ends at the first good one.

  Args:
    strict: whether to raise where the newest step is damaged, rather than set it aside.
    beyond: the step at which verification ends, too, with no good one found.

  Raises:
    OSError: something cannot be removed or renamed.
    CheckpointError: see `strict`; it names every damaged file.
  """
  notes = []
  if not _is_there(directory):
    return Recovery(notes, None)
  for path in sorted(directory.iterdir()):
    if _TEMPORARY in path.name:
      path.rmtree()
      notes.append(f"Removed {path}, left over from an interrupted save.")
  steps = step_directories(directory)
  for path in steps.values():
    if not manifest.exists(path):
      path.rmtree()
      notes.append(f"Removed {path}, whose save never finished.")
  committed = [step for step, path in steps.items() if step > beyond and path.exists()]
  for step in reversed(committed):
    problems = manifest.problems(steps[step])
    if not problems:
      return Recovery(notes, step)
    if strict:
      raise CheckpointError(
          f"Step {step}, the newest in {directory}, is damaged, and --strict goes on from no other:"
          f" {'; '.join(problems)}. Copy it again from where it is intact, or leave out --strict to"
          " go on from the newest that is good"
      )
    aside = set_aside(steps[step])
    notes.append(f"Step {step} is damaged ({summary(problems)}): moved to {aside}.")
  return Recovery(notes, None)


def discard(directory: epath.Path, step: int) -> None:
  """Removes what an interrupted save of a step has left; nothing where it is committed.

  Raises:
    OSError: something cannot be removed.
  """
  for path in list(directory.iterdir()):
    if path.name.startswith(f"{step}.{_TEMPORARY}"):
      path.rmtree()
    elif path.name == str(step) and not manifest.exists(path):
      path.rmtree()


def summary(problems: list[str], *, listed: int = 3) -> str:
  """The first `listed` of `problems` in one line, and how many more there are."""
  text = "; ".join(problems[:listed])
  more = len(problems) - listed
  return f"{text}; and {more} more" if more > 0 else text


def set_aside(path: epath.Path) -> epath.Path:
  """Renames a step's directory and returns the new one.

  In a bucket every object is copied, within the storage service, and then deleted; the manifest is
  the last to be copied and the first to go, so that an interruption leaves the step as it was or
  uncommitted.
  """
  aside = _free_name(path)
  if not is_bucket(path):
    path.rename(aside)
    return aside
  for name in path.below():
    if name != manifest.NAME:
      (path / name).copy_to(aside / name)
  (path / manifest.NAME).copy_to(aside / manifest.NAME)
  (path / manifest.NAME).unlink()
  path.rmtree()
  return aside


def _free_name(path: epath.Path) -> epath.Path:
  candidate, number = path.with_name(path.name + ".corrupt"), 2
  # Half a copy has no manifest.
  while manifest.exists(candidate) if is_bucket(path) else candidate.exists():
    candidate, number = path.with_name(f"{path.name}.corrupt{number}"), number + 1
  return candidate

"""Putting a directory of checkpoints in order after a crash, before anything is saved to it."""

import os
from typing import NamedTuple

from etils import epath

from vit_jax.bucket.path import is_bucket
from vit_jax.checkpoint import commit, manifest
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
  """Whether there are only steps that were set aside, or marks of steps that are gone."""
  if not _is_there(directory) or step_directories(directory):
    return False
  names = [path.name for path in directory.iterdir()]
  return bool(commit.marked(names)) or any(".corrupt" in name for name in names)


def recover(directory: epath.Path, *, strict: bool = False, beyond: int = -1) -> Recovery:
  """Removes what was never committed and sets damaged steps aside as STEP.corrupt.

  Orbax refuses to save a step below the newest that it sees, so an unusable step must not keep
  its name.  Verification starts with the newest step and ends at the first good one.  Marks of
  steps that are gone stay until there is a good one.

  Args:
    strict: whether to raise where the newest step is damaged or gone, rather than go on.
    beyond: the step at which verification ends, too, with no good one found.

  Raises:
    OSError: something cannot be removed or renamed.
    CheckpointError: see `strict`; it names every damaged file.
  """
  if not _is_there(directory):
    return Recovery([], None)
  notes = _remove_uncommitted(directory)
  steps = step_directories(directory)
  gone = _marked_and_gone(directory, steps)
  notes += [f"Step {step} was committed in {directory}, and is gone." for step in gone]
  if strict and max(gone, default=-1) > max([*steps, beyond]):
    raise CheckpointError(
        f"Step {gone[-1]}, the newest in {directory}, is gone, and --strict goes on from no other."
        " Copy it there again from where it is intact, or leave out --strict to go on from the"
        " newest that is good"
    )
  found = _newest_good(directory, steps, notes, strict=strict, beyond=beyond)
  if found is not None or beyond >= 0:
    for step in gone:
      commit.unmark(directory / str(step))
  return Recovery(notes, found)


def _remove_uncommitted(directory: epath.Path) -> list[str]:
  """Returns what was removed; marks the rest, which an older version or a kill left without."""
  notes = []
  names = [path.name for path in directory.iterdir()]
  for name in sorted(names):
    if _TEMPORARY in name:
      (directory / name).rmtree()
      notes.append(f"Removed {directory / name}, left over from an interrupted save.")
  marked = commit.marked(names)
  for step, path in step_directories(directory).items():
    if step not in marked and not manifest.exists(path):
      path.rmtree()
      notes.append(f"Removed {path}, whose save never finished.")
    elif step not in marked:
      commit.mark(path)
  return notes


def _marked_and_gone(directory: epath.Path, steps: dict) -> list[int]:
  """Steps that were committed and that nobody set aside, ascending; unmarks those set aside."""
  names = [path.name for path in directory.iterdir()]
  gone = commit.marked(names) - steps.keys()
  for step in [step for step in gone if f"{step}.corrupt" in names]:
    commit.unmark(directory / str(step))  # a kill kept it from being done
    gone.remove(step)
  return sorted(gone)


def _newest_good(
    directory: epath.Path, steps: dict, notes: list[str], *, strict: bool, beyond: int
) -> int | None:
  """Sets aside what is newer and damaged, and notes that; `strict`, `beyond` as of `recover`."""
  for step in sorted(steps, reverse=True):
    if step <= beyond:
      break
    problems = manifest.problems(steps[step])
    if not problems:
      return step
    if strict:
      raise CheckpointError(
          f"Step {step}, the newest in {directory}, is damaged, and --strict goes on from no other:"
          f" {'; '.join(problems)}. Copy it again from where it is intact, or leave out --strict to"
          " go on from the newest that is good"
      )
    aside = set_aside(steps[step])
    notes.append(f"Step {step} is damaged ({summary(problems)}): moved to {aside}.")
  return None


def discard(directory: epath.Path, step: int) -> None:
  """Removes what an interrupted save of a step has left; nothing where it is committed.

  Raises:
    OSError: something cannot be removed.
  """
  for path in list(directory.iterdir()):
    if path.name.startswith(f"{step}.{_TEMPORARY}"):
      path.rmtree()
    elif path.name == str(step) and not commit.is_committed(path):
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
    commit.unmark(path)
    return aside
  names = path.below()
  for name in sorted(names, key=lambda name: name == manifest.NAME):
    (path / name).copy_to(aside / name)
  commit.withdraw(path)
  path.rmtree()
  return aside


def _free_name(path: epath.Path) -> epath.Path:
  candidate, number = path.with_name(path.name + ".corrupt"), 2
  # Half a copy has no manifest.
  while manifest.exists(candidate) if is_bucket(path) else candidate.exists():
    candidate, number = path.with_name(f"{path.name}.corrupt{number}"), number + 1
  return candidate

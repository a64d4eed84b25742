"""Putting a directory of checkpoints in order after a crash, before anything is saved to it."""

import itertools
import os
from typing import Iterator, NamedTuple

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
  its name.  Verification starts with the newest step and ends at the first good one; steps that
  have lost their manifest are set aside wherever they are.

  Args:
    strict: whether to raise where the newest step is damaged or gone, rather than go on.
    beyond: the step at which verification ends, too, with no good one found.

  Raises:
    OSError: something cannot be removed or renamed.
    CheckpointError: see `strict`; it names every damaged file.
  """
  if not _is_there(directory):
    return Recovery([], None)
  names = sorted(path.name for path in directory.iterdir())
  marked = commit.marked(names)
  notes, lost = _remove_uncommitted(directory, names, marked)
  steps = step_directories(directory)
  gone = sorted(marked - steps.keys())
  notes += [f"Step {step} was committed in {directory}, and is gone." for step in gone]
  if strict and max(gone, default=-1) > max([*steps, beyond + 1]):
    raise CheckpointError(
        f"Step {gone[-1]}, the newest in {directory}, is gone, and --strict goes on from no other."
        " Copy it there again from where it is intact, or leave out --strict to go on from the"
        " newest that is good"
    )
  good = None
  for step in sorted(steps, reverse=True):
    asked = good is None and step > beyond
    if not asked and step not in lost:
      continue
    problems = manifest.problems(steps[step])
    if not problems:
      good = step if asked else good
      continue
    if strict and asked:
      raise CheckpointError(
          f"Step {step}, the newest in {directory}, is damaged, and --strict goes on from no other:"
          f" {'; '.join(problems)}. Copy it again from where it is intact, or leave out --strict to"
          " go on from the newest that is good"
      )
    aside = set_aside(steps[step])
    notes.append(f"Step {step} is damaged ({summary(problems)}): moved to {aside}.")
  return Recovery(notes, good)


def _remove_uncommitted(
    directory: epath.Path, names: list[str], marked: set[int]
) -> tuple[list[str], set[int]]:
  """Removes what was never committed; marks what a kill or an older version left unmarked.

  Returns:
    What was removed, a sentence each; and the steps that have lost their manifest.
  """
  notes, lost = [], set()
  for name in names:
    if _TEMPORARY in name:
      (directory / name).rmtree()
      notes.append(f"Removed {directory / name}, left over from an interrupted save.")
  for step, path in step_directories(directory).items():
    if manifest.exists(path):
      if step not in marked:
        commit.mark(path)
    elif step in marked:
      lost.add(step)
    else:
      path.rmtree()
      notes.append(f"Removed {path}, whose save never finished.")
  return notes, lost


def forget_gone(directory: epath.Path) -> None:
  """Deletes the marks of steps that are gone, so that they can be saved anew.

  Raises:
    OSError: one cannot be deleted.
  """
  if not _is_there(directory):  # a bucket's goes with the last thing in it
    return
  marked = commit.marked(path.name for path in directory.iterdir())
  for step in marked - step_directories(directory).keys():
    commit.unmark(directory / str(step))


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
  the last to be copied and, after the mark, the first to go, so that an interruption leaves the
  step as it was or uncommitted.
  """
  if is_bucket(path):
    return _copied_aside(path)
  aside = next(name for name in _asides(path) if not name.exists())
  # A kill between the two leaves what is found damaged again: it has a manifest, or is marked.
  if manifest.exists(path):
    commit.unmark(path)
    path.rename(aside)
  else:
    path.rename(aside)
    commit.unmark(path)
  return aside


def _copied_aside(path: epath.Path) -> epath.Path:
  names = path.below()
  # Half a copy of this step has no manifest, and nothing that this step has not.
  aside = next(
      name for name in _asides(path)
      if not manifest.exists(name) and not name.below().keys() - names.keys()
  )
  for name in sorted(names, key=lambda name: name == manifest.NAME):
    (path / name).copy_to(aside / name)
  commit.withdraw(path)
  path.rmtree()
  return aside


def _asides(path: epath.Path) -> Iterator[epath.Path]:
  """STEP.corrupt, STEP.corrupt2, ..."""
  yield path.with_name(path.name + ".corrupt")
  for number in itertools.count(2):
    yield path.with_name(f"{path.name}.corrupt{number}")

"""Which steps were committed: those that have a manifest, or have lost it.

A save that was killed before its end leaves a step without a manifest, and so does a disk or a hand
that loses the manifest of a good one.  What tells them apart is the mark, an empty file
`STEP.committed` beside STEP/: it is written after the manifest, and deleted before it.  Only what
has a manifest is kept, copied and restored; the mark is asked where a run starts, and by those who
look at one.
"""

import contextlib
from typing import Iterable

from etils import epath

from vit_jax.checkpoint import manifest

_SUFFIX = ".committed"


def is_committed(directory: epath.Path) -> bool:
  """Whether the step in `directory` was committed; its manifest may be lost.

  Raises:
    OSError: that cannot be seen now.
  """
  return manifest.exists(directory) or manifest.is_there(_mark_of(directory))


def mark(directory: epath.Path) -> None:
  """Marks a step that has a manifest.

  Where there is no room for that, the next start does it: the step is committed as it is.
  """
  with contextlib.suppress(OSError):
    _mark_of(directory).write_text("")


def withdraw(directory: epath.Path) -> None:
  """Makes a step one that was never committed, so that no half of it looks as if it were.

  Raises:
    OSError: its mark or its manifest cannot be deleted.
  """
  unmark(directory)
  (directory / manifest.NAME).unlink(missing_ok=True)


def unmark(directory: epath.Path) -> None:
  """Deletes the mark of a step, if there is one; raises OSError where it cannot."""
  _mark_of(directory).unlink(missing_ok=True)


def marked(names: Iterable[str]) -> set[int]:
  """The steps of which there is a mark among the names in a directory of checkpoints."""
  steps = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
  return {int(step) for step in steps if step.isascii() and step.isdigit()}


def _mark_of(directory: epath.Path) -> epath.Path:
  return directory.with_name(directory.name + _SUFFIX)

"""Saves that are tried again while the training goes on, so that a full disk costs no run."""

import sys
import time
from typing import Callable

import jax

from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.errors import SaveLost, WriteFailed

_LONGEST = 600.0  # seconds between two attempts
SLOW = 60.0  # seconds of a save, after which it is said, and after twice as many again
_STALLED = 1.0  # seconds that training waited for the save before


def pause(failures: int) -> float:
  """Seconds to wait after so many failures in a row, 1 and more."""
  return min(2.0 ** (failures - 1), _LONGEST)


class Saves:
  """The saves of a run.

  A save that fails is said at once, and tried again with the state of then: 1 s later, then 2 s, 4
  s, ... up to 10 minutes after the attempt before.  Until one succeeds, no other falls due but the
  run's last.  Of several processes one alone may see its disk fail, while the others save: there
  the first failure ends all of them, with the exit code on which a launcher starts them again.
  """

  def __init__(
      self, checkpoints: Checkpoints, *, retries: int, before: Callable[[], None] | None = None
  ):
    """Nothing is saved yet.

    Args:
      checkpoints: where to; nobody else saves there.
      retries: attempts after the first one that failed; past them each method raises WriteFailed,
        of several processes SaveLost at once.
      before: is called before each save; its WriteFailed makes this a save that failed.
    """
    self._checkpoints = checkpoints
    self._before = before
    self._retries = retries
    self._failures = 0  # since the last that succeeded
    self._next = 0.0  # when to try again
    self._begun = 0.0
    self._patience = SLOW

  def due(self, due: bool, *, last: bool) -> bool:
    """Whether to save after this step.

    Args:
      due: whether it falls due by the run's intervals.
      last: whether the run ends here.
    """
    if not self._failures or self._checkpoints.saving:
      return due
    return last or time.monotonic() >= self._next

  def save(self, step: int, **state) -> bool:
    """As `Checkpoints.save`; True also where it failed and will be tried again."""
    asked, earlier = time.monotonic(), self._checkpoints.saving
    try:
      if earlier:
        self._checkpoints.wait()
        self._succeeded()
        self._say_stall(step, time.monotonic() - asked)
      if self._before is not None:
        self._before()
      begun = self._checkpoints.save(step, **state)
    except WriteFailed as error:
      self._failed(error)
      return True
    self._begun, self._patience = time.monotonic(), SLOW
    if not begun and self._failures:  # committed after all, though the answer got lost
      self._succeeded()
      return True
    return begun

  def check(self) -> None:
    """Says how the save in the background went, or that it takes long; never waits."""
    saving = self._checkpoints.saving
    try:
      self._checkpoints.check()
    except WriteFailed as error:
      self._failed(error)
      return
    if not saving:
      return
    if not self._checkpoints.saving:
      self._succeeded()
    elif time.monotonic() - self._begun > self._patience:
      say(f"A save has taken {self._patience:.0f} s so far: {self._checkpoints.directory} is slow")
      self._patience *= 2

  def settled(self) -> bool:
    """Waits for the last save; False where it is to be tried again, after the pause before that."""
    try:
      if self._checkpoints.saving:
        self._checkpoints.wait()
        self._succeeded()
    except WriteFailed as error:
      self._failed(error)
    if self._failures:
      time.sleep(max(0.0, self._next - time.monotonic()))
    return not self._failures

  def _failed(self, error: WriteFailed) -> None:
    self._failures += 1
    if jax.process_count() > 1:
      raise SaveLost(
          f"{error}. Start all processes again; the same command continues the run"
      ) from error
    if self._failures > self._retries:
      raise WriteFailed(
          f"{error}, then repeat the command"
          + (f". It was tried {self._failures} times" if self._retries else "")
      ) from error
    seconds = pause(self._failures)
    self._next = time.monotonic() + seconds
    say(
        f"{error}. Training goes on; the save is tried again in {seconds:.0f} s (retry"
        f" {self._failures} of {self._retries})"
    )

  def _succeeded(self) -> None:
    if self._failures:
      say(f"Saving succeeded again, after {self._failures} failures")
    self._failures = 0

  def _say_stall(self, step: int, seconds: float) -> None:
    if seconds > _STALLED:
      say(
          f"Training waited {seconds:.1f} s at step {step} until the checkpoint before was written:"
          " raise config.checkpoint.every, or save to a faster disk"
      )


def say(text: str) -> None:
  """Warns whoever watches the run."""
  print(f"warning: {text}.", file=sys.stderr, flush=True)

"""Saves that are tried again while the training goes on, so that a full disk costs no run."""

import time
from typing import Callable

import jax

from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.errors import SaveLost, warn, WriteFailed

_LONGEST = 600.0  # seconds between two attempts
_SLOW = 60.0  # seconds of a save, after which it is said, and after twice as many again
_STALLED = 1.0  # seconds that training waited for the save before


class Attempts:
  """Counts how often in a row one kind of work has failed; says that, and what takes long.

  Attributes:
    failures: since it last succeeded.
  """

  def __init__(self, noun: str, doing: str, *, retries: int, where):
    """Nothing has failed, or begun.

    Args:
      noun, doing: what the work is called, "save" and "Saving".
      retries: attempts after the first one that failed.
      where: the directory that it is done in.
    """
    self._noun, self._doing, self._retries, self._where = noun, doing, retries, where
    self.failures = 0
    self._next = 0.0  # when to try again
    self._begun: float | None = None
    self._patience = _SLOW

  def begun(self) -> None:
    """From here on it may take long."""
    self._begun, self._patience = time.monotonic(), _SLOW

  @property
  def pause(self) -> float:
    """Seconds until it is to be tried again; 0 where it has not failed."""
    return max(0.0, self._next - time.monotonic())

  def say_slow(self) -> None:
    """Says where it has taken long; never waits."""
    begun = self._begun
    if begun is not None and time.monotonic() - begun > self._patience:
      warn(f"A {self._noun} has taken {self._patience:.0f} s so far: {self._where} is slow.")
      self._patience *= 2

  def failed(self, error: WriteFailed) -> None:
    """Says when it is tried again; raises WriteFailed where it has failed too often."""
    self._begun = None
    self.failures += 1
    if self.failures > self._retries:
      tried = f". It was tried {self.failures} times" if self._retries else ""
      raise WriteFailed(f"{error}, then repeat the command{tried}") from error
    # 1 s, 2 s, 4 s, ...
    seconds = min(2.0 ** (self.failures - 1), _LONGEST)
    self._next = time.monotonic() + seconds
    warn(
        f"{error}. Training goes on; the {self._noun} is tried again in {seconds:.0f} s (retry"
        f" {self.failures} of {self._retries})."
    )

  def succeeded(self) -> None:
    """The count begins anew."""
    self._begun = None
    if self.failures:
      warn(f"{self._doing} succeeded again, after {self.failures} failures.")
    self.failures, self._next = 0, 0.0


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
    self._attempts = Attempts("save", "Saving", retries=retries, where=checkpoints.directory)

  def due(self, due: bool, *, last: bool) -> bool:
    """Whether to save after this step.

    Args:
      due: whether it falls due by the run's intervals.
      last: whether the run ends here.
    """
    if not self._attempts.failures or self._checkpoints.saving:
      return due
    return last or not self._attempts.pause

  def save(self, step: int, **state) -> bool:
    """As `Checkpoints.save`; True also where it failed and will be tried again."""
    asked, earlier = time.monotonic(), self._checkpoints.saving
    try:
      if earlier:
        self._checkpoints.wait()
        self._attempts.succeeded()
        self._say_stall(step, time.monotonic() - asked)
      if self._before is not None:
        self._before()
      begun = self._checkpoints.save(step, **state)
    except WriteFailed as error:
      self._failed(error)
      return True
    self._attempts.begun()
    if not begun and self._attempts.failures:  # committed after all, though the answer got lost
      self._attempts.succeeded()
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
      self._attempts.succeeded()
    else:
      self._attempts.say_slow()

  def settled(self) -> bool:
    """Waits for the last save; False where it is to be tried again, after the pause before that."""
    try:
      if self._checkpoints.saving:
        self._checkpoints.wait()
        self._attempts.succeeded()
    except WriteFailed as error:
      self._failed(error)
    time.sleep(self._attempts.pause)
    return not self._attempts.failures

  def _failed(self, error: WriteFailed) -> None:
    if jax.process_count() > 1:
      raise SaveLost(
          f"{error}. Start all processes again; the same command continues the run"
      ) from error
    self._attempts.failed(error)

  def _say_stall(self, step: int, seconds: float) -> None:
    if seconds > _STALLED:
      warn(
          f"Training waited {seconds:.1f} s at step {step} until the checkpoint before was written:"
          " raise config.checkpoint.every, or save to a faster disk."
      )

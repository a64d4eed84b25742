"""A run that hangs says where, and ends: a restart helps, waiting does not."""

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
import time
from typing import Callable

from vit_jax.bucket.path import place

# What may take this many times as long as a step: it reads or writes terabytes, or compiles.
_PATIENT = 4
_EXIT_CODE = 75
# Seconds to say what hangs; the disk or the terminal may hang, too.
_SAYING = 10.0


class Watchdog:
  """Context that ends the process with exit code 75 when nothing of a run ends for long.

  The run says what it begins (`enter`); each beginning is the end of what came before.  When the
  last one is too long ago, the stacks of all threads go to stderr and to RUN/logs/.  Time in which
  the whole process stood still (a laptop asleep, SIGSTOP) does not count.
  """

  def __init__(
      self, seconds: float | None, *, directory: str | os.PathLike, process: int = 0,
      end: Callable[[int], None] = os._exit,
  ):
    """Nothing is watched yet.

    Args:
      seconds: that a step, or waiting for its input, may take; other phases four times as
        much.  None or 0: never ends anything.
      directory: of the run.
      process: index of this process, for the message.
      end: ends the process.
    """
    self._seconds, self._process, self._end = seconds, process, end
    self._path = place(directory) / "logs" / f"hang.{process}.txt"
    self._phase, self._step, self._limit = "the start", 0, _PATIENT * (seconds or 0)
    self._waited = 0.0
    self._ended = threading.Event()

  def __enter__(self):
    if self._seconds:
      threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
    return self

  def __exit__(self, *_):
    self._ended.set()

  def enter(self, phase: str, step: int, *, patient: bool = False) -> None:
    """Says what begins.

    Args:
      phase: such as "step" or "the input", for the message.
      step: the last one that was begun.
      patient: whether this may take four times as long as a step.
    """
    self._phase, self._step = phase, step
    self._limit = (self._seconds or 0) * (_PATIENT if patient else 1)
    self._waited = 0.0

  def _watch(self) -> None:
    tick = min(10.0, self._seconds / 10)
    before = time.monotonic()
    while not self._ended.wait(tick):
      now = time.monotonic()
      self._waited += min(now - before, 2 * tick)  # the rest of it nothing ran
      before = now
      if self._waited > self._limit:
        self._say_and_end()
        return

  def _say_and_end(self) -> None:
    text = (
        f"vit-jax: process {self._process} hangs in {self._phase}, at step {self._step}: nothing "
        f"ended within {self._limit:g} s (config.watchdog). The stacks of its threads follow, also "
        f"in {self._path}. The same command continues the run"
    )
    saying = threading.Thread(target=self._say, args=(text,), daemon=True)
    saying.start()
    saying.join(_SAYING)
    self._end(_EXIT_CODE)

  def _say(self, text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=2)
    with contextlib.suppress(OSError), tempfile.TemporaryFile("w+") as stacks:
      faulthandler.dump_traceback(file=stacks)
      stacks.seek(0)
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._path.write_text(f"{text}\n{stacks.read()}")

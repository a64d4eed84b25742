"""Being asked to stop: SIGTERM, Ctrl-C, or a cluster's preemption notice."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import Callable

import jax
from jax._src import distributed  # of its coordination service there is no public door
from jax.experimental import multihost_utils

from vit_jax.errors import CheckpointError, Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which the same signal again is the first: some launchers tell parent and child.
_ECHO = 1.0
# Seconds to ask for the last committed step when the grace is over: the disk may be what is slow.
_ASKING = 2.0
# Seconds since the last step after which a process of several asks whether one of them was told:
# that step, or the save after it, may never end.
_STUCK = 1.0
# Where JAX's preemption notice is told to all (XLA's pjrt/distributed/preemption).
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"


class StopSignal:
  """Context in which the first SIGTERM or SIGINT is noted and a later or other one interrupts.

  A process of several leaves SIGTERM to JAX's preemption notice, which all processes agree
  upon; a handler of ours would silently disable it.

  Attributes:
    requested: name of the signal, such as "SIGTERM", or None.
  """

  def __init__(
      self, *, grace: float | None = None, last_committed: Callable[[], int | None] | None = None,
      end: Callable[[int], None] = os._exit,
  ):
    """Nothing is listened to yet.

    Args:
      grace: seconds after the first signal, of several processes after they have heard of it, at
        which the process ends if this context has not ended; None: never.
      last_committed: the step that is then named.
      end: ends the process.
    """
    self.requested: str | None = None
    self._noted = 0.0
    self._asked = time.monotonic()  # when JAX was asked last, at a step or between two
    self._previous = {}
    self._grace, self._last_committed, self._end = grace, last_committed, end
    self._over = threading.Event()
    self._bytes: tuple[socket.socket, socket.socket] | None = None

  def __enter__(self):
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and not jax.distributed.is_initialized():
      self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
      if self._grace is not None:
        self._bytes = socket.socketpair()
        for end in self._bytes:
          end.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._bytes[1].fileno(), warn_on_full_buffer=False)
    if self._grace is not None:
      # Here, because a thread cannot safely be started where a signal is handled.
      threading.Thread(target=self._limit, name="grace", daemon=True).start()
    return self

  def __exit__(self, *_):
    if self._bytes:
      signal.set_wakeup_fd(self._wakeup)
    self._over.set()
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}

  def at(self, step: int) -> bool:
    """Whether to stop after `step`.

    With several processes each must ask at every step: they then stop at the same one.
    """
    self._asked = time.monotonic()
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
      self._noted, self.requested = time.monotonic(), "SIGTERM"
    return self.requested is not None

  def _note(self, number, _):
    name, now = signal.Signals(number).name, time.monotonic()
    if self.requested is None:
      self._noted, self.requested = now, name  # in this order, for `_limit`
    elif name != self.requested or now - self._noted > _ECHO:
      raise KeyboardInterrupt(f"a second signal, {name}")

  def _limit(self) -> None:
    """In a thread: ends the process when its grace is over."""
    heard = None
    while heard is None or time.monotonic() - heard[1] <= self._grace:
      if self._over.wait(0.05):
        break
      heard = heard or self._heard()
    else:
      self._leave(heard[0])
    for end in self._bytes or ():
      end.close()

  def _heard(self) -> tuple[str, float] | None:
    """The signal's name and when it came.

    The system may give it to any thread; Python then notes it, but calls `_note` only once the main
    thread runs, which may be waiting for the very save that hangs.
    """
    if self.requested is not None:
      return self.requested, self._noted
    if jax.distributed.is_initialized() and time.monotonic() - self._asked > _STUCK:
      self._asked = time.monotonic()
      return ("SIGTERM", time.monotonic()) if _one_was_told() else None
    with contextlib.suppress(BlockingIOError):
      for number in self._bytes[0].recv(64) if self._bytes else b"":
        if number in _SIGNALS:
          return signal.Signals(number).name, time.monotonic()
    return None

  def _leave(self, name: str) -> None:
    found = ["not known, for the directory does not answer"]

    def ask():
      with contextlib.suppress(CheckpointError):
        found.append(self._last_committed())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ASKING)
    last = "none" if found[-1] is None else found[-1]
    print(
        f"vit-jax: {name}: the last save did not end within {self._grace:g} s "
        f"(config.checkpoint.grace). The last committed step is {last}; the same command continues "
        "from there", file=sys.stderr, flush=True,
    )
    self._end(Preempted.exit_code)


def _one_was_told() -> bool:
  """Whether one of several processes has got SIGTERM, or its cluster's preemption notice."""
  try:
    return bool(distributed.global_state.client.key_value_try_get(_NOTICE))
  except Exception:  # pylint: disable=broad-exception-caught
    return False  # there is no such key, or no service any more, of which others tell

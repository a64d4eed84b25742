"""Being asked to stop: SIGTERM, Ctrl-C, or a cluster's preemption notice."""

import signal
import threading

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
  """Context in which the first SIGTERM or SIGINT is noted and the second interrupts.

  A process of several leaves SIGTERM to JAX's preemption notice, which all processes agree
  upon; a handler of ours would silently disable it.

  Attributes:
    requested: name of the signal, such as "SIGTERM", or None.
  """

  def __init__(self):
    self.requested: str | None = None
    self._previous = {}

  def __enter__(self):
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and not jax.distributed.is_initialized():
      self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}

  def at(self, step: int) -> bool:
    """Whether to stop after `step`.

    With several processes each must ask at every step: they then stop at the same one.
    """
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
      self.requested = "SIGTERM"
    return self.requested is not None

  def _note(self, number, _):
    if self.requested is not None:
      raise KeyboardInterrupt(f"a second signal, {signal.Signals(number).name}")
    self.requested = signal.Signals(number).name

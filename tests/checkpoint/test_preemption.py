import os
import signal
import threading

import pytest

from vit_jax.checkpoint.preemption import StopSignal


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_first_signal_is_noted_the_second_interrupts(name):
  number = getattr(signal, name)
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  with StopSignal() as stop:
    assert stop.requested is None and not stop.at(1)
    os.kill(os.getpid(), number)
    assert stop.at(2) and stop.requested == name
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested == name
  assert {n: signal.getsignal(n) for n in before} == before


def test_handlers_stay_as_they_are_in_another_thread():
  before = signal.getsignal(signal.SIGTERM)
  seen = []

  def run():
    with StopSignal() as stop:
      seen.append((signal.getsignal(signal.SIGTERM), stop.at(1)))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert seen == [(before, False)] and signal.getsignal(signal.SIGTERM) is before

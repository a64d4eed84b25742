import os
import signal
import threading
import time
import types

import pytest

from vit_jax.checkpoint import preemption
from vit_jax.checkpoint.preemption import StopSignal


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass only when told to."""
  now = [100.0]
  monkeypatch.setattr(preemption, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
  return now


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_first_signal_is_noted_a_later_one_interrupts(name, clock):
  number = getattr(signal, name)
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  with StopSignal() as stop:
    assert stop.requested is None and not stop.at(1)
    os.kill(os.getpid(), number)
    assert stop.at(2) and stop.requested == name
    clock[0] += 1.1
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), number)
    assert stop.requested == name
  assert {n: signal.getsignal(n) for n in before} == before


def test_the_same_signal_at_once_is_the_first_again(clock):
  """As where a launcher tells both itself and us, or a whole process group twice."""
  with StopSignal() as stop:
    for _ in range(3):
      os.kill(os.getpid(), signal.SIGTERM)
      clock[0] += 0.4
    assert stop.requested == "SIGTERM"
    clock[0] += 0.1
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGTERM)


def test_another_signal_at_once_interrupts(clock):
  with StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested == "SIGTERM"


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


def wait_for(ends, *, timeout=10.0):
  deadline = time.monotonic() + timeout
  while not ends and time.monotonic() < deadline:
    time.sleep(0.01)


@pytest.mark.parametrize("answers", [True, False], ids=["a disk", "a disk that hangs"])
def test_when_the_grace_is_over_the_process_ends(answers, capsys, monkeypatch):
  monkeypatch.setattr(preemption, "_ASKING", 0.2)
  ends, never = [], threading.Event()
  last_committed = (lambda: 40) if answers else never.wait
  with StopSignal(grace=0.3, last_committed=last_committed, end=ends.append):
    os.kill(os.getpid(), signal.SIGTERM)
    began = time.monotonic()
    wait_for(ends)
  never.set()
  assert ends == [75] and 0.25 < time.monotonic() - began < 5
  said = capsys.readouterr().err
  assert "SIGTERM: the last save did not end within 0.3 s (config.checkpoint.grace)" in said
  assert f"last committed step is {'40' if answers else 'not known'}" in said


def test_a_signal_that_another_thread_was_given_while_the_main_one_waits(capsys):
  """As where the process was frozen meanwhile; the main thread then runs no handler."""
  ended = threading.Lock()
  ended.acquire()

  def struck():
    time.sleep(0.2)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

  with StopSignal(grace=0.3, last_committed=lambda: 40, end=lambda code: ended.release()):
    threading.Thread(target=struck).start()
    assert ended.acquire(timeout=5.0)
  assert "SIGTERM: the last save did not end within 0.3 s" in capsys.readouterr().err


def test_within_the_grace_it_does_not():
  ends = []
  with StopSignal(grace=0.2, last_committed=lambda: None, end=ends.append):
    time.sleep(0.4)  # nobody asked to stop
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
  time.sleep(0.4)
  assert not ends

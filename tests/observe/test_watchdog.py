import os
import signal
import subprocess
import sys
import time

import pytest

from vit_jax.observe.watchdog import Watchdog


@pytest.fixture
def watched(tmp_path):
  """Makes a watchdog, which notes when it would end the process."""
  def make(seconds, **options):
    ends = []
    watchdog = Watchdog(seconds, directory=tmp_path, end=ends.append, **options)
    watchdog.ends = ends
    return watchdog
  return make


def wait_for(ends, *, timeout=10.0):
  deadline = time.monotonic() + timeout
  while not ends and time.monotonic() < deadline:
    time.sleep(0.01)


def test_a_hang_is_shown_and_ends_the_process(watched, tmp_path, capfd):
  with watched(0.2, process=3) as watchdog:
    watchdog.enter("a step", 7)
    began = time.monotonic()
    wait_for(watchdog.ends)
  assert watchdog.ends == [75] and time.monotonic() - began < 5
  said = capfd.readouterr().err
  assert "process 3 hangs in a step, at step 7: nothing ended within 0.2 s" in said
  for text in (said, (tmp_path / "logs" / "hang.3.txt").read_text()):
    assert text.count("most recent call first") >= 3 and "in wait_for" in text


def test_who_goes_on_is_left_alone(watched):
  with watched(0.3) as watchdog:
    for step in range(20):
      watchdog.enter("a step", step)
      time.sleep(0.05)
  time.sleep(0.5)  # nothing is watched any more
  assert not watchdog.ends


def test_what_is_no_step_has_four_times_as_long(watched):
  with watched(0.2) as watchdog:
    began = time.monotonic()
    watchdog.enter("the save", 1, patient=True)
    wait_for(watchdog.ends)
  assert watchdog.ends == [75] and time.monotonic() - began > 0.75


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_off(watched, seconds):
  with watched(seconds) as watchdog:
    watchdog.enter("a step", 1)
    time.sleep(0.2)
  assert not watchdog.ends


def test_a_process_that_stood_still_as_a_whole_does_not_hang(tmp_path):
  code = """
import sys, time
from vit_jax.observe.watchdog import Watchdog
with Watchdog(2.0, directory=sys.argv[1]) as watchdog:
  watchdog.enter("a step", 1)
  print("ready", flush=True)
  for _ in range(10):  # most of them after it stood still
    time.sleep(0.1)
"""
  process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
  process.stdout.readline()
  os.kill(process.pid, signal.SIGSTOP)
  time.sleep(3.0)
  os.kill(process.pid, signal.SIGCONT)
  assert process.wait(timeout=20) == 0
  process.stdout.close()

"""A run that is killed anywhere, repeated, ends as if it had not been."""

import random
import signal
import time

import pytest

from killer import (
    MODEL, Life, assert_same_run, committed, finish, last_step, logged, saving,
)

STEPS, EVERY = 24, 4
COMMAND = (
    "--config=quickstart", *MODEL, f"--config.total={STEPS} steps", "--config.log_every=1 steps",
    "--config.evaluate.every=8 steps", f"--config.checkpoint.every={EVERY} steps",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
  finish(COMMAND, workdir)
  return workdir


def kill(workdir, moment, *, seconds: float = 0.0) -> bool:
  """Starts the run, kills it some seconds after a moment, and sees that no commit is lost.

  Returns:
    Whether it was killed; False where it had ended.
  """
  before = committed(workdir)
  with Life(COMMAND, workdir) as life:
    if life.until(life.begun) and life.until(moment):  # before it begins a save may be left over
      time.sleep(seconds)
    done = last_step(workdir)
    life.send(signal.SIGKILL)
    [ended] = life.ended()
  assert ended.code in (-signal.SIGKILL, 0), ended.err
  assert committed(workdir) >= before
  # A step is committed while the following are computed, before the next save begins.
  assert done - committed(workdir) <= 2 * EVERY
  return ended.code != 0


def test_killed_five_times(tmp_path, uninterrupted):
  """In a step, in a save, in an evaluation, then at the start and in the first step after."""
  run = tmp_path / "run"
  assert kill(run, logged(6))
  assert kill(run, lambda workdir: last_step(workdir) > 8 and saving(workdir))
  assert kill(run, logged(15), seconds=0.03)
  kill(run, lambda _: True, seconds=1.5)  # a fast machine may have finished
  kill(run, logged(committed(run) + 1))
  finish(COMMAND, run)
  assert_same_run(run, uninterrupted, steps=STEPS)


@pytest.mark.slow
def test_killed_at_thirty_random_moments(tmp_path, uninterrupted):
  """Whatever is done in them; and again, when a run has ended before."""
  moments, kills, count = random.Random(0), 0, 0
  while kills < 30:
    run = tmp_path / f"run{count}"
    for _ in range(6):
      where = moments.choice([
          lambda _: True, logged(committed(run) + moments.randrange(1, 9)), saving,
      ])
      if not kill(run, where, seconds=moments.choice([0.0, moments.uniform(0, 0.3),
                                                      moments.uniform(0, 6.0)])):
        break  # it is complete
      kills += 1
    finish(COMMAND, run)
    assert_same_run(run, uninterrupted, steps=STEPS)
    count += 1

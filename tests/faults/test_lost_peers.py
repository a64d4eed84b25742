"""Of two processes one is killed or frozen: the other ends soon, and says whose fault it was.

`pytest -m multiprocess -s tests/faults/test_lost_peers.py` prints after how many seconds.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from killer import (
    MODEL, Life, assert_same_run, committed, environment, finish, flags_of, last_step, logged,
    saving,
)
from vit_jax.checkpoint import manifest

pytestmark = pytest.mark.multiprocess
REPOSITORY = pathlib.Path(__file__).parents[2]
STEPS, EVERY = 24, 4


def command(steps: int) -> tuple[str, ...]:
  return (
      "--config=quickstart", *MODEL, f"--config.total={steps} steps", "--config.log_every=1 steps",
      "--config.evaluate.every=8 steps", f"--config.checkpoint.every={EVERY} steps",
  )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
  finish(command(STEPS), workdir, processes=2)
  return workdir


@pytest.mark.parametrize("number, limit, codes", [
    (signal.SIGKILL, 5.0, {75, -signal.SIGABRT}), (signal.SIGSTOP, 15.0, {-signal.SIGABRT}),
], ids=["killed", "frozen"])
@pytest.mark.parametrize("whom", [1, 0], ids=["follower", "coordinator"])
def test_the_survivor_ends(tmp_path, number, limit, codes, whom):
  with Life(command(100_000), tmp_path / "run", processes=2) as life:
    assert life.until(logged(6)), life.ended()
    life.send(number, whom)
    [survivor] = life.ended(1 - whom)
  print(f"{number.name} of process {whom}: the other left with {survivor.code} after "
        f"{survivor.seconds:.2f} s")
  assert survivor.seconds < limit and survivor.code in codes
  if survivor.code == 75:
    assert f"process {whom} has gone without a word" in survivor.err


@pytest.mark.parametrize("whom", [(1,), (0,), (0, 1)], ids=["follower", "coordinator", "both"])
def test_killed_and_repeated(tmp_path, uninterrupted, whom):
  """In a step, in a save and at the start."""
  run = tmp_path / "run"
  for moment, seconds in ((logged(6), 0.0), (saving, 0.02), (None, 0.5)):
    before = committed(run)
    with Life(command(STEPS), run, processes=2) as life:
      assert life.until(life.begun)  # else what the life before left looks like a save
      assert life.until(moment or life.begun)
      time.sleep(seconds)
      done = last_step(run)
      life.send(signal.SIGKILL, *whom)
      assert -signal.SIGKILL in [process.code for process in life.ended()]
    assert committed(run) >= before and done - committed(run) <= 2 * EVERY
  finish(command(STEPS), run, processes=2)
  assert_same_run(run, uninterrupted, steps=STEPS)


def child_of(process: subprocess.Popen) -> int | None:
  """The process that launch/supervise.sh watches; its own children do not count."""
  children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  for child in map(int, children):
    if b"vit_jax" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
      return child
  return None


def test_supervised_processes_restart_each_other(tmp_path, uninterrupted):
  """Each under a launch/supervise.sh of its own; one is killed, then the other, then both."""
  run, tools = tmp_path / "run", tmp_path / "bin"
  tools.mkdir()
  (tools / "vit-jax").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vit_jax "$@"\n')
  (tools / "vit-jax").chmod(0o755)
  variables = environment() | {"PATH": f"{tools}:{os.environ['PATH']}", "VIRTUAL_ENV": "none"}
  supervisors = [
      subprocess.Popen(
          ["bash", str(REPOSITORY / "launch" / "supervise.sh"), "--first-delay=0.1", "--", "train",
           *command(STEPS), f"--workdir={run}", *flags],
          env=variables, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
      )
      for flags in flags_of(2)
  ]
  try:
    for step, whom in ((6, (1,)), (12, (0,)), (18, (0, 1))):
      deadline = time.monotonic() + 120
      while last_step(run) < step:
        assert time.monotonic() < deadline and supervisors[0].poll() is None
        time.sleep(0.002)
      for index in whom:
        os.kill(child_of(supervisors[index]), signal.SIGKILL)
    assert [supervisor.wait(timeout=120) for supervisor in supervisors] == [0, 0]
  finally:
    for supervisor in supervisors:
      if supervisor.poll() is None:
        supervisor.terminate()
        supervisor.wait()
  assert_same_run(run, uninterrupted, steps=STEPS)


def test_training_that_breaks_ends_all_for_good(tmp_path):
  """With 4, on which no launcher starts them again, whoever leaves first."""
  run = tmp_path / "run"
  broken = command(STEPS) + (
      "--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e30",
      "--config.schedule.warmup=6 steps", "--config.skip.limit=2",
  )
  with Life(broken, run, processes=2) as life:
    ended = life.ended()
  assert [process.code for process in ended] == [4, 4], [process.err for process in ended]
  assert json.loads((run / "diagnosis.json").read_text())["step"] > 0
  for path in (run / "checkpoints").glob("*/manifest.json"):
    assert not manifest.problems(path.parent)

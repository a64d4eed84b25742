"""A run that is terminated and interrupted ends with the bits of one that was not; of kills see
faults/test_kills.py."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vit_jax.loading import load

STEPS = 60
COMMAND = (
    sys.executable, "-m", "vit_jax", "train", "--config=quickstart",
    "--config.model.width=32", "--config.model.depth=2", "--config.model.mlp_dim=64",
    "--config.model.num_heads=2", "--config.model.dropout=0.1",
    "--config.model.stochastic_depth=0.1", "--config.input.batch_size=16",
    f"--config.total={STEPS} steps", "--config.log_every=1 steps",
    "--config.evaluate.every=20 steps", "--config.checkpoint.every=4 steps",
)


def environment() -> dict:
  """One device, as a user has: without the test suite's eight."""
  kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
  return kept | {"JAX_PLATFORMS": "cpu"}


def start(run: pathlib.Path, *, more: tuple[str, ...] = ()) -> subprocess.Popen:
  return subprocess.Popen(
      COMMAND + (f"--workdir={run}",) + more, env=environment(),
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
  )


def finish(run: pathlib.Path, *, more: tuple[str, ...] = ()) -> None:
  process = start(run, more=more)
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors


def interrupt(
    run: pathlib.Path, number: signal.Signals, *, after: int, more: tuple[str, ...] = ()
) -> tuple[int, str]:
  """Sends a signal once the run has logged step `after`; returns the exit code and stderr."""
  process = start(run, more=more)
  deadline = time.monotonic() + 120
  while last_step(run) < after:
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.002)
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  return process.returncode, errors


def last_step(run: pathlib.Path) -> int:
  """The last step in the metrics, -1 before there is one."""
  try:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["step"]
  except (FileNotFoundError, IndexError, json.JSONDecodeError):
    return -1


def losses(run: pathlib.Path) -> list[tuple[int, float]]:
  rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  return [(row["step"], row["train/loss"]) for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> pathlib.Path:
  run = tmp_path_factory.mktemp("runs") / "uninterrupted"
  finish(run)
  return run


def assert_same_run(run: pathlib.Path, reference: pathlib.Path) -> None:
  """Equal parameters bit for bit, and every step's metrics once and equal."""
  ours, theirs = load(run), load(reference)
  assert ours.step == theirs.step == STEPS
  for path, leaf in flatten(theirs.params).items():
    np.testing.assert_array_equal(flatten(ours.params)[path], leaf, err_msg=path)
  assert [step for step, _ in losses(run)] == list(range(1, STEPS + 1))
  assert losses(run) == losses(reference)


def flatten(tree, prefix="") -> dict:
  flat = {}
  for key, value in tree.items():
    flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
  return flat


@pytest.mark.slow
def test_terminated_then_interrupted(tmp_path, uninterrupted):
  run = tmp_path / "run"
  for number, after in ((signal.SIGTERM, 9), (signal.SIGINT, 30)):
    code, errors = interrupt(run, number, after=after)
    assert code == 75, errors
    assert number.name in errors and "same command continues" in " ".join(errors.split())
    # It stopped between the interval's checkpoints, and still nothing of it is lost.
    assert load(run).step == last_step(run)
  finish(run)
  assert_same_run(run, uninterrupted)


@pytest.mark.slow
def test_a_fine_tune_killed_before_its_first_checkpoint(tmp_path, uninterrupted):
  """It starts from the checkpoint's weights again, not from random ones."""
  late = ("--config.checkpoint.every=0 steps", f"--config.init.checkpoint={uninterrupted}",
          "--config.total=12 steps", "--config.evaluate.every=0 steps")
  killed, whole = tmp_path / "killed", tmp_path / "whole"
  code, _ = interrupt(killed, signal.SIGKILL, after=3, more=late)
  assert code == -signal.SIGKILL and not list((killed / "checkpoints").glob("*/manifest.json"))
  finish(killed, more=late)
  finish(whole, more=late)
  assert losses(killed) == losses(whole)


@pytest.mark.slow
def test_two_processes_cannot_share_a_run(tmp_path):
  run = tmp_path / "run"
  first = start(run)
  while last_step(run) < 1:
    assert first.poll() is None, first.stderr.read()
    time.sleep(0.01)
  second = start(run)
  _, errors = second.communicate(timeout=60)
  first.kill()
  first.communicate()
  assert second.returncode == 2 and str(first.pid) in errors


def test_a_finished_run_says_so_and_computes_nothing(uninterrupted):
  before = (uninterrupted / "metrics.jsonl").read_text()
  done = subprocess.run(
      COMMAND + (f"--workdir={uninterrupted}",), env=environment(), capture_output=True, text=True
  )
  assert done.returncode == 0 and "is complete" in done.stdout
  assert (uninterrupted / "metrics.jsonl").read_text() == before

"""Runs that save to a fast local directory first: the machine is lost with it, or only killed."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from killer import (
    MODEL, Life, assert_same_run, committed, environment, finish, flags_of, last_step, logged,
)
from vit_jax.checkpoint import manifest

STEPS = 24
COMMAND = (
    "--config=quickstart", *MODEL, f"--config.total={STEPS} steps", "--config.log_every=1 steps",
    "--config.evaluate.every=8 steps", "--config.checkpoint.every=4 steps",
)


def local_steps(place) -> list[int]:
  names = [path.parent.name for path in place.glob("*/*/manifest.json")]
  return sorted(int(name) for name in names if name.isdigit())


def began_with(workdir) -> list[int]:
  """The steps from which the starts went on."""
  return [session["first_step"] for session in json.loads((workdir / "sessions.json").read_text())]


def killed(command, workdir, *, after: int) -> None:
  """By the first start's count of steps, or where that is past, once a later one has begun."""
  with Life(command, workdir) as life:
    assert life.until(life.begun) and life.until(logged(after))
    life.send(signal.SIGKILL)
    [ended] = life.ended()
  assert ended.code == -signal.SIGKILL, ended.err


@pytest.mark.slow
def test_killed_with_and_without_its_machine(tmp_path):
  """Ends with the bits of a run that was left alone and had no local tier."""
  run, place, whole = tmp_path / "run", tmp_path / "fast", tmp_path / "whole"
  command = COMMAND + (f"--config.checkpoint.local={place}",)
  finish(COMMAND, whole)
  killed(command, run, after=7)
  shutil.rmtree(place)  # the machine is another one
  killed(command, run, after=14)
  # As if the kill had come before the copy.
  newest, far = local_steps(place)[-1], committed(run)
  shutil.rmtree(run / "checkpoints" / str(newest), ignore_errors=True)
  before = last_step(run)
  finish(command, run)
  assert newest >= far > 0 and before - newest <= 8 and began_with(run)[-1] == newest
  assert_same_run(run, whole, steps=STEPS)
  assert manifest.problems(run / "checkpoints" / str(STEPS)) == []
  assert list(place.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("key", ["with", "without"])
def test_continued_elsewhere_meanwhile(tmp_path, key):
  """What the first machine has kept is another past: each step's metrics are there once."""
  run, place, other = tmp_path / "run", tmp_path / "fast", tmp_path / "other"
  command = COMMAND + (f"--config.checkpoint.local={place}",)
  killed(command, run, after=18)
  for path in list((run / "checkpoints").iterdir()):
    if path.name.isdigit() and int(path.name) > 8:
      shutil.rmtree(path)  # never copied
      path.with_name(f"{path.name}.committed").unlink(missing_ok=True)  # killed in between
  newest = local_steps(place)[-1]
  assert newest >= 12
  elsewhere = (f"--config.checkpoint.local={other}",) if key == "with" else ()
  with Life(COMMAND + elsewhere, run) as life:
    # The metrics behind step 8 are dropped once it has begun.
    assert life.until(lambda run: len(began_with(run)) == 2 and last_step(run) == 10)
    life.send(signal.SIGKILL)
    life.ended()
  finish(command, run)
  assert began_with(run)[1] == 8 and began_with(run)[2] in (0, 4, 8)
  finish(COMMAND, tmp_path / "whole")
  assert_same_run(run, tmp_path / "whole", steps=STEPS)


@pytest.mark.slow
def test_killed_in_the_last_copies(tmp_path):
  """The run's last step is there, an older one that is to stay is not yet."""
  run, place = tmp_path / "run", tmp_path / "fast"
  command = COMMAND + (f"--config.checkpoint.local={place}", "--config.checkpoint.keep_latest=2")
  killed(command, run, after=23)
  (kept,) = place.iterdir()
  copy = shutil.copytree(kept, tmp_path / "copy")
  finish(command, run)
  token = json.loads((run / "run.json").read_text())["local_tier"]
  older = run / "checkpoints" / "20"
  shutil.copytree(older, copy / "20", dirs_exist_ok=True)
  shutil.rmtree(older)
  (copy / "tokens").write_text(json.dumps([token]))
  copy.rename(kept)
  finish(command, run)
  assert not manifest.problems(older) and list(place.iterdir()) == []


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_share_one(tmp_path):
  run, place = tmp_path / "run", tmp_path / "fast"
  command = COMMAND + (f"--config.checkpoint.local={place}", "--config.total=12 steps")
  with Life(command, run, processes=2) as life:
    assert life.until(logged(7))
    life.send(signal.SIGKILL, 1)
    assert {ended.code for ended in life.ended()} <= {75, -signal.SIGABRT, -signal.SIGKILL}
  finish(command, run, processes=2)
  finish(COMMAND + ("--config.total=12 steps",), tmp_path / "whole", processes=2)
  assert_same_run(run, tmp_path / "whole", steps=12)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_processes_that_do_not_see_the_same_directory(tmp_path):
  """Each finds its own under $HOME."""
  processes = [
      subprocess.Popen(
          [sys.executable, "-m", "vit_jax", "train", *COMMAND, *flags,
           f"--workdir={tmp_path / 'run'}", "--config.checkpoint.local=~/fast"],
          env=environment() | {"HOME": str(tmp_path / f"home{i}")}, text=True,
          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
      )
      for i, flags in enumerate(flags_of(2))
  ]
  said = [process.communicate(timeout=120)[1] for process in processes]
  assert [process.returncode for process in processes][1] == 2, said
  assert "config.checkpoint.local: process 1 does not see in" in " ".join(said[1].split())

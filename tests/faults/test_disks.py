"""A run whose disk misbehaves says so, keeps its last good checkpoint, tries again, and goes on."""

import json
import resource
import shutil
import signal
import subprocess

import disks
import killer
import pytest

from vit_jax import config as config_lib
from vit_jax.checkpoint import manifest
from vit_jax.checkpoint.retry import Saves
from vit_jax.loading import load
from vit_jax.observe.metrics import read_metrics
from vit_jax.train import train
from test_resume import COMMAND, environment

SHORT = ("--config.total=400 steps", "--config.evaluate.every=0 steps",
         "--config.log_every=20 steps", "--config.checkpoint.every=20 steps")
ENDLESS = SHORT + ("--config.total=100000 steps",)
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
needs_own_disks = pytest.mark.skipif(
    not disks.has_own_disks(), reason="this system lets nobody mount a disk of their own"
)


def assert_whole(run, *, last: int = 400, every: int = 20) -> None:
  """Every step's metrics are there once, and the last checkpoint is good."""
  lines = (run.path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == list(range(every, last + 1, every))
  assert load(run.path).step == last


def spoil_and_mend(run, *, spoil, mend, said: str, kept=None) -> None:
  """The disk fails between two checkpoints of a run, and works again after the first retry.

  Args:
    said: what the run says of it.
    kept: where the run's directory is meanwhile.
  """
  run.until(lambda: len(run.steps()) == 2)
  spoil()
  run.until(run.says("warning: Saving step", said, "retry 2 of 10"))
  checkpoints = (kept or run.path) / "checkpoints"
  newest = max(int(path.parent.name) for path in checkpoints.glob("*/manifest.json"))
  assert not manifest.problems(checkpoints / str(newest))
  mend()
  run.until(run.says("Saving succeeded again, after"))
  assert kept or run.text.count(f"Step {newest} is there still") >= 2
  assert "Traceback" not in run.text


def test_a_full_disk_that_gets_room_again(tmp_path):
  with disks.Run(tmp_path / "run", *SHORT) as run:
    spoil_and_mend(
        run, spoil=lambda: disks.fill(run), mend=lambda: disks.make_room(run),
        said="File too large (EFBIG)",
    )
    assert run.ends() == 0
    assert_whole(run)


@pytest.mark.slow
def test_a_save_that_fails_behind_the_training_is_said_at_the_next_step(
    tmp_path, monkeypatch, capsys
):
  """Step 2 is written while step 3 is trained, and cannot be committed."""
  said, write, check = [], manifest.write, Saves.check

  def hindered(directory, content, **more):
    if directory.name == "2":
      (directory / f"{manifest.NAME}.tmp").mkdir()
    write(directory, content, **more)

  def after_the_save(saves):
    if saves._checkpoints.saving:
      saves._checkpoints._commit_thread.join()
    check(saves)
    said.append("Saving step 2 to" in capsys.readouterr().err)

  monkeypatch.setattr(manifest, "write", hindered)
  monkeypatch.setattr(Saves, "check", after_the_save)
  keys = {
      "total": "4 steps", "checkpoint.every": "2 steps", "evaluate.every": "0 steps",
      "model.width": "32", "model.depth": "1", "model.num_heads": "2", "model.mlp_dim": "32",
  }
  train(config_lib.load("quickstart", keys), workdir=tmp_path / "run")
  assert said == [False, False, True, False]  # at the end of each step
  assert load(tmp_path / "run").step == 4


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run(tmp_path):
  """And the same command goes on once there is room."""
  more = SHORT + ("--config.checkpoint.retries=2",)
  with disks.Run(tmp_path / "run", *more) as run:
    run.until(lambda: run.steps())
    disks.fill(run)
    assert run.ends() == 5
    assert run.text.count("Training goes on; the save is tried again in") == 2
    assert "then repeat the command. It was tried 3 times" in run.text
    kept = run.steps()[-1]
    assert f"Step {kept} is there still" in run.text
    assert not manifest.problems(run.path / "checkpoints" / str(kept))
  with disks.Run(tmp_path / "run", *more) as run:
    assert run.ends() == 0, run.text
    # Of the three attempts, of which Orbax may still have been writing the last.
    assert run.text.count("Removed") <= 1
    assert_whole(run)


@pytest.mark.slow
@needs_own_disks
def test_a_disk_without_space(tmp_path):
  """Metrics have no room either, and none is lost."""
  disk = tmp_path / "disk"
  prefix = disks.own_disk(disk, size="2500k")
  with disks.Run(disk / "run", *ENDLESS, prefix=prefix) as run:
    run.until(lambda: len(run.steps()) == 2)
    with (run.seen.parent / "hog").open("wb", buffering=0) as hog, pytest.raises(OSError):
      while True:
        hog.write(b"x" * 4096)
    run.until(run.says("warning: The metrics", "wait in memory"))
    run.until(run.says("No space left on device (ENOSPC)", "retry 2 of 10"))
    (run.seen.parent / "hog").unlink()
    run.until(run.says("Saving succeeded again, after"))
    steps = [line["step"] for line in read_metrics(run.seen)]
    assert steps == list(range(20, steps[-1] + 1, 20)) and steps[-1] >= 100


@pytest.mark.slow
@needs_own_disks
def test_a_disk_that_becomes_read_only(tmp_path):
  disk = tmp_path / "disk"
  with disks.Run(disk / "run", *ENDLESS, prefix=disks.own_disk(disk, size="50m")) as run:
    run.until(lambda: len(run.steps()) == 2)
    # As the kernel does after an error: whoever has a file open does not hinder it.
    disks.bind_read_only(run, disk / "run" / "checkpoints")
    run.until(run.says("warning: Saving step", "Read-only file system (EROFS)", "retry 2 of 10"))
    disks.unbind(run, disk / "run" / "checkpoints")
    run.until(run.says("Saving succeeded again, after"))
    run.until(lambda: run.steps()[-1] > 200)


@pytest.mark.slow
def test_permission_that_is_withdrawn(tmp_path):
  with disks.Run(tmp_path / "run", *SHORT, obey_modes=True) as run:
    checkpoints = tmp_path / "run" / "checkpoints"
    spoil_and_mend(
        run, spoil=lambda: checkpoints.chmod(0o555), mend=lambda: checkpoints.chmod(0o755),
        said="Permission denied (EACCES)",
    )
    assert run.ends() == 0
    assert_whole(run)


@pytest.mark.slow
def test_a_run_that_disappears_and_comes_back(tmp_path):
  path, away = tmp_path / "run", tmp_path / "away"

  def mend():
    shutil.rmtree(path, ignore_errors=True)  # what a save that was under way has made
    away.rename(path)

  with disks.Run(path, *SHORT) as run:
    spoil_and_mend(
        run, spoil=lambda: path.rename(away), mend=mend, said="(ENOENT)", kept=away,
    )
    assert run.ends() == 0
    assert_whole(run)


@pytest.mark.slow
def test_checkpoints_that_disappear(tmp_path):
  """They are missed, and the next ones made."""
  with disks.Run(tmp_path / "run", *SHORT) as run:
    run.until(lambda: len(run.steps()) == 2)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "away")
    run.until(run.says("warning: Step", "has disappeared from", "not by this run's doing"))
    assert run.ends() == 0
    assert_whole(run)


@pytest.fixture
def faulty(tmp_path):
  """The disk under the checkpoints of the run in `tmp_path / "run"`."""
  return disks.FaultyDisk(tmp_path / "run" / "checkpoints", library=tmp_path / "faulty.so")


@pytest.mark.slow
@needs_compiler
def test_a_slow_disk_holds_up_the_next_save_and_says_so(tmp_path, faulty):
  """The steps up to it are trained meanwhile."""
  more = SHORT + ("--config.log_every=5 steps",)
  with disks.Run(tmp_path / "run", *more, variables=faulty.variables) as run:
    run.until(lambda: len(run.steps()) == 2)
    faulty.slow(200)
    run.until(run.says("warning: Training waited", "until the checkpoint before was written"))
    logged = read_metrics(run.path)[-1]["step"]
    assert logged - run.steps()[-1] >= 15  # trained while the next one was being written
    faulty.mend()
    assert run.ends() == 0 and "Saving step" not in run.text
    assert_whole(run, every=5)


@pytest.mark.slow
@needs_compiler
def test_a_rename_that_stops_half_way(tmp_path, faulty):
  """The save failed: what it has left is no checkpoint, and the next one is."""
  with disks.Run(tmp_path / "run", *SHORT, variables=faulty.variables) as run:
    run.until(lambda: len(run.steps()) == 2)
    faulty.tear()
    run.until(run.says("warning: Saving step", "Input/output error (EIO)", "retry 1 of 10"))
    assert faulty.has_torn()
    run.until(run.says("Saving succeeded again, after 1 failure"))
    assert run.ends() == 0 and "Traceback" not in run.text
    assert_whole(run)
  assert not manifest.problems(run.path / "checkpoints" / "400")


@pytest.mark.slow
@needs_compiler
def test_killed_half_way_through_a_rename(tmp_path, faulty):
  """The same command goes on from the checkpoint before."""
  with disks.Run(tmp_path / "run", *SHORT, variables=faulty.variables) as run:
    run.until(lambda: len(run.steps()) == 2)
    faulty.tear(kill=True)
    assert run.ends() == -signal.SIGKILL and faulty.has_torn()
    kept = run.steps()[-1]
    torn = [path for path in (run.path / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(int(path.name) for path in torn) > kept
  with disks.Run(tmp_path / "run", *SHORT) as run:
    assert run.ends() == 0, run.text
    assert f"from step {kept} of 400" in run.text and "Removed" in run.text
    assert_whole(run)


@pytest.mark.slow
def test_a_full_disk_under_the_messages(tmp_path):
  """Where stdout and stderr are files, as under nohup; the run itself lies elsewhere."""
  command = (*COMMAND, f"--workdir={tmp_path / 'run'}", *SHORT, "--config.total=40 steps")
  with open("/dev/full", "w") as full:
    done = subprocess.run(command, env=environment(), stdout=full, stderr=full, timeout=600)
  assert done.returncode == 0
  assert load(tmp_path / "run").step == 40


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("whose", [0, 1])
def test_the_disk_of_one_of_two_processes(tmp_path, whose):
  """Both leave with what has a launcher start them again; the last good checkpoint stays."""
  run = tmp_path / "run"
  command = ("--config=quickstart", *killer.MODEL, *SHORT, "--config.total=80 steps")
  with killer.Life(command, run, processes=2) as life:
    assert life.until(lambda path: killer.committed(path) >= 20)
    full = (4_000, resource.RLIM_INFINITY)
    resource.prlimit(life.processes[whose].pid, resource.RLIMIT_FSIZE, full)
    ended = life.ended()
  assert ended[whose].code == 75, ended[whose].err
  assert ended[1 - whose].code in (75, -6), ended[1 - whose].err
  assert "Start all processes again" in ended[whose].err
  kept = killer.committed(run)
  assert not manifest.problems(run / "checkpoints" / str(kept))
  killer.finish(command, run, processes=2)
  assert load(run).step == 80


@pytest.mark.slow
def test_nobody_reads_what_a_run_prints(tmp_path):
  """As where the pager behind a pipe was left: the run goes on to its end."""
  command = (*COMMAND, f"--workdir={tmp_path / 'run'}", *SHORT, "--config.total=40 steps")
  variables = environment() | {"PYTHONUNBUFFERED": "1"}
  with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE) as process:
    process.stdout.close()
    assert process.wait(timeout=600) == 0
  assert load(tmp_path / "run").step == 40

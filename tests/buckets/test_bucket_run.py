"""A run in a bucket: the commands, each in a process of its own, as on a local directory."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from emulator import Fault
import numpy as np
from PIL import Image
import pytest

from vit_jax.bucket.path import place
from vit_jax.config import RECIPES
from vit_jax.loading import load
from vit_jax.observe.metrics import read_metrics

TRAIN = (
    "train", "--config=quickstart", "--config.model.width=32", "--config.model.depth=2",
    "--config.model.mlp_dim=64", "--config.model.num_heads=2", "--config.model.dropout=0.1",
    "--config.input.batch_size=16", "--config.log_every=1 steps",
    "--config.evaluate.every=20 steps",
)
# Compiles in half the time.
HASTY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# As `vit-jax status --json`; from any machine, as jax is not started.
STATUS = """
import sys
from vit_jax.cli import main
try:
  main(["status", "--workdir=" + sys.argv[1], "--json"])
finally:
  assert not {"jax", "tensorstore", "tensorflow"} & set(sys.modules)
"""
LONG = TRAIN + ("--config.total=60 steps", "--config.checkpoint.every=4 steps")


def environment(emulator, **more: str) -> dict[str, str]:
  """One device, as a user has."""
  kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
  return kept | {"JAX_PLATFORMS": "cpu"} | emulator.environment() | more


def start(emulator, *arguments, **more: str) -> subprocess.Popen:
  return subprocess.Popen(
      [sys.executable, "-m", "vit_jax", *map(str, arguments)], env=environment(emulator, **more),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )


def run(emulator, *arguments, code: int = 0, **more: str) -> tuple[str, str]:
  """What a command printed, and its errors; `more` is of its environment."""
  process = start(emulator, *arguments, **more)
  out, errors = process.communicate(timeout=300)
  assert process.returncode == code, errors
  return out, " ".join(errors.split())


def metrics_seen(path) -> int:
  """The last step in the metrics."""
  return max((line["step"] for line in read_metrics(path)), default=0)


def interrupt(emulator, path, number: signal.Signals, *, after: int) -> tuple[int, str]:
  """Sends a signal once the run has logged step `after`; returns the exit code and stderr."""
  process = start(emulator, *LONG, f"--workdir={path}")
  deadline = time.monotonic() + 120
  while metrics_seen(path) < after:
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  return process.returncode, " ".join(errors.split())


def leaves(tree, prefix="") -> dict:
  flat = {}
  for key, value in tree.items():
    flat |= leaves(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
  return flat


def assert_same_run(path, reference) -> None:
  """Equal parameters bit for bit, and every step's metrics once and equal."""
  ours, theirs = load(str(path)), load(str(reference))
  assert ours.step == theirs.step
  for name, leaf in leaves(theirs.params).items():
    np.testing.assert_array_equal(leaves(ours.params)[name], leaf, err_msg=name)
  found, wanted = ([(row["step"], row["train/loss"]) for row in read_metrics(p)] for p in
                   (path, reference))
  assert found == wanted and [step for step, _ in found] == list(range(1, ours.step + 1))


@pytest.fixture
def path(bucket):
  return place(f"gs://{bucket}/runs/a")


@pytest.fixture(scope="module")
def uninterrupted(emulator, tmp_path_factory) -> pathlib.Path:
  """On a disk."""
  directory = tmp_path_factory.mktemp("runs") / "uninterrupted"
  run(emulator, *LONG, f"--workdir={directory}")
  return directory


def test_a_run_from_its_beginning_to_its_model(emulator, bucket, path):
  """Trained, looked at, loaded; nothing is left over."""
  command = TRAIN + ("--config.total=6 steps", "--config.checkpoint.every=3 steps")
  said, _ = run(emulator, *command, f"--workdir={path}", XLA_FLAGS=HASTY)
  assert "TensorBoard's events are left out there" in said
  assert {name.split("/")[2] for name in emulator.names(bucket)} == {
      "checkpoints", "config.json", "run.json", "sessions.json", "metrics"
  }
  status = json.loads(subprocess.run(
      [sys.executable, "-c", STATUS, str(path)], env=environment(emulator), capture_output=True,
      text=True, check=True,
  ).stdout)
  assert status["state"] == "complete" and status["checkpoints"] == [3, 6]
  assert status["checkpoint_seconds_ago"] < 300
  assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5, 6]
  loaded = load(f"{path}@3")
  assert loaded.step == 3 and loaded.ref == f"{path}@3"


def test_a_refusal_is_one_paragraph(emulator, bucket, path):
  emulator.faults.append(Fault(bucket, status=403))
  process = start(emulator, "status", f"--workdir={path}")
  out, errors = process.communicate(timeout=60)
  assert process.returncode == 2 and out == ""
  assert " ".join(errors.split()).startswith(
      f"vit-jax: gs://{bucket}: access is denied (403): give this machine's account the roles"
  )
  assert errors.count("vit-jax:") == 1 and "Traceback" not in errors and len(errors) < 500


@pytest.mark.slow
def test_a_bucket_that_refuses_checkpoints_for_a_while(emulator, bucket, path, uninterrupted):
  process = start(emulator, *LONG, f"--workdir={path}")
  deadline, said = time.monotonic() + 120, ""
  while metrics_seen(path) < 10:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  good = max(step for step in range(61) if (path / f"checkpoints/{step}/manifest.json").exists())
  emulator.faults.append(Fault(f"(POST|PUT) .*{bucket}.*checkpoints", status=403))
  while "retry 2 of 10" not in said:
    line = process.stderr.readline()
    assert line and time.monotonic() < deadline, said
    said += line
  assert "the save is tried again in 1 s (retry 1 of 10)" in said and "access is denied" in said
  assert (path / f"checkpoints/{good}/manifest.json").exists()
  emulator.faults.clear()
  _, rest = process.communicate(timeout=120)
  assert process.returncode == 0 and "Saving succeeded again" in said + rest, rest
  assert_same_run(path, uninterrupted)


@pytest.mark.slow
def test_a_bucket_that_goes_on_refusing_ends_the_run(emulator, bucket, path):
  process = start(emulator, *LONG, f"--workdir={path}", "--config.checkpoint.retries=1",
                  "--config.total=10000 steps")
  deadline = time.monotonic() + 120
  while metrics_seen(path) < 10:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  emulator.faults.append(Fault(f"(POST|PUT) .*{bucket}.*checkpoints", status=403))
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 5, errors
  assert "then repeat the command. It was tried 2 times" in " ".join(errors.split())
  emulator.faults.clear()
  assert load(str(path)).step >= 4


@pytest.mark.slow
def test_the_other_commands(emulator, bucket, path, tmp_path, monkeypatch):
  command = TRAIN + ("--config.total=20 steps", "--config.checkpoint.best_metric=accuracy")
  run(emulator, *command, f"--workdir={path}")
  before = emulator.names(bucket)
  assert f"{path} is complete: 20 steps" in run(emulator, *command, f"--workdir={path}/")[0]
  assert emulator.names(bucket) == before
  measured = json.loads(run(
      emulator, "evaluate", f"--model={path}@best", "--measures=classification,confusion"
  )[0])
  assert measured["model"] == f"{path}@20" and measured["metrics"]["examples"] == 359
  logged = read_metrics(path)[-1]
  assert measured["metrics"]["accuracy"] == pytest.approx(logged["eval/validation/accuracy"])
  (file,) = (x for x in emulator.names(bucket, "runs/a/") if x.endswith("/evaluation.json"))
  assert json.loads(emulator.read(bucket, file)) == measured
  assert b"," in emulator.read(bucket, file.replace("evaluation.json", "confusion.csv"))
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "black.png")
  assert "%" in run(emulator, "predict", f"--model={path}", tmp_path / "black.png")[0]
  said, _ = run(emulator, "convert", f"--model={path}@20", f"--output={tmp_path / 'export'}")
  assert "read back bit-equal" in said
  for file in (tmp_path / "export").iterdir():
    emulator.put(bucket, f"exported/{file.name}", file.read_bytes())
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  exported, own = load(f"gs://{bucket}/exported").params, load(f"{path}@20").params
  np.testing.assert_array_equal(exported["head"]["kernel"], own["head"]["kernel"])
  run(emulator, "publish", f"--model={path}@20,best", f"--output={tmp_path / 'published'}",
      "--license=mit")
  card = (tmp_path / "published" / "step20" / "README.md").read_text()
  assert f"{measured['metrics']['accuracy']:.2%}"[:4] in card
  again = place(f"gs://{bucket}/runs/b")
  more = f"--config.init.checkpoint={path}@20"
  run(emulator, *TRAIN, "--config.total=2 steps", more, f"--workdir={again}")
  assert json.loads((again / "run.json").read_text())["init"] == f"{path}@20"
  history = run(emulator, *command, "--config.total=22 steps", "--amend", f"--workdir={path}")[0]
  assert "from step 20 of 22" in history and (path / "config_history.jsonl").exists()


@pytest.mark.slow
def test_terminated_then_killed(emulator, bucket, path, uninterrupted):
  code, errors = interrupt(emulator, path, signal.SIGTERM, after=9)
  assert code == 75 and "SIGTERM" in errors and "same command continues from there" in errors
  assert ".lock" not in {name.split("/")[2] for name in emulator.names(bucket)}
  code, _ = interrupt(emulator, path, signal.SIGKILL, after=30)
  assert code == -signal.SIGKILL and "runs/a/.lock" in emulator.names(bucket)
  run(emulator, *LONG, f"--workdir={path}")
  assert_same_run(path, uninterrupted)
  status = json.loads(run(emulator, "status", f"--workdir={path}", "--json")[0])
  assert status["restarts"] == 2 and status["quarantined"] == []


@pytest.mark.slow
def test_a_flipped_byte_is_found_and_training_goes_on(emulator, bucket, path, uninterrupted):
  interrupt(emulator, path, signal.SIGTERM, after=20)
  steps = [int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdigit()]
  damaged = max(steps)
  name = emulator.names(bucket, f"runs/a/checkpoints/{damaged}/training/d/")[0]
  emulator.flip(bucket, name, 40)
  _, errors = run(emulator, "evaluate", f"--model={path}@{damaged}", code=5)
  assert "is damaged: training/d/" in errors
  said, _ = run(emulator, *LONG, f"--workdir={path}")
  assert f"Step {damaged} is damaged" in said and f"from step {min(steps)} of 60" in said
  assert_same_run(path, uninterrupted)
  said = run(emulator, "status", f"--workdir={path}")[0]
  assert f"damaged       {damaged}.corrupt" in said and "complete" in said


@pytest.mark.slow
def test_a_second_writer_is_refused(emulator, path):
  first = start(emulator, *LONG, f"--workdir={path}")
  while metrics_seen(path) < 1:
    assert first.poll() is None, first.stderr.read()
    time.sleep(0.01)
  _, errors = run(emulator, *LONG, f"--workdir={path}", code=2)
  first.kill()
  first.communicate()
  assert f"is being trained by another process, {first.pid} on " in errors


@pytest.mark.slow
def test_a_sweep(emulator, bucket, tmp_path):
  recipe = tmp_path / "two_seeds.py"
  two = '\n\ndef sweep(arg=None):\n  return [{"seed": 1}, {"seed": 2}]\n'
  recipe.write_text((RECIPES / "quickstart.py").read_text() + two)
  command = ("sweep", f"--config={recipe}", *TRAIN[2:],
             "--config.total=2 steps", f"--workdir=gs://{bucket}/sweep")
  said, _ = run(emulator, *command)
  winner = json.loads(emulator.read(bucket, "sweep/winner.json"))
  assert winner["run"] in ("00_seed=1", "01_seed=2") and f"{winner['run']} wins" in said
  assert emulator.read(bucket, "sweep/sweep.csv").count(b"finished") == 2
  assert "00_seed=1: finished already" in run(emulator, *command)[0]
  assert not [name for name in emulator.names(bucket) if name.endswith(".lock")]

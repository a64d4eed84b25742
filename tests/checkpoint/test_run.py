import fcntl
import json
import os
import subprocess
import sys

import pytest

from vit_jax.checkpoint.run import RunDirectory, canonical_json
from vit_jax.errors import CheckpointError, ConfigError

INFO = {
    "requested": {}, "classes": ["a", "b"], "fingerprint": "f", "total_steps": 2**40,
    "environment": {}, "best_metric": None,
}


def test_canonical_json_is_one_text_for_equal_values():
  assert canonical_json({"b": (1, 2.0), "a": None}) == '{"a":null,"b":[1,2.0]}'
  with pytest.raises(ValueError):
    canonical_json({"a": float("nan")})


def test_what_a_run_writes_it_reads(tmp_path):
  run = RunDirectory(tmp_path / "a" / "run")
  assert not run.exists()
  run.check_writable()
  assert list(run.path.iterdir()) == [] and not run.exists()
  run.write_config({"seed": 1})
  run.write_config({"seed": 2})
  run.write_info(INFO)
  run.append_history({"step": 1})
  run.append_history({"step": 2})
  assert run.exists()
  assert json.loads(run.config_path.read_text()) == {"seed": 2} and run.read_info() == INFO
  history = run.history_path.read_text().splitlines()
  assert [json.loads(line)["step"] for line in history] == [1, 2]
  names = {path.name for path in run.path.iterdir()}
  assert names == {"config.json", "run.json", "config_history.jsonl"}


def test_a_file_in_the_way_is_one_paragraph(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ConfigError) as caught:
    RunDirectory(tmp_path / "file" / "run").check_writable()
  assert str(caught.value) == (
      f"The run's directory {tmp_path / 'file' / 'run'} cannot be written: Not a directory "
      "(ENOTDIR). Choose another --workdir, or make it writable for this user"
  )


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_damaged_file_is_named(tmp_path, content):
  run = RunDirectory(tmp_path)
  if content is not None:
    run.info_path.write_text(content)
  with pytest.raises(CheckpointError, match=str(run.info_path)):
    run.read_info()


def test_missing_keys_are_named(tmp_path):
  run = RunDirectory(tmp_path)
  run.write_info({key: INFO[key] for key in INFO if key not in ("classes", "environment")})
  with pytest.raises(CheckpointError, match="run.json lacks classes, environment"):
    run.read_info()


@pytest.mark.parametrize("path", ["s3://bucket/run", "http://host/run"])
def test_other_urls_are_refused(path):
  with pytest.raises(ConfigError, match=f"{path}: of URLs only gs://BUCKET/PATH can be reached"):
    RunDirectory(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "a.npz", "photos/"])
def test_somebody_elses_directory_is_refused(tmp_path, name):
  (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("mine")
  run = RunDirectory(tmp_path)
  with pytest.raises(ConfigError) as caught:
    run.check_writable()
  assert f"holds other files: {name.rstrip('/')}. Choose another --workdir" in str(caught.value)
  assert len(list(tmp_path.iterdir())) == 1
  run.write_info(INFO)  # a run may hold what it likes
  run.check_writable()


def test_what_an_interrupted_start_leaves_is_tolerated(tmp_path):
  for name in ("tensorboard", "checkpoints", "logs"):
    (tmp_path / name).mkdir()
  for name in ("metrics.jsonl", ".lock", "train.log", "run.json.tmp", ".writable.12"):
    (tmp_path / name).write_text("")
  RunDirectory(tmp_path).check_writable()


HOLD = """
import sys, time
from vit_jax.checkpoint.run import RunDirectory
with RunDirectory(sys.argv[1]).lock():
  print("locked", flush=True)
  time.sleep(600)
"""


def test_one_process_trains_and_its_death_frees_the_directory(tmp_path):
  run = RunDirectory(tmp_path / "run")
  other = subprocess.Popen(
      [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True
  )
  try:
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(ConfigError) as caught, run.lock():
      pass
    text = str(caught.value)
    assert f"another process, {other.pid} on " in text and str(run.lock_path) in text
  finally:
    other.kill()
    other.communicate()
  for _ in range(2):
    with run.lock():
      assert run.lock_path.read_text().startswith(f"{os.getpid()} on ")
      with pytest.raises(ConfigError, match=f"process, {os.getpid()} on"), run.lock():
        pass
  run.check_writable()


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, capsys):
  def refuse(*_):
    raise OSError(38, "Function not implemented")

  monkeypatch.setattr(fcntl, "flock", refuse)
  with RunDirectory(tmp_path).lock():
    pass
  assert "cannot be locked (Function not implemented)" in capsys.readouterr().err


def test_a_lock_that_cannot_be_made_is_one_paragraph(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ConfigError, match=r"cannot be written: Not a directory \(ENOTDIR\)"):
    with RunDirectory(tmp_path / "file" / "run").lock():
      pass


def test_checkpoints_without_the_runs_description_are_not_begun_anew(tmp_path):
  """run.json is written before the first save: it was lost, and the metrics would be, too."""
  committed = tmp_path / "checkpoints" / "5" / "manifest.json"
  committed.parent.mkdir(parents=True)
  run = RunDirectory(tmp_path)
  run.check_writable()  # a save that never finished says nothing
  committed.write_text("{}")
  with pytest.raises(ConfigError, match=r"has checkpoints \(5\) but no run.json.*copy it back"):
    run.check_writable()
  run.write_info(INFO)
  run.check_writable()

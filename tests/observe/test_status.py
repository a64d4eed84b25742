import json
import subprocess
import sys

import pytest

from vit_jax.errors import ConfigError
from vit_jax.observe.status import format_status, read_status


def write_run(path, *, steps, lines, info):
  (path / "checkpoints").mkdir(parents=True)
  for step, metrics in steps.items():
    (path / "checkpoints" / str(step)).mkdir()
    if metrics is not None:
      manifest = json.dumps({"metrics": metrics})
      (path / "checkpoints" / str(step) / "manifest.json").write_text(manifest)
  (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (path / "run.json").write_text(json.dumps(info))


INFO = {"total_steps": 100, "best_metric": "eval/test/accuracy"}
LINES = [
    {"step": step, "time": 1000.0 + 2 * step, "train/loss": 1.0 / step} for step in (10, 20, 30)
] + [{"step": 30, "time": 1063.0, "eval/test/accuracy": 0.75, "train/gradient_norm": None}]


def test_a_run_in_progress(tmp_path):
  steps = {10: {"eval/test/accuracy": 0.8}, 20: {"eval/test/accuracy": 0.8}, 30: None}
  write_run(tmp_path, steps=steps, lines=LINES, info=INFO)
  (tmp_path / "checkpoints" / "25.corrupt").mkdir()
  (tmp_path / "checkpoints" / "30.orbax-checkpoint-tmp").mkdir()
  (tmp_path / "checkpoints" / "22").mkdir()
  (tmp_path / "checkpoints" / "22.committed").touch()  # it has lost its manifest
  status = read_status(tmp_path)
  assert status.pop("updated_seconds_ago") > 1e9
  assert 0 <= status.pop("checkpoint_seconds_ago") < 100
  assert status == {
      "workdir": str(tmp_path),
      "state": "in progress or stopped",
      "step": 30,
      "total_steps": 100,
      "metrics": {
          "train/loss": 1 / 30, "eval/test/accuracy": 0.75, "train/gradient_norm": None,
      },
      "evaluations": {"test": {"step": 30, "accuracy": 0.75}},
      "eta_seconds": 140.0,
      "checkpoints": [10, 20],
      "last_verified_checkpoint": 20,
      "quarantined": ["22", "25.corrupt"],
      "best": {"step": 10, "metric": "eval/test/accuracy", "value": 0.8},
      "restarts": 0, "held_seconds": 0, "chip_hours": 0, "steps_lost": 0, "goodput": None,
      "chip_hours_to_go": None,
  }
  json.dumps(status)
  text = format_status(status | {"updated_seconds_ago": 7.0, "checkpoint_seconds_ago": 61.0})
  assert f"{tmp_path}: in progress or stopped, step 30 of 100 (30.0%)" in text
  assert "last metrics  0:07 ago" in text and "left          2:20 while it runs" in text
  assert "checkpoints   10, 20\n" in text
  assert "last verified checkpoint 20, 1:01 ago: read back and hashed when it was written" in text
  assert "damaged       22, 25.corrupt" in text
  assert "best          step 10, eval/test/accuracy 0.8" in text
  assert "train/gradient_norm  not finite" in text
  assert "eval/test  step 30: accuracy 0.75" in text and "chip-hours" not in text


def test_what_a_run_has_cost_and_will(tmp_path):
  """Two sessions on 8 chips: 20 steps of 2 s in 100 s, and 20 more in 100 s, 10 of them again."""
  write_run(tmp_path, steps={30: {}}, lines=LINES, info=INFO)
  (tmp_path / "sessions.json").write_text(json.dumps([
      {"started": 1000.0, "seen": 1100.0, "first_step": 0, "step": 20, "chips": 8, "processes": 2},
      {"started": 2000.0, "seen": 2100.0, "first_step": 10, "step": 30, "chips": 8,
       "processes": 2},
  ]))
  status = read_status(tmp_path)
  assert status["restarts"] == 1 and status["steps_lost"] == 10
  assert status["held_seconds"] == 200 and status["chip_hours"] == pytest.approx(1600 / 3600)
  assert status["goodput"] == pytest.approx(30 * 2 / 200)
  assert status["chip_hours_to_go"] == pytest.approx(70 * 2 * 8 / 3600)
  text = format_status(status)
  assert "chip-hours    0.444 used, about 0.311 to go; goodput 30%" in text
  assert "restarts      1, after which 10 steps were done again" in text


def write_session(path, **values):
  (path / "sessions.json").write_text(json.dumps([{"processes": 1} | values, {"damaged": 1}]))


def test_start_up_is_not_to_come_again(tmp_path):
  """300 s of start-up, then 60 steps of 1 s."""
  lines = [{"step": step, "time": 1300.0 + step, "train/loss": 1.0} for step in range(10, 61, 10)]
  write_run(tmp_path, steps={}, lines=lines, info={"total_steps": 1060})
  write_session(tmp_path, started=1000.0, seen=1360.0, first_step=0, step=60, chips=36)
  status = read_status(tmp_path)
  assert status["goodput"] == pytest.approx(60 / 360)
  assert status["chip_hours_to_go"] == pytest.approx(1000 * 36 / 3600)


@pytest.mark.parametrize("since, pace", [(1070.0, 2.0), (1060.0, 2.0), (1040.0, 8.0)])
def test_what_is_left_goes_by_the_newest_session_once_it_has_a_pace(since, pace, tmp_path):
  lines = [
      {"step": step, "time": when, "train/loss": 1.0}
      for step, when in [(5, 1000.0), (10, 1010.0), (15, 1020.0), (20, 1030.0), (25, 1040.0),
                         (26, 1048.0)]
  ]
  write_run(tmp_path, steps={}, lines=lines, info=INFO)
  write_session(tmp_path, started=since, seen=since + 9, first_step=20, step=26, chips=2)
  status = read_status(tmp_path)
  assert status["eta_seconds"] == pytest.approx((100 - 26) * pace)
  assert status["chip_hours_to_go"] == pytest.approx((100 - 26) * pace * 2 / 3600)


def test_a_damaged_record_of_sessions_is_as_none(tmp_path):
  write_run(tmp_path, steps={}, lines=LINES, info=INFO)
  (tmp_path / "sessions.json").write_text("[{")
  assert read_status(tmp_path)["restarts"] == 0


def test_the_best_leaves_out_what_is_not_finite(tmp_path):
  steps = {1: {"a": 0.5}, 2: {"a": 1.0}, 3: {"a": None}, 4: {}}
  info = {"total_steps": 4, "best_metric": "a"}
  write_run(tmp_path, steps=steps, lines=[], info=info)
  status = read_status(tmp_path)
  assert status["state"] == "complete" and status["step"] == 4
  assert status["best"] == {"step": 2, "metric": "a", "value": 1.0}


def test_the_best_may_be_the_smallest(tmp_path):
  info = {"total_steps": 4, "best_metric": "eval/test/loss", "best_is_smallest": True}
  losses = {1: 0.5, 2: 0.25, 3: 0.25}
  steps = {step: {"eval/test/loss": loss} for step, loss in losses.items()}
  write_run(tmp_path, steps=steps, lines=[], info=info)
  assert read_status(tmp_path)["best"] == {"step": 2, "metric": "eval/test/loss", "value": 0.25}


def test_an_empty_directory_and_none(tmp_path):
  status = read_status(tmp_path)
  assert status["state"] == "not started" and status["checkpoints"] == []
  assert status["last_verified_checkpoint"] is None
  assert f"{tmp_path}: not started, step 0\n  checkpoints   none" == format_status(status)
  with pytest.raises(ConfigError, match="There is no directory"):
    read_status(tmp_path / "absent")
  (tmp_path / "run.json").write_text("{")
  with pytest.raises(ConfigError, match="run.json cannot be read"):
    read_status(tmp_path)


def test_no_jax(tmp_path):
  code = """
import sys
from vit_jax.observe.status import read_status
from vit_jax.observe.versions import versions
from vit_jax.observe import metrics, peaks, progress
read_status(sys.argv[1])
assert versions()["jax"] and versions()["python"].startswith("3.")
assert not {"jax", "tensorboardX", "torch", "tensorflow"} & set(sys.modules)
"""
  subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)

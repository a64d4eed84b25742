import json
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest

from event_points import points_of
from vit_jax.errors import CheckpointError, WriteFailed
from vit_jax.observe.metrics import MetricsWriter, read_metrics


def lines_of(directory):
  return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_one_line_a_call(tmp_path):
  writer = MetricsWriter(tmp_path / "run", resume_step=0)
  writer.write(1, {"train/loss": np.float32(0.5), "eval/test/accuracy": 1})
  (line,) = lines_of(tmp_path / "run")  # flushed already
  writer.close()
  assert line.pop("time") > 1.7e9
  assert line == {"step": 1, "train/loss": 0.5, "eval/test/accuracy": 1.0}


def test_what_precedes_a_save_survives_a_kill(tmp_path):
  """TensorBoard's points too, which are not written again."""
  writer = MetricsWriter(tmp_path, resume_step=0)
  for step in (1, 2, 3):
    writer.write(step, {"loss": 1.0})
  writer.flush()  # and no more
  assert points_of(tmp_path) == [("loss", step) for step in (1, 2, 3)]
  writer.close()


def test_what_is_not_finite_is_null(tmp_path):
  writer = MetricsWriter(tmp_path, resume_step=0)
  writer.write(1, {"a": float("nan"), "b": float("-inf"), "c": 2.0})
  writer.close()
  (line,) = lines_of(tmp_path)
  assert (line["a"], line["b"], line["c"]) == (None, None, 2.0)
  assert points_of(tmp_path) == [("c", 1)]


def test_each_step_is_there_once_after_restarts(tmp_path):
  for resume_step, last_step in ((0, 30), (20, 35), (20, 50), (50, 60)):
    writer = MetricsWriter(tmp_path, resume_step=resume_step)
    for step in range(resume_step + 5, last_step + 1, 5):
      writer.write(step, {"loss": step + resume_step / 100})
    writer.close()
  expected = [*range(5, 65, 5)]
  assert [line["step"] for line in lines_of(tmp_path)] == expected
  assert [line["loss"] for line in lines_of(tmp_path)][4:6] == [25.2, 30.2]
  assert points_of(tmp_path) == [("loss", step) for step in expected]


@pytest.mark.parametrize("torn", ['{"step": 4, "ti', '{"step": 4}\n{"step"', "\0\0", "[1]\n\n"])
def test_a_torn_line_goes(tmp_path, torn):
  whole = '{"step": 3, "time": 1.0, "loss": 2.0}\n'
  (tmp_path / "metrics.jsonl").write_text(whole + torn)
  assert read_metrics(tmp_path)[0]["loss"] == 2.0
  writer = MetricsWriter(tmp_path, resume_step=3)
  writer.write(4, {"loss": 1.0})
  writer.close()
  text = (tmp_path / "metrics.jsonl").read_text()
  assert text.startswith(whole) and [line["step"] for line in lines_of(tmp_path)] == [3, 4]
  assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_a_kill_leaves_every_line_that_was_written(tmp_path):
  code = """
import os, signal, sys
from vit_jax.observe.metrics import MetricsWriter
writer = MetricsWriter(sys.argv[1], resume_step=0)
for step in range(1, 4):
  writer.write(step, {"loss": 1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""
  subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
  assert [line["step"] for line in lines_of(pathlib.Path(tmp_path))] == [1, 2, 3]


@pytest.mark.parametrize("step_values", [{"loss": 1.0}, {f"a{i}": 1.0 for i in range(400)}])
def test_a_full_disk_is_one_paragraph_and_never_waits(tmp_path, step_values, capsys):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with MetricsWriter(tmp_path, resume_step=0) as writer:
    writer.write(1, step_values)
  try:
    with pytest.raises(CheckpointError) as caught:
      with MetricsWriter(tmp_path, resume_step=1) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
        for step in range(2, 700):
          writer.write(step, step_values)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert str(caught.value) == (
      f"The metrics in {tmp_path} cannot be written: File too large (EFBIG). Make room or restore"
      " access there"
  )
  said = capsys.readouterr().err
  assert said.count("warning: The metrics") == said.count("They wait in memory") == 1
  steps = [line["step"] for line in read_metrics(tmp_path)]
  assert steps == [*range(1, len(steps) + 1)] and len(steps) > 1


@pytest.mark.parametrize("limit", [2700, 3203, 3219])
def test_lines_that_had_to_wait_are_there_once_and_in_order(tmp_path, limit, capsys):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with MetricsWriter(tmp_path, resume_step=0) as writer:
    for step in range(1, 201):
      try:
        if 50 <= step % 100 < 90:
          resource.setrlimit(resource.RLIMIT_FSIZE, (limit + 5500 * (step // 100), limits[1]))
        writer.write(step, {"loss": step + 0.5})
        if step in (80, 180):
          with pytest.raises(WriteFailed):
            writer.flush()
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.flush()
    assert [line["loss"] for line in lines_of(tmp_path)] == [step + 0.5 for step in range(1, 201)]
  assert "wait in memory" in capsys.readouterr().err
  # Points that had no room are left out.
  assert {1, 49, 100, 149, 200} <= {step for _, step in points_of(tmp_path)}


def test_a_directory_that_cannot_be_made_is_one_paragraph(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(CheckpointError, match="cannot be written: Not a directory"):
    MetricsWriter(tmp_path / "file" / "run", resume_step=0)


def test_a_context_closes_and_keeps_the_first_error(tmp_path):
  with pytest.raises(ZeroDivisionError):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
      writer.write(1, {"loss": 1.0})
      raise ZeroDivisionError
  assert points_of(tmp_path) == [("loss", 1)]
  writer.close()  # again, which does nothing


def test_each_step_is_there_once_whatever_is_killed(tmp_path):
  """Twenty histories of kills: lines torn behind what was flushed, temporary files left."""
  rng = np.random.default_rng(0)
  for history in range(20):
    run, saved, expected = tmp_path / str(history), 0, {}
    for session in range(6):
      writer = MetricsWriter(run, resume_step=saved)
      last = saved + int(rng.integers(1, 12))
      for step in range(saved + 1, last + 1):
        writer.write(step, {"loss": session})
        if rng.random() < 0.2:
          writer.flush()
          expected |= dict.fromkeys(range(saved + 1, step + 1), session)
          saved, safe = step, (run / "metrics.jsonl").stat().st_size
      # Killed: what was not flushed is there, in part, or not.
      size = (run / "metrics.jsonl").stat().st_size
      os.truncate(run / "metrics.jsonl", rng.integers(safe if saved else 0, size + 1))
      if rng.random() < 0.3:
        (run / "metrics.jsonl.tmp").write_text('{"step": 1, "lo')
    MetricsWriter(run, resume_step=saved).close()
    assert [(line["step"], line["loss"]) for line in lines_of(run)] == sorted(expected.items())

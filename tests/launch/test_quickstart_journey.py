"""`launch/quickstart.sh` from end to end: interrupted, continued, complete."""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from vit_jax.observe.status import read_status

SCRIPT = pathlib.Path(__file__).parent.parent.parent / "launch" / "quickstart.sh"


def quickstart(directory, environment) -> subprocess.CompletedProcess:
  return subprocess.run(
      ["bash", str(SCRIPT), directory.name], env=environment.variables, cwd=directory.parent,
      capture_output=True, text=True,
  )


def interrupt_once_it_trains(directory, environment) -> int:
  """Starts the quickstart, presses Ctrl-C after its first metrics, and returns its exit code."""
  process = subprocess.Popen(
      ["bash", str(SCRIPT), str(directory)], env=environment.variables, start_new_session=True
  )
  try:
    while not _has_lines(directory / "pretrain" / "metrics.jsonl"):
      assert process.poll() is None, "it ended before it trained"
      time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(timeout=60)
  finally:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)


def _has_lines(file: pathlib.Path) -> bool:
  return file.exists() and file.stat().st_size > 0


def attempts(directory) -> list[int]:
  return [int(line) for line in (directory / "train_seconds").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.torch
def test_the_journey(tmp_path, environment):
  directory = tmp_path / "quick start@home"

  assert interrupt_once_it_trains(directory, environment) == 75
  assert len(attempts(directory)) == 1

  first = quickstart(directory, environment)
  assert first.returncode == 0, first.stdout + first.stderr
  assert "resume: from step" in first.stdout
  summary = json.loads((directory / "summary.json").read_text())
  assert summary["accuracy_jax"] == summary["accuracy_pytorch"] >= 0.97
  assert summary["max_logit_difference"] <= 2e-5 * summary["largest_logit"]
  assert summary["images_per_second"] > 0
  assert len(attempts(directory)) == 3 and summary["train_seconds"] == sum(attempts(directory))
  assert summary["huggingface_dir"] == str(directory / "huggingface")
  assert (directory / "huggingface" / "model.safetensors").exists()
  assert len(environment.pip_calls) == 1

  # Complete: no pip, no vit_jax, nothing but the table.
  began = time.monotonic()
  second = quickstart(directory, environment)
  assert second.returncode == 0 and "complete already" in second.stdout
  assert time.monotonic() - began < 20
  assert f"{summary['accuracy_jax']:.2%}" in second.stdout

  # The summary alone is made again: training is complete and takes no more seconds.
  (directory / "summary.json").unlink()
  third = quickstart(directory, environment)
  assert third.returncode == 0, third.stdout + third.stderr
  assert json.loads((directory / "summary.json").read_text()) == summary
  assert len(attempts(directory)) == 3 and len(environment.pip_calls) == 1
  assert read_status(directory / "finetune")["state"] == "complete"

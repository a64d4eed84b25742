"""The promises of the quickstart, on made-up numbers."""

import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent.parent / "launch" / "quickstart.py"

GOOD = {
    "accuracy_pretrained": 0.98,
    "accuracy_jax": 0.97,
    "accuracy_pytorch": 0.97,
    "max_logit_difference": 2e-4,
    "largest_logit": 10.0,
    "train_seconds": 83,
    "images_per_second": 1712,
    "huggingface_dir": "runs/quickstart/huggingface",
}

BROKEN = [
    ({"accuracy_pytorch": 0.9722}, "accuracy_jax equals accuracy_pytorch"),
    ({"max_logit_difference": 2.1e-4}, "max_logit_difference <= 2e-05 of the largest logit"),
    ({"max_logit_difference": math.nan}, "max_logit_difference <= 2e-05 of the largest logit"),
    ({"accuracy_jax": 0.969, "accuracy_pytorch": 0.969}, "accuracy_jax >= 0.97"),
]


@pytest.fixture(scope="module")
def quickstart():
  spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_kept_promises_are_written_and_shown(quickstart, tmp_path, capsys):
  assert quickstart.broken_promises(GOOD) == []
  assert quickstart.conclude(GOOD, tmp_path) == 0
  assert json.loads((tmp_path / "summary.json").read_text()) == GOOD
  shown = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
  assert shown == {
      "accuracy_pretrained": "98.00%",
      "accuracy_jax": "97.00%",
      "accuracy_pytorch": "97.00%",
      "max_logit_difference": "0.0002 (largest logit 10)",
      "train_seconds": "83",
      "images_per_second": "1712",
      "huggingface_dir": "runs/quickstart/huggingface",
  }


@pytest.mark.parametrize("change, promise", BROKEN)
def test_a_broken_promise_fails_and_leaves_no_summary(
    change, promise, quickstart, tmp_path, capsys
):
  (tmp_path / "summary.json").write_text("an older one")
  assert quickstart.broken_promises(GOOD | change) == [promise]
  assert quickstart.conclude(GOOD | change, tmp_path) == 1
  assert not (tmp_path / "summary.json").exists()
  assert promise in capsys.readouterr().err


def test_all_broken_promises_are_named(quickstart):
  nothing = {"accuracy_jax": 0.1, "accuracy_pytorch": 0.2, "max_logit_difference": 1.0}
  assert len(quickstart.broken_promises(GOOD | nothing)) == 3


def test_show_needs_only_the_standard_library(tmp_path):
  (tmp_path / "summary.json").write_text(json.dumps(GOOD))
  command = [sys.executable, "-I", "-S", str(SCRIPT), "show", str(tmp_path)]
  shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  assert "97.00%" in shown

"""benchmarks/soak.py, as a user calls it: a few faults, and what its table and its file say."""

import json
import pathlib
import subprocess
import sys

import pytest

from killer import environment

SOAK = pathlib.Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_nothing_is_lost_under_four_faults(tmp_path):
  file = tmp_path / "soak.json"
  done = subprocess.run(
      (sys.executable, str(SOAK), f"--workdir={tmp_path / 'soak'}", "--minutes=1", "--faults=4",
       "--kinds=in_save,flipped,full,twice", f"--json={file}"),
      capture_output=True, text=True, timeout=1500, env=environment(),
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "Nothing was lost: " in done.stdout and "1 of 1 damaged checkpoints" in done.stdout
  content = json.loads(file.read_text())
  own = [fault for fault in content["faults"] if fault["kind"] != "unasked"]
  assert sorted(fault["kind"] for fault in own) == ["flipped", "full", "in_save", "twice"]
  assert not content["broken"] and all(fault["step"] >= fault["due"] for fault in own)
  codes = {fault["kind"]: fault["codes"] for fault in own}
  assert codes == {"flipped": [137], "full": [], "in_save": [137], "twice": [137, 137]}

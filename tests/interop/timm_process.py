"""timm for the tests: one process of its own for a whole session (see timm_worker.py).

timm and torchvision are not in the environment of the tests but in a directory beside it, made by
launch/environment.sh: `pip install --no-deps --target="$VIRTUAL_ENV/timm" timm torchvision`.
"""

import functools
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile

import numpy as np
import pytest

PACKAGES = Path(sys.prefix) / "timm"


class TimmProcess:
  """Runs functions of timm_worker.py by name."""

  def __init__(self):
    self._directory = tempfile.TemporaryDirectory()
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(PACKAGES), str(root)])
    self._process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("timm_worker.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1",
             "OMP_NUM_THREADS": "1"},
    )
    self.notes = []

  def __call__(self, operation: str, *, images=None, **arguments) -> dict:
    """Returns the arrays that the worker answers; `notes` then holds what timm logged."""
    if images is not None:
      arguments["images"] = str(Path(self._directory.name) / "images.npy")
      np.save(arguments["images"], np.asarray(images, np.float32))
    answer = str(Path(self._directory.name) / "answer.npz")
    request = {"operation": operation, "arguments": arguments, "answer": answer}
    self._process.stdin.write(json.dumps(request, default=str) + "\n")
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    assert line, "the process with timm has ended; its error stands above"
    reply = json.loads(line)
    assert "error" not in reply, reply["error"]
    self.notes = reply["notes"]
    with np.load(answer) as arrays:
      return dict(arrays)


@functools.cache
def _process():
  return TimmProcess()


@pytest.fixture(scope="session")
def timm_process():
  """The session's process; every module that imports this fixture gets the same one."""
  if not (PACKAGES / "timm").is_dir():
    pytest.skip(f"timm is not in {PACKAGES}; launch/test.sh puts it there")
  return _process()

"""Saving again and again takes no more memory than saving a few times."""

import os
import pathlib
import statistics
import subprocess
import sys

import pytest

# Prints the resident bytes after each save of 24 MB.
SAVES = """
import os, pathlib, sys
import jax, numpy as np
from vit_jax.checkpoint.manager import Checkpoints

state = jax.device_put({"kernel": np.random.default_rng(0).normal(size=(3000, 1024))})
advanced = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 1.0001, state))
meta = {"config": {}, "examples_seen": 0, "metrics": {}, "versions": {}}
kept = []
with Checkpoints(sys.argv[1], keep_latest=2) as checkpoints:
  for step in range(int(sys.argv[2])):
    state = advanced(state)
    assert checkpoints.save(step, params=state, training=state, meta=meta)
    checkpoints.wait()
    if "leak" in sys.argv:
      kept.append(np.array(state["kernel"][:300]))
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    print(int(pages) * os.sysconf("SC_PAGE_SIZE"), flush=True)
"""


def growth(directory, saves: int, *more: str) -> float:
  """Of the resident memory from the second third of the saves, when allocators have their pools, to
  the last; medians, because a state may be on its way."""
  repository = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
      [sys.executable, "-c", SAVES, str(directory), str(saves), *more], cwd=repository,
      env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=900,
  )
  assert done.returncode == 0, done.stderr
  resident = [int(line) for line in done.stdout.split()]
  few = saves // 8
  return statistics.median(resident[-few:]) / statistics.median(resident[saves // 3:][:few]) - 1


@pytest.mark.slow
def test_eighty_saves_do_not_grow(tmp_path):
  assert growth(tmp_path / "flat", 80) < 0.05


@pytest.mark.slow
def test_a_twentieth_of_a_state_kept_at_each_save_would_show(tmp_path):
  assert growth(tmp_path / "leak", 80, "leak") > 0.05

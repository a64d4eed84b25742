"""A run whose newest checkpoint is damaged goes on from the newest that is good, below it."""

import json
import shutil

import disks
import flips
import numpy as np
import pytest

from vit_jax.loading import load

FEW = ("--config.evaluate.every=0 steps", "--config.checkpoint.keep_latest=9")


def train(path, *more) -> tuple[int, str]:
  """Trains the run at `path`: the exit code, and what it said."""
  with disks.Run(path, *FEW, *more) as run:
    return run.ends(), run.text


def committed(run) -> list[int]:
  found = [path.parent.name for path in (run / "checkpoints").glob("*/manifest.json")]
  return sorted(int(name) for name in found if name.isdigit())


@pytest.mark.slow
def test_strict_refuses_and_without_it_the_run_goes_on_below(tmp_path):
  run = tmp_path / "run"
  code, said = train(run, "--config.total=6 steps", "--config.checkpoint.every=3 steps")
  assert code == 0 and committed(run) == [3, 6], said
  before = load(run).params["head"]["kernel"]
  names = sorted((run / "checkpoints" / "6" / "params" / "d").iterdir())[:2]
  for path in names:
    flips.flip(path, path.stat().st_size // 2)
  # It is made longer, too.
  longer = ("--config.total=8 steps", "--amend", "--config.checkpoint.every=1 steps")
  code, said = train(run, *longer, "--strict")
  assert code == 5 and "Step 6, the newest" in said and committed(run) == [3, 6]
  assert all(f"params/d/{path.name}: its content has changed" in said for path in names)

  code, said = train(run, *longer)
  assert code == 0, said
  assert "resume: Step 6 is damaged" in said and "6.corrupt" in said and "from step 3 of 8" in said
  assert committed(run) == [3, 4, 5, 6, 7, 8]
  assert (run / "checkpoints" / "6.corrupt" / "manifest.json").exists()
  lines = (run / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
  # The very step that was damaged is computed again; the schedule is that of the longer run.
  assert np.abs(load(f"{run}@6").params["head"]["kernel"] - before).max() < 1e-2


@pytest.mark.slow
def test_a_finished_run_whose_last_checkpoint_is_damaged_is_not_complete(tmp_path):
  run, command = tmp_path / "run", ("--config.total=6 steps", "--config.checkpoint.every=3 steps")
  code, said = train(run, *command)
  assert code == 0, said
  before = load(run).params["head"]["kernel"]
  path = max((run / "checkpoints" / "6" / "params" / "d").iterdir())
  flips.flip(path, path.stat().st_size // 2)
  code, said = train(run, *command, "--strict")
  assert code == 5 and f"params/d/{path.name}: its content has changed" in said
  code, said = train(run, *command)
  assert code == 0 and "moved to" in said and "resume: from step 3 of 6" in said
  np.testing.assert_array_equal(load(run).params["head"]["kernel"], before)
  code, said = train(run, *command)
  assert code == 0 and "is complete: 6 steps" in said


@pytest.mark.slow
def test_a_run_of_which_nothing_is_good_is_not_begun_again_by_itself(tmp_path):
  """Its metrics would be overwritten; each repetition says so, until somebody decides."""
  run, command = tmp_path / "run", ("--config.total=6 steps", "--config.checkpoint.every=3 steps")
  code, said = train(run, *command)
  assert code == 0, said
  metrics = (run / "metrics.jsonl").read_text()
  for step in ("3", "6"):
    path = max((run / "checkpoints" / step / "params" / "d").iterdir())
    flips.flip(path, path.stat().st_size // 2)
  for _ in range(2):
    code, said = train(run, *command)
    assert code == 5 and "All checkpoints in" in said and "are damaged" in said, said
    assert (run / "metrics.jsonl").read_text() == metrics
  for path in (run / "checkpoints").glob("*.corrupt"):
    shutil.rmtree(path)
  code, said = train(run, *command)
  assert code == 0 and committed(run)[-1] == 6, said

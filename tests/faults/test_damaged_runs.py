"""A run whose newest checkpoint is damaged goes on from the newest that is good, below it."""

import json

import flips
import numpy as np
import pytest

from vit_jax.cli import main
from vit_jax.loading import load

TINY = (
    "--config.model.width=32", "--config.model.depth=2", "--config.model.mlp_dim=64",
    "--config.model.num_heads=2", "--config.input.batch_size=16", "--config.log_every=1 steps",
    "--config.evaluate.every=0 steps", "--config.checkpoint.keep_latest=9",
)


@pytest.fixture
def train(tmp_path, capsys):
  """Trains the run in this process: exit code, stdout, stderr on one line."""
  def call(*more):
    with pytest.raises(SystemExit) as left:
      main(["train", "--config=quickstart", *TINY, f"--workdir={tmp_path / 'run'}", *more])
    said = capsys.readouterr()
    return left.value.code, said.out, " ".join(said.err.split())

  return call


def committed(run) -> list[int]:
  found = [path.parent.name for path in (run / "checkpoints").glob("*/manifest.json")]
  return sorted(int(name) for name in found if name.isdigit())


def test_strict_refuses_and_without_it_the_run_goes_on_below(tmp_path, train):
  run = tmp_path / "run"
  code, _, err = train("--config.total=6 steps", "--config.checkpoint.every=3 steps")
  assert code == 0 and committed(run) == [3, 6], err
  before = load(run).params["head"]["kernel"]
  names = sorted((run / "checkpoints" / "6" / "params" / "d").iterdir())[:2]
  for path in names:
    flips.flip(path, path.stat().st_size // 2)
  # The run was to end here and is made longer, so that there is something to go on to.
  longer = ("--config.total=8 steps", "--amend", "--config.checkpoint.every=1 steps")
  code, _, err = train(*longer, "--strict")
  assert code == 5 and "Step 6, the newest" in err and committed(run) == [3, 6]
  assert all(f"params/d/{path.name}: its content has changed" in err for path in names)

  code, out, err = train(*longer)
  assert code == 0, err
  assert "resume: Step 6 is damaged" in out and "6.corrupt" in out and "from step 3 of 8" in out
  assert committed(run) == [3, 4, 5, 6, 7, 8]
  assert (run / "checkpoints" / "6.corrupt" / "manifest.json").exists()
  lines = (run / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
  # The very step that was damaged is computed again; the schedule is that of the longer run.
  assert np.abs(load(f"{run}@6").params["head"]["kernel"] - before).max() < 1e-2

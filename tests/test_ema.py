"""The average of the parameters: kept by the step, saved, loaded and demanded by name."""

import json

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.convert import convert
from vit_jax.errors import CheckpointError
from vit_jax.evaluate import evaluate
from vit_jax.loading import load, split_ref
from vit_jax.train import train

DECAY = 0.7
TINY = {
    "total": "4 steps", "input.batch_size": "16", "model.width": "32", "model.depth": "1",
    "model.num_heads": "4", "model.mlp_dim": "32", "checkpoint.every": "1 steps",
    "checkpoint.keep_latest": "9", "evaluate.every": "4 steps", "evaluate.batch_size": "512",
    "mesh.replica": "1", "mesh.fsdp": "8", "log_every": "1 steps",
    "checkpoint.best_metric": "loss",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Two runs that differ in the average alone."""
  root = tmp_path_factory.mktemp("ema")
  for name, extra in (("with", {"optimizer.ema_decay": str(DECAY)}), ("without", {})):
    train(config_lib.load("quickstart", TINY | extra), workdir=root / name)
  return root


def stored(directory):
  """Parameters and average by step."""
  with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
    return {
        step: (checkpoints.restore_params(step)[0], checkpoints.restore_ema(step)[0])
        for step in checkpoints.steps()
    }


def test_the_average_is_the_recursion_over_all_steps(runs):
  steps = stored(runs / "with")
  assert sorted(steps) == [1, 2, 3, 4]
  wanted = jax.tree.map(np.float64, steps[1][1])
  for step in (2, 3, 4):
    params, ema = steps[step]
    wanted = jax.tree.map(lambda a, p: DECAY * a + (1 - DECAY) * np.float64(p), wanted, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ema, wanted)
  difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), *steps[4])
  assert max(jax.tree.leaves(difference)) > 1e-4


def test_training_does_not_depend_on_the_average(runs):
  with_average, without = stored(runs / "with"), stored(runs / "without")
  jax.tree.map(np.testing.assert_array_equal, with_average[4][0], without[4][0])
  assert without[4][1] is None


def test_a_run_is_loaded_as_its_average(runs):
  average = stored(runs / "with")[4][1]
  for ref in (str(runs / "with"), f"{runs / 'with'}@4+ema", f"{runs / 'with'}+ema"):
    checkpoint = load(ref)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, average)
    assert checkpoint.report == ("the average of the parameters (decay 0.7) at step 4",)
  assert load(str(runs / "without")).report == ()


def test_the_average_is_what_is_evaluated_and_kept_as_best(runs):
  """What the last line says is what `evaluate` finds of the average, and not of the parameters."""
  run = runs / "with"
  lines = (run / "metrics.jsonl").read_text().splitlines()
  logged = {
      key.removeprefix("eval/validation/"): value
      for key, value in json.loads(lines[-1]).items() if key.startswith("eval/validation/")
  }
  found = evaluate(f"{run}@best", config_spec=None, overrides={})
  assert found["model"].endswith("@4+ema")
  assert found["metrics"]["loss"] == pytest.approx(logged["loss"], rel=1e-6)
  plain = evaluate(f"{runs / 'without'}@4", config_spec=None, overrides={})["metrics"]["loss"]
  assert abs(plain - logged["loss"]) > 1e-4  # its parameters are those of the other run


@pytest.mark.slow
def test_the_average_is_what_is_exported(runs, tmp_path):
  convert(
      str(runs / "with"), output=str(tmp_path / "npz"), to="google-npz", architecture=None,
      dtype="float32", max_shard_bytes=10**9,
  )
  (file,) = (tmp_path / "npz").glob("*.npz")
  jax.tree.map(np.testing.assert_array_equal, load(str(file)).params, stored(runs / "with")[4][1])


def test_what_is_not_there_is_said(runs):
  with pytest.raises(CheckpointError, match="keeps no average.*ema_decay"):
    load(f"{runs / 'without'}@4+ema")
  with pytest.raises(CheckpointError, match=r"only \+ema may follow"):
    load(f"{runs / 'with'}@4+average")


@pytest.mark.parametrize(
    "ref, which",
    [("a", ""), ("a@best", "best"), ("a@7+ema", "7+ema"), ("a+ema", "+ema"), ("a@best/b", "")],
)
def test_refs_are_split(ref, which, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path, found = split_ref(ref)
  assert found == which
  assert path == tmp_path / (ref if not which else "a")


@pytest.mark.slow
def test_an_average_may_begin_and_end_by_amending(tmp_path, capsys):
  run = tmp_path / "run"
  plain = {"schedule.name": "constant", "schedule.warmup": "0 steps", "evaluate.every": "3 steps"}
  for total, extra, said in (
      (1, {}, ""),
      (2, {"optimizer.ema_decay": str(DECAY)}, "the average of the parameters begins here"),
      (3, {}, "the average of the parameters ends here"),
  ):
    train(
        config_lib.load("quickstart", TINY | plain | {"total": f"{total} steps"} | extra),
        workdir=run, amend=True,
    )
    assert said in capsys.readouterr().out
  params, ema = zip(*(stored(run)[step] for step in (1, 2, 3)))
  assert ema[0] is None and ema[2] is None
  wanted = jax.tree.map(lambda a, p: DECAY * a + (1 - DECAY) * p, params[0], params[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ema[1], wanted)

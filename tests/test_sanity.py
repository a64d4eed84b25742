"""Only sane states are committed: steps are skipped, counted, not saved, and too many end a run."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import plan
from vit_jax import run_state
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.errors import NonFiniteError
from vit_jax.objectives.supervised import Supervised
from vit_jax.train import train

TINY = {
    "total": "10 steps", "input.batch_size": "16", "model.width": "32", "model.depth": "1",
    "model.num_heads": "2", "model.mlp_dim": "32", "log_every": "1 steps",
    "evaluate.every": "0 steps", "checkpoint.every": "2 steps", "checkpoint.keep_latest": "9",
    "schedule.warmup": "0 steps",
}


@pytest.fixture
def poison(monkeypatch):
  """A function that makes the loss of some steps NaN, or multiplies it."""

  def make(*steps, factor=np.nan):
    class Poisoned(Supervised):

      def loss(self, params, state, batch, key, step, train):
        loss_sum, *rest = super().loss(params, state, batch, key, step, train)
        bad = jnp.isin(step, jnp.array(steps))
        return jnp.where(bad, factor, 1.0) * loss_sum, *rest

    monkeypatch.setattr(plan, "Supervised", Poisoned)

  return make


def begin(workdir, **values):
  values = {key.replace("__", "."): str(value) for key, value in values.items()}
  train(config_lib.load("quickstart", TINY | values), workdir=workdir)


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def steps_saved(workdir):
  with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
    return checkpoints.steps()


@pytest.mark.slow
def test_skipped_steps_are_logged_and_not_saved(tmp_path, poison, capsys):
  poison(1, 4, 5)  # the second, fifth and sixth step
  begin(tmp_path, skip__limit=2)
  logged = rows(tmp_path)
  assert [row["step"] for row in logged] == list(range(1, 11))
  assert [row["step"] for row in logged if row["train/loss"] is None] == [2, 5, 6]
  assert [row["train/skipped"] for row in logged] == [0, 1, 1, 1, 2, 3, 3, 3, 3, 3]
  # What fell due at steps 2 and 6 came a step later; the data and the schedule went on.
  assert steps_saved(tmp_path) == [3, 4, 7, 8, 10]
  norms = [row["train/parameter_norm"] for row in logged]
  assert norms[1] == norms[0] and norms[5] == norms[4] == norms[3] != norms[6]
  assert len({row["train/learning_rate"] for row in logged}) == 10
  err = capsys.readouterr().err
  assert "step 2: 1 step was skipped" in err and "; 3 in all" in err
  with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
    assert checkpoints.meta(10)["examples_seen"] == 160


def test_too_many_in_a_row_end_the_run(tmp_path, poison):
  poison(*range(3, 10))
  with pytest.raises(NonFiniteError) as ended:
    begin(tmp_path, skip__limit=1)
  said = str(ended.value)
  assert "step 5 was skipped with loss nan" in said and "and so were 1 before it" in said
  assert "config.skip.limit is 1" in said and "step 2 is intact" in said
  assert f"--config.fork.checkpoint={tmp_path}@2" in said
  assert steps_saved(tmp_path) == [2]
  told = json.loads((tmp_path / "diagnosis.json").read_text())
  assert told["step"] == 5 and told["loss"] is None and told["parameters"] == []
  assert "blocks/mlp/fc1/kernel" in {entry["path"] for entry in told["gradients"]}


@pytest.mark.slow
def test_no_limit_is_none(tmp_path, poison):
  poison(6)
  with pytest.raises(NonFiniteError, match="step 7 was skipped.*config.skip.limit is 0"):
    begin(tmp_path, skip__limit=0)
  assert steps_saved(tmp_path) == [2, 4, 6]


@pytest.mark.slow
def test_a_run_may_end_on_a_skipped_step(tmp_path, poison):
  poison(9)
  begin(tmp_path)
  assert steps_saved(tmp_path)[-1] == 10
  with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
    late, before = (checkpoints.restore_params(step)[0] for step in (10, 8))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(late))
  assert any((a != b).any() for a, b in zip(jax.tree.leaves(late), jax.tree.leaves(before)))


@pytest.mark.slow
def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
  """The gradient was, but not what became of it."""
  with pytest.raises(NonFiniteError, match="after step 1 .*kernel.* are not finite, so it was not"):
    begin(
        tmp_path, optimizer__name="sgd", optimizer__learning_rate=1e38, model__dtype="float32",
        optimizer__clip_global_norm=1e10, optimizer__momentum=0.0, skip__limit=9,
        optimizer__weight_decay=1e30, checkpoint__every="1 steps",
    )
  assert steps_saved(tmp_path) == []


@pytest.mark.slow
def test_a_spike_is_skipped(tmp_path, poison, monkeypatch):
  monkeypatch.setattr("vit_jax.optim.skipping.WARM_UP", 4)
  poison(6, factor=1e4)
  begin(tmp_path / "kept")
  begin(tmp_path / "skipped", skip__spike_factor=20.0)
  assert rows(tmp_path / "kept")[-1]["train/skipped"] == 0
  logged = rows(tmp_path / "skipped")
  assert [row["train/skipped"] for row in logged] == [0] * 6 + [1] * 4
  assert logged[6]["train/gradient_norm"] > 100
  # Continued at step 4: what is usual is part of the checkpoint.
  for step in (6, 8, 10):
    shutil.rmtree(tmp_path / "skipped" / "checkpoints" / str(step), ignore_errors=True)
  assert steps_saved(tmp_path / "skipped")[-1] == 4
  begin(tmp_path / "skipped", skip__spike_factor=20.0)
  again = rows(tmp_path / "skipped")
  for name in ("step", "train/loss", "train/gradient_norm", "train/skipped"):
    assert [row[name] for row in again] == [row[name] for row in logged]
  poison(6, 7, factor=1e4)
  with pytest.raises(NonFiniteError, match="a spike .config.skip.spike_factor.: the usual norm is"):
    begin(tmp_path / "ended", skip__spike_factor=20.0, skip__limit=1)


@pytest.mark.slow
def test_a_checkpoint_of_before_there_was_skipping(tmp_path, monkeypatch):
  items = run_state._training_items

  def of_an_earlier_version(state):
    kept = items(state)
    return {name: kept[name] for name in kept if name != "health"}

  with monkeypatch.context() as patch:
    patch.setattr(run_state, "_training_items", of_an_earlier_version)
    begin(tmp_path / "run")
  begin(tmp_path / "reference", total="12 steps", schedule__name="constant")
  train(config_lib.load("quickstart", TINY | {"total": "12 steps"}), workdir=tmp_path / "run",
        amend=True)
  assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 13))

"""Runs that go on elsewhere, from another's state, for longer or around a spike: no example is lost
or repeated, and losses agree."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import fork, train_input
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.errors import ConfigError
from vit_jax.loading import load
from vit_jax.plan_verb import _resolve, plan
from vit_jax.train import train

from test_many_processes import alone
from test_many_processes import assert_same_training
from test_many_processes import train as train_alone

TINY = {
    "total": "4 steps", "input.batch_size": "16", "model.variant": "Ti/4", "model.width": "32",
    "model.depth": "1", "model.num_heads": "2", "model.mlp_dim": "32", "model.dropout": "0.1",
    "log_every": "1 steps", "evaluate.every": "0 steps", "checkpoint.every": "2 steps",
    "checkpoint.keep_latest": "9", "schedule.name": "constant", "schedule.warmup": "0 steps",
}


def begin(workdir, values=None, *, amend=False):
  train(config_lib.load("quickstart", TINY | (values or {})), workdir=workdir, amend=amend)


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
  return {row["step"]: row["train/loss"] for row in rows(workdir)}


def rates(workdir):
  return [row["train/learning_rate"] for row in rows(workdir)]


def seen(workdir, step):
  with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
    return checkpoints.meta(step)["examples_seen"]


def assert_same_parameters(one, other):
  jax.tree.map(np.testing.assert_array_equal, load(str(one)).params, load(str(other)).params)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
  run = tmp_path_factory.mktemp("fork") / "parent"
  begin(run)
  return run


@pytest.fixture
def starts(monkeypatch):
  """The places in the data at which streams of training batches begin."""
  found, batches = [], train_input.train_batches

  def listed(*arguments, start, **more):
    found.append(start)
    return batches(*arguments, start=start, **more)

  monkeypatch.setattr(train_input, "train_batches", listed)
  return found


def test_a_fork_with_nothing_changed_goes_on_bit_for_bit(tmp_path, parent, starts):
  begin(tmp_path / "fork", {"fork.checkpoint": f"{parent}@2"})
  assert starts == [32]
  assert losses(tmp_path / "fork") == {step: losses(parent)[step] for step in (3, 4)}
  assert_same_parameters(f"{tmp_path / 'fork'}@4", f"{parent}@4")
  info = json.loads((tmp_path / "fork" / "run.json").read_text())
  assert info["fork"] == {"ref": f"{parent}@2", "step": 2}
  # Its own from the beginning.
  assert seen(tmp_path / "fork", 2) == 32 and seen(tmp_path / "fork", 4) == 64


@pytest.mark.parametrize("values, said", [
    ({"model.width": "64"}, "config.model.width is 64, there 32"),
    ({"model.variant": "S/8"}, "config.model.patch_size is 8, there 4"),
    ({"seed": "1"}, "config.seed is 1, there 0"),
    ({"input.held_out": "0.3"}, "config.input.held_out is 0.3, there 0.2"),
    ({"input.batch_size": "32"}, "config.input.batch_size is 32, there 16"),
    ({"optimizer.name": "sgd"}, "config.optimizer.name is 'sgd', there 'adamw'"),
    ({"optimizer.freeze": "^blocks/"}, "config.optimizer.freeze is '^blocks/', there None"),
    ({"total": "1 steps"}, "can only be made longer"),
])
def test_a_state_that_does_not_fit_is_refused_by_key(tmp_path, parent, values, said):
  with pytest.raises(ConfigError) as refused:
    begin(tmp_path / "fork", {"fork.checkpoint": f"{parent}@2"} | values)
  assert said in str(refused.value)
  assert not (tmp_path / "fork" / "run.json").exists()
  with pytest.raises(ConfigError) as planned:
    plan("quickstart", TINY | {"fork.checkpoint": f"{parent}@2"} | values)
  assert str(planned.value) == str(refused.value)


@pytest.mark.parametrize("ref, said", [
    ("nowhere@2", "must be RUN@STEP"), ("{parent}@2+ema", "must be RUN@STEP"),
    ("{parent}@3", "no such checkpoint; committed steps: 2, 4"),
])
def test_what_cannot_be_forked(tmp_path, parent, ref, said):
  with pytest.raises(Exception, match=said.replace("+", r"\+")):
    begin(tmp_path / "fork", {"fork.checkpoint": ref.format(parent=parent)})
  assert not (tmp_path / "fork" / "run.json").exists()


def test_a_fork_is_planned_as_what_it_goes_on_from(parent):
  """As of a recipe that takes the model from its weights, which are of no more use."""
  values = TINY | {
      "fork.checkpoint": f"{parent}@2", "init.required": "true", "init.checkpoint": "nowhere",
  }
  shape = ("variant", "width", "depth", "num_heads", "mlp_dim")
  config = config_lib.replace(
      config_lib.load("quickstart", values), {f"model.{name}": None for name in shape}
  )
  resolved, pretrained = _resolve(
      config, fork.find_parent(config, None), platform="cpu", weights_required=True
  )
  assert pretrained is None
  assert (resolved.model.width, resolved.model.depth, resolved.model.patch_size) == (32, 1, 4)


def test_a_fork_is_computed_as_suits_its_own_devices(parent):
  config = config_lib.load("quickstart", TINY | {"fork.checkpoint": f"{parent}@2"})
  theirs = fork.find_parent(config, None)
  assert theirs.config.model.scan is False and theirs.config.model.remat == "none"
  found = fork.inherit(config, theirs).model
  assert found.scan is None and found.remat is None and found.gelu == "tanh"
  # What came with a head that was kept goes on with it.
  theirs = dataclasses.replace(
      theirs, config=config_lib.replace(theirs.config, {"model.pre_logits": True})
  )
  kept = config_lib.replace(config, {"init.head": "keep"})
  assert fork.inherit(kept, theirs).model.pre_logits is True
  assert fork.inherit(config, theirs).model.pre_logits is False


def test_data_is_left_out_only_at_a_fork(tmp_path):
  with pytest.raises(ConfigError, match="config.fork.checkpoint is not set"):
    begin(tmp_path / "run", {"fork.skip": "2 steps"})


@pytest.mark.slow
def test_two_cool_downs_of_one_run(tmp_path, parent):
  """And neither needs the parent once it has begun, nor follows it where that goes on."""
  run, constant = tmp_path / "parent", rates(parent)[0]
  shutil.copytree(parent, run)
  short = {"fork.checkpoint": f"{run}@2", "schedule.cooldown": "2 steps"}
  long = {"fork.checkpoint": f"{run}@latest", "schedule.cooldown": "3 steps", "total": "8 steps"}
  begin(tmp_path / "short", short)
  begin(tmp_path / "long", long)
  np.testing.assert_allclose(rates(tmp_path / "short"), [constant, constant / 2], rtol=1e-5)
  np.testing.assert_allclose(
      np.array(rates(tmp_path / "long")) / constant, [1, 1, 2 / 3, 1 / 3], rtol=1e-5
  )
  assert rates(parent) == [constant] * 4
  history = (tmp_path / "long" / "config_history.jsonl").read_text().splitlines()
  [entry] = map(json.loads, history)
  assert entry["step"] == 4 and entry["fork"] == f"{run}@4"
  assert entry["changed"] == {
      "total": {"from": "4 steps", "to": "8 steps"},
      "schedule.cooldown": {"from": "0 steps", "to": "3 steps"},
  }
  before = losses(tmp_path / "long")
  shutil.rmtree(run)
  for step in ("6", "8"):  # to the checkpoint that it began with
    shutil.rmtree(tmp_path / "long" / "checkpoints" / step)
  begin(tmp_path / "long", long)
  assert losses(tmp_path / "long") == before
  begin(tmp_path / "long", long | {"total": "9 steps"}, amend=True)
  assert sorted(losses(tmp_path / "long")) == [5, 6, 7, 8, 9]


@pytest.mark.slow
def test_a_fork_killed_before_its_first_checkpoint_begins_again_at_the_same_step(tmp_path, parent):
  run, fork = tmp_path / "parent", tmp_path / "fork"
  shutil.copytree(parent, run)
  values = {"fork.checkpoint": f"{run}@latest", "total": "6 steps"}
  begin(fork, values)
  before = losses(fork)
  begin(run, {"total": "5 steps"}, amend=True)  # another is the latest now
  shutil.rmtree(fork / "checkpoints")
  begin(fork, values)
  assert losses(fork) == before and sorted(before) == [5, 6]


@pytest.mark.slow
def test_the_data_of_a_spike_is_left_out(tmp_path, parent, starts):
  begin(tmp_path / "fork", {
      "fork.checkpoint": f"{parent}@2", "fork.skip": "1 steps", "total": "5 steps",
      "optimizer.learning_rate": "1e-4",
  })
  assert seen(tmp_path / "fork", 2) == 48  # 2 steps of 16 and the one left out
  assert seen(tmp_path / "fork", 5) == 96
  assert starts == [48]


@pytest.mark.slow
def test_an_average_may_begin_at_a_fork_and_a_fork_be_forked(tmp_path, parent):
  first = {"fork.checkpoint": f"{parent}@2", "optimizer.ema_decay": "0.5", "seed": "0"}
  begin(tmp_path / "first", first)
  begin(tmp_path / "second", {
      "fork.checkpoint": f"{tmp_path / 'first'}@4", "optimizer.ema_decay": "0.5",
      "total": "6 steps",
  })
  assert load(str(tmp_path / "second")).ref.endswith("@6+ema")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [
    {}, {"schedule.name": "rsqrt", "schedule.timescale": "2 steps", "schedule.warmup": "1 steps"},
], ids=["constant", "rsqrt"])
def test_a_finished_run_made_longer_is_the_longer_run(tmp_path, schedule):
  run = tmp_path / "run"
  begin(run, schedule)
  begin(run, schedule | {"total": "7 steps"}, amend=True)
  begin(tmp_path / "straight", schedule | {"total": "7 steps"})
  assert rates(run) == rates(tmp_path / "straight")
  assert losses(run) == losses(tmp_path / "straight")
  assert sorted(losses(run)) == list(range(1, 8))
  assert_same_parameters(run, tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("values", [
    {"mesh.fsdp": "4", "mesh.tensor": "2", "model.scan": "True"},
    {"mesh.fsdp": "8", "model.remat": "block"}, {"mesh.fsdp": "2", "input.threads": "0"},
    {"input.workers": "2"},
], ids=["fsdp4-tensor2-scan", "fsdp8-remat", "fsdp2-threads0", "workers2"])
def test_a_run_goes_on_over_another_mesh(tmp_path, parent, starts, values):
  run = tmp_path / "run"
  shutil.copytree(parent, run)
  shutil.rmtree(run / "checkpoints" / "4")
  begin(run, values)
  assert starts == [32]
  assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]
  np.testing.assert_allclose(
      list(losses(run).values()), list(losses(parent).values()), rtol=0, atol=2e-6
  )
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-4),
      load(str(run)).params, load(str(parent)).params,
  )


@pytest.fixture(scope="module")
def four(tmp_path_factory):
  """A run of one process with four devices."""
  workdir = tmp_path_factory.mktemp("devices") / "four"
  train_alone(workdir, processes=1, devices=4, starter=alone)
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize("devices, more", [
    (1, ()), (2, ("--config.model.scan=True",)), (8, ("--config.mesh.fsdp=4",)),
], ids=["1", "2-scan", "8-fsdp4"])
def test_a_run_goes_on_with_another_number_of_devices(tmp_path, four, devices, more):
  run = tmp_path / "run"
  shutil.copytree(four, run)
  shutil.rmtree(run / "checkpoints" / "8")
  [ended] = train_alone(run, *more, processes=1, devices=devices, starter=alone)
  assert "from step 4 of 8" in ended.out and "devices was 4 x cpu" in ended.out
  assert_same_training(run, four)

"""`micro_batch=auto` in a run: chosen once, stored, said; and what is said when memory runs out."""

import json

import jax
import pytest

from vit_jax import config as config_lib
from vit_jax import micro_batch
from vit_jax import plan
from vit_jax import resume
from vit_jax import train as train_module
from vit_jax.errors import ConfigError
from vit_jax.evaluators.classification import Classification

TINY = {
    "model.width": "32", "model.depth": "1", "model.num_heads": "2", "model.mlp_dim": "32",
    "input.batch_size": "64", "total": "2 steps", "checkpoint.every": "1 steps",
    "mesh.replica": "8", "mesh.fsdp": "1",
}


def run(workdir, *, amend=False, **values):
  values = TINY | {key.replace("__", "."): value for key, value in values.items()}
  train_module.train(config_lib.load("quickstart", values), workdir=workdir, amend=amend)
  return json.loads((workdir / "run.json").read_text())["resolved"]["micro_batch"]


@pytest.fixture
def compiled(monkeypatch):
  """Sizes that were asked for; a step of more than 16 examples needs more than there is."""
  asked, size_of, make = [], {}, plan.make_train_step

  def make_train_step(*arguments, micro_batches, **options):
    step = make(*arguments, micro_batches=micro_batches, **options)
    size_of[step] = 64 // micro_batches
    return step

  def needed(train_step, state, batch, key, *, device):
    asked.append(size_of[train_step])
    return 10**18 if asked[-1] > 16 else 10

  monkeypatch.setattr(plan, "make_train_step", make_train_step)
  monkeypatch.setattr(micro_batch, "step_bytes", needed)
  return asked


def test_it_is_chosen_once_and_said(tmp_path, compiled, capsys):
  assert run(tmp_path / "run", micro_batch="auto") == 16
  assert compiled == [64, 16, 32]  # bisected
  assert "micro_batch: 16 of 64 examples at a time" in capsys.readouterr().out
  assert run(tmp_path / "run", micro_batch="auto", total="3 steps", amend=True) == 16
  assert compiled == [64, 16, 32]


def test_where_it_no_longer_divides_it_is_chosen_again():
  requested = config_lib.complete(
      {"micro_batch": "auto", "input.batch_size": 64}, origin="a test"
  )
  resolved = config_lib.replace(requested, {"micro_batch": 16})
  again = lambda config, devices, amend=False: resume.with_possible_micro_batch(
      config, requested, devices=devices, amend=amend
  ).micro_batch
  assert again(resolved, 8) == 16 and again(resolved, 32) == "auto"
  random = config_lib.replace(resolved, {"model.dropout": 0.1})
  assert again(random, 8) == 16 and again(random, 32, amend=True) == "auto"
  with pytest.raises(ConfigError, match="chose 16, which 32 data shards do not divide.*--amend"):
    again(random, 32)


def test_what_is_chosen_again_stands_in_the_history():
  info = {"resolved": {"micro_batch": 16}}
  config = config_lib.complete({"micro_batch": 32}, origin="a test")
  other = resume.Continuation(config, info, {"seed": (0, 1)})
  assert resume.changes_of(other, config) == {"seed": (0, 1), "micro_batch": (16, 32)}
  same = config_lib.complete({"micro_batch": 16}, origin="a test")
  assert resume.changes_of(other, same) == {"seed": (0, 1)}
  assert resume.changes_of(resume.Continuation(config, None, {}), config) == {}


def out_of_memory(*_, **__):
  raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")


@pytest.mark.parametrize("where, name, advice", [
    (plan, "make_train_step", r"set config.micro_batch=32 \(now 64"),
    (Classification, "run", r"set config.evaluate.batch_size=24 \(now 48\)"),
    (train_module.run_state, "begin", "set config.mesh.fsdp to shard"),
])
def test_the_next_value_to_try_is_named(where, name, advice, tmp_path, monkeypatch):
  full = (lambda *_, **__: out_of_memory) if where is plan else out_of_memory
  monkeypatch.setattr(where, name, full)
  with pytest.raises(ConfigError, match=f"out of memory .RESOURCE_EXHAUSTED.*{advice}"):
    run(tmp_path / "run", evaluate__batch_size="48", evaluate__every="1 steps")

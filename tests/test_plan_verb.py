"""`vit-jax plan` as a user meets it, below the command line."""

import math
import os

import pytest

from vit_jax import config as config_lib
from vit_jax.errors import ConfigError
from vit_jax.plan import make_plan
from vit_jax.plan_verb import plan
from vit_jax.resolve import resolve


def test_this_machine_and_nothing_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text, told = plan("quickstart", {"input.batch_size": "32", "model.depth": "2"})
  assert os.listdir(tmp_path) == []
  assert told["changed"]["input.batch_size"] == [64, 32]
  assert "input.batch_size: 64 -> 32" in text
  config = config_lib.load("quickstart", {"input.batch_size": "32", "model.depth": "2"})
  made = make_plan(
      resolve(config, checkpoint=None, platform="cpu"), examples=told["data"]["train"],
      num_classes=10,
  )
  assert told["total_steps"] == made.total_steps
  assert told["config"] == config_lib.to_json(made.config)
  assert told["data"]["classes"] == 10 and sum(told["data"]["evaluated"].values()) > 0
  assert told["parameter_table"]["blocks/mlp/fc1/kernel"] == {
      "shape": [2, 64, 256], "dtype": "float32", "axes": [None, "fsdp", "tensor"], "dropped": [],
      "decays": True, "frozen": False, "rates": [1.0, 1.0],
  }
  shapes = [row["shape"] for row in told["parameter_table"].values()]
  assert sum(map(math.prod, shapes)) == told["parameters"]
  assert [len(row["axes"]) for row in told["parameter_table"].values()] == list(map(len, shapes))
  # Each key, each parameter and where it lies.
  for key in config_lib.FIELDS:
    assert f"  {key} = " in text
  assert "blocks/mlp/fc1/kernel" in text and "mesh: replica 8" in text
  assert f"steps: {made.total_steps} " in text


def test_nothing_changed_is_said():
  text, told = plan("quickstart", {})
  assert told["changed"] == {} and "changed by the command line: nothing" in text


def test_a_topology():
  text, told = plan(
      "finetune:cifar10", {"model.variant": "B/16"}, topology="h100:8", mfu=0.3
  )
  assert told["changed"] == {"model.variant": [None, "B/16"]}
  assert "model.variant: None -> 'B/16'" in text and "h100:8: 8 chips" in text
  assert told["data"]["examples"]["value"] == 49_000
  assert told["config"]["model"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "recipe, options, said",
    [
        ("finetune:cifar10", {"topology": "h100:8"}, "--config.model.variant"),
        ("finetune:cifar10", {}, "input.path"),
        ("quickstart", {"examples": 10}, "are for --topology"),
        ("quickstart", {"topology": "h100:8", "mfu": 1.5}, "share of the peak"),
        ("folder:scratch", {"topology": "h100:8", "examples": -5, "classes": 2}, "--examples=-5"),
        ("folder:scratch", {"topology": "h100:8", "examples": 5, "classes": 0}, "--classes=0"),
        ("folder:scratch", {"topology": "h100:8"}, "--examples"),
    ],
)
def test_errors(recipe, options, said):
  with pytest.raises(ConfigError) as error:
    plan(recipe, {}, **options)
  assert said in str(error.value)


def test_weights_to_start_from_are_asked_for(tmp_path):
  with pytest.raises(ConfigError, match="init.checkpoint"):
    plan("finetune:cifar10,runlocal", {})
  with pytest.raises(ConfigError, match=r"weights \(config.init.head is 'keep'\)"):
    plan("quickstart", {"init.head": "keep"})

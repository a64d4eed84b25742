"""Durations with units, and their conversion to steps and seconds."""

import pytest

from vit_jax import config as config_lib
from vit_jax import durations
from vit_jax.checkpoint.retention import Every
from vit_jax.pace import kept_every


@pytest.mark.parametrize(
    "text, parsed",
    [
        ("90 epochs", (90.0, "epochs")),
        ("1 epoch", (1.0, "epochs")),
        ("10000 steps", (10000.0, "steps")),
        ("10_000 steps", (10000.0, "steps")),
        ("1 step", (1.0, "steps")),
        ("1e6 examples", (1e6, "examples")),
        ("0.5 epochs", (0.5, "epochs")),
        ("5 percent", (5.0, "percent")),
        ("5%", (5.0, "percent")),
        ("  7  steps ", (7.0, "steps")),
        ("40steps", (40.0, "steps")),
    ],
)
def test_a_number_and_a_unit(text, parsed):
  assert durations.parse(text) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "10", "steps", "ten steps", "-1 steps", "10 lightyears", "10 steps more",
     "1.2.3 steps", "10 s", "e steps", "10 minutes", "nan steps", "inf steps", 10, None],
)
def test_anything_else_is_refused_with_an_example(text):
  with pytest.raises(ValueError) as error:
    durations.parse(text)
  said = str(error.value)
  assert repr(text) in said and "steps, epochs, examples, percent" in said
  assert '"10 steps"' in said


def test_units_can_be_restricted():
  units = durations.STEP_UNITS + durations.TIME_UNITS
  assert durations.parse("30 minutes", units=units) == (30.0, "minutes")
  assert durations.parse("1 hour", units=units) == (1.0, "hours")
  with pytest.raises(ValueError, match="steps, epochs, examples"):
    durations.parse("5%", units=("steps", "epochs", "examples"))


@pytest.mark.parametrize(
    "text, steps",
    [
        ("40 steps", 40),
        ("1 epoch", 391),  # 50000 / 128 = 390.6
        ("90 epochs", 35156),  # 35156.25: a batch may straddle epochs
        ("1e6 examples", 7812),  # 7812.5 rounds to even
        ("5 percent", 500),
        ("0.001 percent", 1),
        ("0.01 epochs", 4),
        ("1 example", 1),
        ("0 steps", 0),
        ("0 epochs", 0),
        ("0%", 0),
    ],
)
def test_steps_of_cifar_at_batch_128(text, steps):
  got = durations.to_steps(text, batch_size=128, examples=50_000, total_steps=10_000)
  assert got == steps and type(got) is int


def test_percent_makes_no_sense_of_the_total_itself():
  with pytest.raises(ValueError, match="'10 percent' is not a duration"):
    durations.to_steps("10 percent", batch_size=8, examples=100, total_steps=None)


def test_an_epoch_smaller_than_a_batch_is_a_step():
  assert durations.to_steps("1 epoch", batch_size=64, examples=5, total_steps=None) == 1


@pytest.mark.parametrize(
    "text, seconds",
    [("30 minutes", 1800.0), ("1 hour", 3600.0), ("0.5 minutes", 30.0), ("25 seconds", 25.0),
     ("10 steps", None),
     ("1 epoch", None), ("5%", None)],
)
def test_seconds_of_durations_of_time_only(text, seconds):
  assert durations.to_seconds(text) == seconds


@pytest.mark.parametrize("text, every", [
    ("0 steps", Every()), ("40 steps", Every(steps=40)), ("10 percent", Every(steps=20)),
    ("2 epochs", Every(steps=10)), ("6 hours", Every(seconds=21_600.0)),
    ("90 minutes", Every(seconds=5_400.0)),
])
def test_which_checkpoints_stay_for_ever(text, every):
  config = config_lib.load("quickstart", {
      "checkpoint.keep_every": text, "input.batch_size": "20", "total": "200 steps",
  })
  assert kept_every(config, examples=100) == every

"""Durations with units: "90 epochs", "10000 steps", "5 percent", "1e6 examples", "30 minutes"."""

import math
import re

STEP_UNITS = ("steps", "epochs", "examples", "percent")
TIME_UNITS = ("seconds", "minutes", "hours")


def parse(text: str, *, units: tuple[str, ...] = STEP_UNITS) -> tuple[float, str]:
  """Splits a duration into its number and unit; the singular is accepted ("1 epoch").

  Raises:
    ValueError: not a number >= 0 followed by one of `units`.
  """
  match = re.fullmatch(r"\s*([0-9.eE+_]+)\s*([a-z]+|%)\s*", str(text))
  unit = {"%": "percent"}.get(match[2], match[2]) if match else ""
  unit = unit if unit in units else unit + "s"
  try:
    number = float(match[1]) if match else None
  except ValueError:
    number = None
  if number is None or not math.isfinite(number) or unit not in units:
    raise ValueError(
        f"{text!r} is not a duration: write a number and a unit ({', '.join(units)}), "
        f'as in "10 {units[0]}"'
    )
  return number, unit


def to_steps(text: str, *, batch_size: int, examples: int, total_steps: int | None) -> int:
  """Resolves a duration to optimizer steps, max(1, round(examples / batch)); 0 stays 0.

  Args:
    batch_size: examples of one step.
    examples: examples of one epoch.
    total_steps: what "percent" refers to; None where percent makes no sense.

  Raises:
    ValueError: not a duration in steps, epochs, examples or percent.
  """
  units = STEP_UNITS if total_steps is not None else STEP_UNITS[:-1]
  number, unit = parse(text, units=units)
  if number == 0:
    return 0
  per_unit = {
      "steps": 1.0,
      "epochs": examples / batch_size,
      "examples": 1.0 / batch_size,
      "percent": (total_steps or 0) / 100.0,
  }[unit]
  return max(1, round(number * per_unit))


def to_seconds(text: str) -> float | None:
  """Resolves a duration in seconds, minutes or hours; None when its unit is not one of time."""
  number, unit = parse(text, units=STEP_UNITS + TIME_UNITS)
  return number * dict(zip(TIME_UNITS, (1.0, 60.0, 3600.0)))[unit] if unit in TIME_UNITS else None

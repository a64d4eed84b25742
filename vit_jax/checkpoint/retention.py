"""Which committed checkpoints may go, and how one goes."""

import math
from typing import NamedTuple

from etils import epath

from vit_jax.checkpoint import commit

# Of every other evaluation metric more is better.
_LESS_IS_BETTER = ("loss",)


def less_is_better(metric: str | None) -> bool:
  """Whether the best value of a metric, such as `eval/SPLIT/loss`, is its smallest."""
  return metric is not None and metric.rpartition("/")[2] in _LESS_IS_BETTER


class Every(NamedTuple):
  """An interval of which the first checkpoint is kept for ever: in steps or in seconds.

  Steps count from 0, and the interval before the first multiple keeps nothing; seconds from the
  epoch, so that "6 hours" are the quarters of a UTC day, however often a run was restarted.
  """

  steps: int = 0
  seconds: float = 0.0


class Saved(NamedTuple):
  """What its manifest says of a committed step; `time` in seconds since the epoch, or None."""

  time: float | None = None
  metrics: dict = {}

  @classmethod
  def of(cls, content: dict) -> "Saved":
    """Of a manifest's content; an older one has no time."""
    return cls(content.get("time"), content.get("metrics", {}))


class Policy(NamedTuple):
  """What stays: the newest `keep_latest`, the best by `best_metric`, the first of `every`."""

  keep_latest: int = 1
  best_metric: str | None = None
  every: Every = Every()

  def to_json(self) -> dict:
    """The same as JSON has it."""
    return {**self._asdict(), "every": self.every._asdict()}

  @classmethod
  def from_json(cls, content: dict) -> "Policy":
    """The inverse of `to_json`."""
    return cls(**{**content, "every": Every(**content["every"])})

  def superfluous(self, saved: dict[int, Saved]) -> list[int]:
    """The steps to delete, ascending; a function of what the manifests say alone.

    The newest always stays.
    """
    steps = sorted(saved)
    kept = set(steps[-max(self.keep_latest, 1):]) | self.for_ever(saved) | {self.best(saved)}
    return [step for step in steps if step not in kept]

  def best(self, saved: dict[int, Saved]) -> int | None:
    """The step whose metric is best, the earliest of equals; None without a metric.

    Steps without the metric, or where it is not a finite number, do not compete.
    """
    sign, scores = -1 if less_is_better(self.best_metric) else 1, {}
    for step, (_, metrics) in saved.items():
      value = metrics.get(self.best_metric)
      if isinstance(value, (int, float)) and math.isfinite(value):
        scores[step] = sign * value
    return max(scores, key=lambda step: (scores[step], -step), default=None)

  def for_ever(self, saved: dict[int, Saved]) -> set[int]:
    """The first step of each interval."""
    first = {}
    for step in sorted(saved):
      number = self._interval(step, saved[step].time)
      if number is not None:
        first.setdefault(number, step)
    return set(first.values())

  def _interval(self, step: int, time: float | None) -> int | None:
    if self.every.steps:
      return step // self.every.steps or None
    if self.every.seconds and time is not None:
      return math.floor(time / self.every.seconds)
    return None


def delete(directory: epath.Path) -> None:
  """Deletes a step; what commits it goes first, so that no half of it looks committed."""
  commit.withdraw(directory)
  directory.rmtree()

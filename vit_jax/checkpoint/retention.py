"""Which committed checkpoints may go."""

import math


def best_step(metrics: dict[int, dict], *, metric: str) -> int | None:
  """The step whose `metric` is largest, the earliest of equals.

  Steps without the metric, or where it is not a finite number, do not compete.

  Args:
    metrics: step to that step's metrics.
  """
  scores = {}
  for step, values in metrics.items():
    value = values.get(metric)
    if isinstance(value, (int, float)) and math.isfinite(value):
      scores[step] = value
  return max(scores, key=lambda step: (scores[step], -step), default=None)


def superfluous(steps: list[int], *, keep_latest: int, best: int | None) -> list[int]:
  """The steps of ascending `steps` to delete: all but the newest `keep_latest` and `best`.

  The newest always stays.
  """
  kept = set(steps[-max(keep_latest, 1):]) | {best}
  return [step for step in steps if step not in kept]

import json

import pytest

from vit_jax.checkpoint.retention import Every, Policy, Saved

HOUR = 3600.0


@pytest.mark.parametrize(
    "keep_latest, best, gone",
    [(1, None, [1, 2, 3]), (2, 1, [2]), (9, None, []), (0, None, [1, 2, 3]), (1, 4, [1, 2, 3])],
)
def test_the_newest_and_the_best_stay(keep_latest, best, gone):
  found = {step: Saved(metrics={"a": float(step == best)} if best else {}) for step in range(1, 5)}
  assert Policy(keep_latest, "a").superfluous(found) == gone


def test_the_best_is_a_finite_number():
  metrics = {1: {"a": None}, 2: {"a": 1}, 3: {"a": 1.0}, 4: {}, 5: {"a": float("inf")}}
  found = {step: Saved(metrics=values) for step, values in metrics.items()}
  assert Policy(1, "a").best(found) == 2
  assert Policy(1, "b").best(found) is None


def test_of_a_loss_the_smallest_is_the_best():
  values = {1: 0.7, 2: 0.4, 3: 0.4, 4: 0.9, 5: float("-inf")}
  metrics = {step: {"eval/test/loss": x, "eval/test/accuracy": x} for step, x in values.items()}
  found = {step: Saved(metrics=both) for step, both in metrics.items()}
  assert Policy(1, "eval/test/loss").best(found) == 2
  assert Policy(1, "eval/test/loss").superfluous(found) == [1, 3, 4]
  assert Policy(1, "eval/test/accuracy").best(found) == 4


def kept_over(times: dict[int, float | None], policy) -> list[int]:
  """The steps left of a run that saves them one after the other."""
  there = {}
  for step, time in times.items():
    there[step] = Saved(time)
    for gone in policy.superfluous(there):
      del there[gone]
  return list(there)


def test_the_first_of_every_so_many_steps_stays():
  times = dict.fromkeys(range(300, 3900, 300))
  kept = kept_over(times, Policy(2, every=Every(steps=1000)))
  assert kept == [1200, 2100, 3000, 3300, 3600]
  assert kept_over(dict.fromkeys((10, 20, 30)), Policy(1, every=Every(steps=10))) == [10, 20, 30]


def test_the_first_of_every_so_many_hours_stays_whatever_happened_between():
  times = {step: (100 + step / 2) * HOUR for step in range(12)}
  times |= {step: (117 + step / 2) * HOUR for step in range(12, 20)}  # eleven hours later
  policy = Policy(1, every=Every(seconds=6 * HOUR))
  # 100 h are in the window from 96 h on; then 102, and after the break 123 and 126.
  assert kept_over(times, policy) == [0, 4, 12, 18, 19]
  again = {step: Saved(times[step]) for step in kept_over(times, policy)}
  assert policy.superfluous(again) == []


def test_manifests_without_a_time_are_kept_by_no_clock():
  assert kept_over(dict.fromkeys((1, 2, 3)), Policy(1, every=Every(seconds=1.0))) == [3]


def test_a_policy_is_json():
  policy = Policy(3, "eval/test/accuracy", Every(seconds=21600.0))
  assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy

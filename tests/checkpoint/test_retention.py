import pytest

from vit_jax.checkpoint.retention import best_step, superfluous


@pytest.mark.parametrize(
    "keep_latest, best, gone",
    [(1, None, [1, 2, 3]), (2, 1, [2]), (9, None, []), (0, None, [1, 2, 3]), (1, 4, [1, 2, 3])],
)
def test_superfluous(keep_latest, best, gone):
  assert superfluous([1, 2, 3, 4], keep_latest=keep_latest, best=best) == gone


def test_best_step_ignores_what_is_no_finite_number():
  metrics = {1: {"a": None}, 2: {"a": 1}, 3: {"a": 1.0}, 4: {}, 5: {"a": float("inf")}}
  assert best_step(metrics, metric="a") == 2
  assert best_step(metrics, metric="b") is None

"""Learning rates against closed formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.optim.schedule import SCHEDULES, make_schedule

PEAK, WARMUP, TOTAL, END = 3e-3, 100, 1000, 1e-5


def schedule(name, **changes):
  settings = {
      "learning_rate": PEAK, "warmup_steps": WARMUP, "total_steps": TOTAL,
      "end_learning_rate": END,
  }
  return make_schedule(name, **(settings | changes))


def closed_form(name, step, *, warmup=WARMUP, end=END):
  if step < warmup:
    return PEAK * step / warmup
  done = min(1.0, (step - warmup) / (TOTAL - warmup))
  return {
      "cosine": end + (PEAK - end) * 0.5 * (1 + np.cos(np.pi * done)),
      "linear": PEAK + (end - PEAK) * done,
      "constant": PEAK,
  }[name]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup, end", [(WARMUP, END), (0, END), (WARMUP, 0.0), (1, 0.0)])
def test_rates_follow_the_closed_form(name, warmup, end):
  rate = schedule(name, warmup_steps=warmup, end_learning_rate=end)
  for step in (0, 1, 37, 99, 100, 101, 325, 550, 775, 999, 1000, 1500):
    wanted = closed_form(name, step, warmup=warmup, end=end)
    assert float(rate(step)) == pytest.approx(wanted, rel=1e-6, abs=PEAK * 2e-7), step


def test_the_peak_is_reached_once_at_the_end_of_the_warmup():
  for name in ("cosine", "linear"):
    rates = [float(schedule(name)(step)) for step in range(90, 120)]
    assert np.argmax(rates) == 10 and rates[10] == pytest.approx(PEAK, rel=1e-6)
    assert np.all(np.diff(rates[:11]) > 0) and np.all(np.diff(rates[10:]) < 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_traced_step_gives_a_float32_scalar(name):
  rate = jax.jit(schedule(name))(jnp.asarray(550, jnp.int32))
  assert rate.shape == () and rate.dtype == jnp.float32
  assert float(rate) == pytest.approx(closed_form(name, 550), rel=1e-6)


def test_a_warmup_as_long_as_the_run_is_all_warmup():
  rate = schedule("cosine", warmup_steps=TOTAL)
  assert float(rate(TOTAL - 1)) == pytest.approx(PEAK * (TOTAL - 1) / TOTAL, rel=1e-6)


def test_an_unknown_schedule_is_refused():
  with pytest.raises(ValueError, match="unknown schedule 'polynomial'"):
    schedule("polynomial")

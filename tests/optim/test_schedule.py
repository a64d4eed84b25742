"""Learning rates against PyTorch's schedulers and closed formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import ConfigError
from vit_jax.optim.schedule import SCHEDULES, make_schedule

PEAK, WARMUP, TOTAL, END = 3e-3, 100, 1000, 1e-5
TIMESCALE = 10_000


def schedule(name, **changes):
  settings = {
      "learning_rate": PEAK, "warmup_steps": WARMUP, "total_steps": TOTAL,
      "end_learning_rate": END,
  }
  return make_schedule(name, **(settings | changes))


def closed_form(
    name, step, *, warmup=WARMUP, end=END, total=TOTAL, cooldown=0, timescale=TIMESCALE
):
  """Float64; a step beyond the total is the total's, but for a rsqrt without a cool-down."""
  if step < warmup:
    return PEAK * step / warmup
  if cooldown and step > total - cooldown:
    start = closed_form(name, total - cooldown, warmup=warmup, timescale=timescale)
    return end + (start - end) * max(0, total - step) / cooldown
  done = min(1.0, (step - warmup) / max(1, total - warmup))
  return {
      "cosine": end + (PEAK - end) * 0.5 * (1 + math.cos(math.pi * done)),
      "linear": PEAK + (end - PEAK) * done,
      "rsqrt": PEAK / math.sqrt(1 + (step - warmup) / timescale),
      "constant": PEAK,
  }[name]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup, end", [(WARMUP, END), (0, END), (WARMUP, 0.0), (1, 0.0)])
def test_rates_follow_the_closed_form(name, warmup, end):
  rate = schedule(name, warmup_steps=warmup, end_learning_rate=end)
  for step in (0, 1, 37, 99, 100, 101, 325, 550, 775, 999, 1000, 1500):
    wanted = closed_form(name, step, warmup=warmup, end=end)
    assert float(rate(step)) == pytest.approx(wanted, rel=1e-6, abs=PEAK * 2e-7), step


@pytest.mark.parametrize("name", ["rsqrt", "constant"])
@pytest.mark.parametrize(
    "warmup, cooldown, end",
    [(10, 20, 0.0), (0, 20, END), (10, 40, 0.0), (0, 50, 0.0), (49, 1, END)],
)
def test_fifty_rates_with_a_cooldown_follow_the_closed_form(name, warmup, cooldown, end):
  rate = schedule(
      name, warmup_steps=warmup, cooldown_steps=cooldown, total_steps=50, end_learning_rate=end,
      timescale_steps=7,
  )
  for step in range(60):
    wanted = closed_form(
        name, step, warmup=warmup, cooldown=cooldown, end=end, total=50, timescale=7
    )
    assert float(rate(step)) == pytest.approx(wanted, rel=1e-6, abs=PEAK * 2e-7), step
  assert float(rate(50)) == pytest.approx(end, abs=1e-12)


def in_torch(name, warmup, cooldown, end, steps):
  """PyTorch's schedulers in a row; LinearLR cannot start at exactly 0."""
  torch = pytest.importorskip("torch")
  parts = torch.optim.lr_scheduler
  optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
  length = steps - warmup - cooldown
  course = {
      "cosine": lambda: parts.CosineAnnealingLR(optimizer, length, eta_min=end),
      "linear": lambda: parts.LinearLR(optimizer, 1.0, end / PEAK, length),
      "constant": lambda: parts.ConstantLR(optimizer, 1.0, length),
  }[name]
  row, starts = [parts.LinearLR(optimizer, 1e-9, 1.0, warmup), course()], [warmup]
  if cooldown:
    row.append(parts.LinearLR(optimizer, 1.0, end / PEAK, cooldown))
    starts.append(steps - cooldown)
  scheduler = parts.SequentialLR(optimizer, row, starts)
  rates = []
  for _ in range(steps):
    rates.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
  return rates


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:The epoch parameter")  # PyTorch's own call of its own
@pytest.mark.parametrize(
    "name, cooldown", [("cosine", 0), ("linear", 0), ("constant", 0), ("constant", 20)]
)
@pytest.mark.parametrize("end", [0.0, END])
def test_fifty_rates_equal_pytorchs(name, cooldown, end):
  wanted = in_torch(name, 10, cooldown, end, 50)
  rate = schedule(
      name, warmup_steps=10, cooldown_steps=cooldown, total_steps=50, end_learning_rate=end
  )
  got = [float(rate(step)) for step in range(50)]
  np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=PEAK * 2e-7)


def test_rsqrt_halves_its_square_each_timescale():
  rate = schedule("rsqrt", timescale_steps=300)
  assert float(rate(WARMUP)) == pytest.approx(PEAK)
  assert float(rate(WARMUP + 300)) == pytest.approx(PEAK / 2**0.5, rel=1e-6)
  assert float(rate(WARMUP + 900)) == pytest.approx(PEAK / 2, rel=1e-6)
  assert float(schedule("rsqrt")(WARMUP + 10_000)) == pytest.approx(PEAK / 2**0.5, rel=1e-6)


def test_the_peak_is_reached_once_at_the_end_of_the_warmup():
  for name in ("cosine", "linear", "rsqrt"):
    rates = [float(schedule(name)(step)) for step in range(90, 120)]
    assert np.argmax(rates) == 10 and rates[10] == pytest.approx(PEAK, rel=1e-6)
    assert np.all(np.diff(rates[:11]) > 0) and np.all(np.diff(rates[10:]) < 0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("cooldown", [0, 10**9 + 7])
def test_rates_hold_up_to_the_last_int32(name, cooldown):
  if name in ("cosine", "linear"):
    cooldown = 0
  total, warmup = 2**31 - 1, 2**24 + 3
  rate = jax.jit(
      schedule(name, total_steps=total, warmup_steps=warmup, cooldown_steps=cooldown)
  )
  for step in (
      0, 1, 2**24 - 1, 2**24 + 1, warmup, warmup + 1, 2**30 + 1, total - cooldown - 1,
      total - cooldown + 1, total - 2**25, total - 1, total,
  ):
    wanted = closed_form(name, step, warmup=warmup, total=total, cooldown=cooldown)
    got = rate(jnp.asarray(min(step, total), jnp.int32))
    assert float(got) == pytest.approx(wanted, rel=1e-6, abs=PEAK * 2e-7), step


def test_late_steps_share_a_rate_in_steps_of_float32():
  """The staircase that the docstring speaks of."""
  rate = jax.jit(
      schedule("linear", warmup_steps=0, total_steps=2**31 - 1, end_learning_rate=0.0)
  )
  rates = np.array([rate(jnp.asarray(2**31 - 1 - step)) for step in range(1024, 0, -1)])
  assert np.all(np.diff(rates) <= 0) and rates[-1] < rates[0]
  assert np.bincount(np.unique(rates, return_inverse=True)[1]).max() in range(64, 130)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_traced_step_gives_a_float32_scalar(name):
  rate = jax.jit(schedule(name))(jnp.asarray(550, jnp.int32))
  assert rate.shape == () and rate.dtype == jnp.float32
  assert float(rate) == pytest.approx(closed_form(name, 550), rel=1e-6)


def test_no_step_makes_a_nan_even_in_between():
  with jax.debug_nans(True):
    rate = schedule("rsqrt", warmup_steps=500, cooldown_steps=100, timescale_steps=2)
    assert float(rate(0)) == 0.0 and float(rate(10)) == pytest.approx(PEAK / 50)


def test_a_warmup_as_long_as_the_run_is_all_warmup():
  rate = schedule("cosine", warmup_steps=TOTAL)
  assert float(rate(TOTAL - 1)) == pytest.approx(PEAK * (TOTAL - 1) / TOTAL, rel=1e-6)


def test_an_unknown_schedule_is_refused():
  with pytest.raises(ValueError, match="unknown schedule 'polynomial'"):
    schedule("polynomial")


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_schedule_that_ends_by_itself_takes_no_cooldown(name):
  with pytest.raises(
      ConfigError, match=f"config.schedule.cooldown is 5 steps, but config.schedule.name '{name}'"
  ):
    schedule(name, cooldown_steps=5)


def test_warmup_and_cooldown_fit_into_the_total():
  schedule("rsqrt", warmup_steps=400, cooldown_steps=600)
  with pytest.raises(
      ConfigError,
      match="config.schedule.warmup is 400 steps and config.schedule.cooldown 601, .* 1000 of "
      "config.total",
  ):
    schedule("rsqrt", warmup_steps=400, cooldown_steps=601)


def test_a_total_beyond_int32_is_refused():
  with pytest.raises(ConfigError, match="config.total is 2147483648 steps"):
    schedule("constant", total_steps=2**31)

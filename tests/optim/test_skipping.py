"""Which steps are taken: finite ones, and once there is a usual norm none far above it."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.optim.skipping import WARM_UP, init_health, judge, new_where


def after(norms, *, spike_factor=None, loss=1.0, health=None):
  """The last verdict, and the health behind steps of these gradient norms."""
  health = init_health() if health is None else health
  for norm in norms:
    taken, health = judge(
        health, loss=jnp.float32(loss), gradient_norm=jnp.float32(norm), spike_factor=spike_factor
    )
  return bool(taken), health


@pytest.mark.parametrize("loss, norm, taken", [
    (1.0, 1.0, True), (np.nan, 1.0, False), (-np.inf, 1.0, False), (1.0, np.nan, False),
    (1.0, np.inf, False), (1.0, 0.0, True), (1.0, 1e30, True),
])
def test_only_what_is_finite_is_taken(loss, norm, taken):
  found, health = after([norm], loss=loss)
  assert found == taken
  assert int(health["taken"]) == taken and int(health["skipped"]) == 1 - taken
  assert np.isfinite(health["log_gradient_norm"])


def test_counts_in_a_row_end_with_a_step_that_is_taken():
  _, health = after([1.0, np.nan, np.nan])
  assert (int(health["skipped"]), int(health["skipped_in_a_row"])) == (2, 2)
  _, health = after([1.0], health=health)
  assert (int(health["skipped"]), int(health["skipped_in_a_row"])) == (2, 0)


def test_a_spike_is_what_exceeds_the_usual_norm_by_the_factor():
  _, health = after([1.0, 4.0] * (WARM_UP // 2), spike_factor=5.0)
  assert float(jnp.exp(health["log_gradient_norm"])) == pytest.approx(2.0, rel=1e-4)
  assert after([9.9], spike_factor=5.0, health=health)[0]
  taken, behind = after([10.1], spike_factor=5.0, health=health)
  assert not taken
  # What was skipped is no part of what is usual.
  assert float(behind["log_gradient_norm"]) == float(health["log_gradient_norm"])
  assert after([10.1], spike_factor=None, health=health)[0]


def test_there_are_no_spikes_before_there_is_a_usual_norm():
  _, health = after([1.0] * (WARM_UP - 1), spike_factor=2.0)
  assert after([1e6], spike_factor=2.0, health=health)[0]
  _, health = after([1.0], spike_factor=2.0, health=health)
  assert not after([1e6], spike_factor=2.0, health=health)[0]


def test_the_usual_norm_follows_slowly():
  _, health = after([1.0] * WARM_UP, spike_factor=100.0)
  _, health = after([np.e] * 100, spike_factor=100.0, health=health)
  assert float(health["log_gradient_norm"]) == pytest.approx(1 - 0.99**100, rel=1e-3)


@pytest.mark.parametrize("taken", [True, False])
def test_the_schedule_goes_on_and_nothing_else(taken):
  chain = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(lambda count: 0.1))
  params = {"kernel": jnp.ones(3)}
  old = chain.init(params)
  _, new = chain.update({"kernel": jnp.full(3, 2.0)}, old, params)
  adam, rate = new_where(jnp.bool_(taken), new, old)
  assert int(rate.count) == 1
  assert int(adam.count) == taken
  assert np.all((adam.mu["kernel"] != 0) == taken)

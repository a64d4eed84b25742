"""Which updates are taken: a step whose loss or gradient is not sane changes nothing but counts.

A gradient that is not finite ruins the parameters for good; one that is finite but many times as
long as usual, a spike, may undo days (PaLM, arXiv 2204.02311, section 5.1, where it came of a few
batches in a certain state of the parameters, and skipping those batches mended it).
"""

import math

import jax
import jax.numpy as jnp
import optax

WARM_UP = 100  # updates taken before any gradient counts as a spike
_RATE = 0.01  # of the moving mean: about the last 100 updates
_TINY = 1e-30  # a gradient may be zero, its logarithm may not be infinite


def init_health() -> dict:
  """What is known of the steps before the first: a dict of scalars.

  taken, skipped: int32, updates taken and skipped so far.
  skipped_in_a_row: int32, updates skipped since the last that was taken.
  log_gradient_norm: float32, moving mean over the updates taken.
  """
  counts = ("taken", "skipped", "skipped_in_a_row")
  health = {name: jnp.zeros((), jnp.int32) for name in counts}
  return health | {"log_gradient_norm": jnp.zeros((), jnp.float32)}


def judge(health: dict, *, loss, gradient_norm, spike_factor: float | None):
  """Whether a step is to be taken; pure, to be called inside a jitted step.

  It is if loss and norm are finite and, once `WARM_UP` updates are taken, the norm is at most
  `spike_factor` times its usual value: the geometric mean over the updates taken, of all of them
  at first, later exponentially weighted.  What is skipped does not change what is usual.

  Args:
    health: see `init_health`.
    loss, gradient_norm: float32 scalars, of the whole batch over all devices.
    spike_factor: None for no limit.

  Returns:
    A bool scalar, and the new health.
  """
  usual = health["log_gradient_norm"]
  taken = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
  log_norm = jnp.log(jnp.maximum(gradient_norm, _TINY))
  if spike_factor is not None:
    is_spike = log_norm > usual + math.log(spike_factor)
    taken &= (health["taken"] < WARM_UP) | ~is_spike
  rate = jnp.maximum(_RATE, 1.0 / (health["taken"] + 1))
  return taken, {
      "taken": health["taken"] + taken,
      "skipped": health["skipped"] + ~taken,
      "skipped_in_a_row": jnp.where(taken, 0, health["skipped_in_a_row"] + 1),
      "log_gradient_norm": jnp.where(taken, usual + rate * (log_norm - usual), usual),
  }


def new_where(taken, new, old):
  """The tree `new` of a step that is taken, else `old`.

  The count that drives the learning rate goes on, so that the schedule stays that of the step.
  """

  def is_schedule(node):
    return isinstance(node, optax.ScaleByScheduleState)

  def choose(node, before):
    return node if is_schedule(node) else jnp.where(taken, node, before)

  return jax.tree.map(choose, new, old, is_leaf=is_schedule)

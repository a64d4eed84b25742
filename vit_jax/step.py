"""The training step: gradient, perhaps in parts, clip, update; one jitted function over a mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import optax

from vit_jax.optim.norms import norms_by_block
from vit_jax.optim.skipping import init_health, judge, new_where
from vit_jax.parallel.mesh import batch_sharding, replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a step changes: plain nested dicts of arrays.

  Attributes:
    step: int32 scalar, batches seen so far.
    params: float32 parameters.
    opt_state: of the optax chain.
    ema: exponential moving average of the parameters, like them; empty where none is kept.
    objective_state: what the objective carries from step to step; often empty.
    health: which steps were skipped, see `optim.skipping.init_health`.
  """

  step: Any
  params: Any
  opt_state: Any
  ema: Any
  objective_state: Any
  health: Any

  @property
  def averaged(self):
    """The parameters to evaluate and publish: the average where one is kept."""
    return self.ema or self.params


def init_state(objective, optimizer, key, batch, *, ema_decay: float | None = None) -> TrainState:
  """Returns the state before the first step; `batch` gives the shapes (see `Objective.init`)."""
  params, objective_state = objective.init(key, batch)
  ema = {} if ema_decay is None else params
  return TrainState(
      jnp.zeros((), jnp.int32), params, optimizer.init(params), ema, objective_state, init_health()
  )


def make_train_step(
    objective, optimizer, *, prepare, mesh, state_shardings, ema_decay: float | None = None,
    micro_batches: int = 1, frozen=None, spike_factor: float | None = None,
):
  """Returns `step(state, batch, key) -> (state, metrics)`, jitted; the state is donated.

  The key of a step is `fold_in(key, state.step)`: random bits depend on the seed and the step
  alone, never on the mesh.  Where `optim.skipping.judge` refuses a step, only `step`, `health` and
  the schedule's count change.

  Args:
    objective: see `objectives/__init__.py`.
    prepare: function of (batch, key=...), what `batch_ops` do before the objective.
    state_shardings: a `TrainState` of shardings.
    ema_decay: after each update ema = decay * ema + (1 - decay) * params (Polyak averaging, as
      DeiT and ViT-EMA keep it); None keeps none.
    micro_batches: M parts that a batch is computed in, one after the other; part m is every M-th
      example from m on, so each device keeps its own, and has dropout of its own.
    frozen: tree of bools like the parameters, True for no gradient; None for all trained.
    spike_factor: see `optim.skipping.judge`.

  Metrics are float32 scalars: the loss and the objective's, `gradient_norm`, `parameter_norm` and
  `update_norm` over everything, and `gradient_norm/BLOCK` and so on by `optim.norms`; `skipped` and
  `skipped_in_a_row` are counts.  Of a skipped step the gradient and the update are those refused.
  """
  gradient = make_gradient(
      objective, prepare=prepare, mesh=mesh, micro_batches=micro_batches, frozen=frozen
  )

  def step(state, batch, key):
    gradients, means, objective_state = gradient(state, batch, key)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay is not None:
      ema = jax.tree.map(lambda a, p: ema_decay * a + (1 - ema_decay) * p, ema, params)
    norms = norms_by_block(gradients)
    taken, health = judge(
        state.health, loss=means["loss"], gradient_norm=norms["all"], spike_factor=spike_factor
    )
    params, opt_state, ema, objective_state = new_where(
        taken, (params, opt_state, ema, objective_state),
        (state.params, state.opt_state, state.ema, state.objective_state),
    )
    for name, found in (
        ("gradient", norms), ("parameter", norms_by_block(params)),
        ("update", norms_by_block(updates)),
    ):
      for block, norm in found.items():
        means[f"{name}_norm" if block == "all" else f"{name}_norm/{block}"] = norm
    for name in ("skipped", "skipped_in_a_row"):
      means[name] = health[name].astype(jnp.float32)
    return TrainState(state.step + 1, params, opt_state, ema, objective_state, health), means

  return jax.jit(
      step,
      in_shardings=(state_shardings, batch_sharding(mesh), replicated(mesh)),
      out_shardings=(state_shardings, replicated(mesh)),
      donate_argnums=0,
  )


def make_gradient(objective, *, prepare, mesh, micro_batches: int = 1, frozen=None):
  """Returns `gradient(state, batch, key) -> (gradients, means, objective_state)`, not jitted.

  Gradients are of the mean loss over the batch; `means` holds it and the objective's metrics.  For
  the arguments see `make_train_step`.
  """

  def gradient(state, batch, key):
    prepare_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
    gradients, (loss_sum, weight, metrics), objective_state = _summed_gradient(
        objective, state, prepare(batch, key=prepare_key), loss_key,
        micro_batches=micro_batches, mesh=mesh, frozen=frozen,
    )
    # Micro-batches may hold different numbers of examples that count: divide once, by all of them.
    weight = jnp.where(weight > 0, weight, 1.0)
    gradients = jax.tree.map(lambda g: g / weight, gradients)
    means = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in metrics.items()}
    return gradients, means | {"loss": loss_sum / weight}, objective_state

  return gradient


def _summed_gradient(objective, state, batch, key, *, micro_batches: int, mesh, frozen):
  """Gradient of the summed loss, (loss_sum, weight, metrics), and the objective's new state."""

  def loss(params, objective_state, part, part_key):
    if frozen is not None:
      params = jax.tree.map(
          lambda p, fixed: jax.lax.stop_gradient(p) if fixed else p, params, frozen
      )
    loss_sum, weight, metrics, objective_state = objective.loss(
        params, objective_state, part, part_key, state.step, True
    )
    return loss_sum, (weight, metrics, objective_state)

  def one(objective_state, part, part_key):
    (loss_sum, (weight, metrics, objective_state)), gradients = jax.value_and_grad(
        loss, has_aux=True
    )(state.params, objective_state, part, part_key)
    return (gradients, (loss_sum, weight, metrics)), objective_state

  if micro_batches == 1:
    (gradients, sums), objective_state = one(state.objective_state, batch, key)
    return gradients, sums, objective_state

  def add(carry, part_and_key):
    totals, objective_state = carry
    found, objective_state = one(objective_state, *part_and_key)
    return (jax.tree.map(jnp.add, totals, found), objective_state), None

  parts, keys = in_parts(batch, micro_batches, mesh), jax.random.split(key, micro_batches)
  first = jax.tree.map(lambda x: x[0], (parts, keys))
  shapes, _ = jax.eval_shape(one, state.objective_state, *first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  ((gradients, sums), objective_state), _ = jax.lax.scan(
      add, (zeros, state.objective_state), (parts, keys)
  )
  return gradients, sums, objective_state


def in_parts(batch, micro_batches: int, mesh):
  """Splits arrays `[B, ...]` into `[M, B / M, ...]`; part m is every M-th example from m on."""

  def split(x):
    parts = x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)
    spec = PartitionSpec(None, *batch_sharding(mesh).spec)
    return jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, spec))

  return jax.tree.map(split, batch)


@jax.jit
def all_finite(tree):
  """Whether every number in a tree of arrays is finite, a bool scalar."""
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))

"""The training step: gradient, perhaps in parts, clip, update; one jitted function over a mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import optax

from vit_jax.optim.norms import norms_by_block
from vit_jax.parallel.mesh import batch_sharding, replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a step changes: plain nested dicts of arrays.

  Attributes:
    step: int32 scalar, updates done so far.
    params: float32 parameters.
    opt_state: of the optax chain.
    ema: exponential moving average of the parameters, like them; empty where none is kept.
    objective_state: what the objective carries from step to step; often empty.
  """

  step: Any
  params: Any
  opt_state: Any
  ema: Any
  objective_state: Any

  @property
  def averaged(self):
    """The parameters to evaluate and publish: the average where one is kept."""
    return self.ema or self.params


def init_state(objective, optimizer, key, batch, *, ema_decay: float | None = None) -> TrainState:
  """Returns the state before the first step; `batch` gives the shapes (see `Objective.init`)."""
  params, objective_state = objective.init(key, batch)
  ema = {} if ema_decay is None else params
  return TrainState(
      jnp.zeros((), jnp.int32), params, optimizer.init(params), ema, objective_state
  )


def make_train_step(
    objective, optimizer, *, prepare, mesh, state_shardings, ema_decay: float | None = None,
    micro_batches: int = 1, frozen=None,
):
  """Returns `step(state, batch, key) -> (state, metrics)`, jitted; the state is donated.

  The key of a step is `fold_in(key, state.step)`: random bits depend on the seed and the step
  alone, never on the mesh.

  Args:
    objective: see `objectives/__init__.py`.
    prepare: function of (batch, key=...), what `batch_ops` do before the objective.
    state_shardings: a `TrainState` of shardings.
    ema_decay: after each update ema = decay * ema + (1 - decay) * params (Polyak averaging, as
      DeiT and ViT-EMA keep it); None keeps none.
    micro_batches: M parts that a batch is computed in, one after the other; part m is every M-th
      example from m on, so each device keeps its own, and has dropout of its own.
    frozen: tree of bools like the parameters, True for no gradient; None for all trained.

  Metrics are float32 scalars: the loss and the objective's, `gradient_norm`, `parameter_norm` and
  `update_norm` over everything, and `gradient_norm/BLOCK` and so on by `optim.norms`.
  """
  accumulate = functools.partial(
      _summed_gradient, objective, micro_batches=micro_batches, mesh=mesh, frozen=frozen
  )

  def step(state, batch, key):
    prepare_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
    batch = prepare(batch, key=prepare_key)
    gradients, (loss_sum, weight, metrics), objective_state = accumulate(state, batch, loss_key)
    # Micro-batches may hold different numbers of examples that count: divide once, by all of them.
    weight = jnp.where(weight > 0, weight, 1.0)
    gradients = jax.tree.map(lambda g: g / weight, gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    means = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in metrics.items()}
    means["loss"] = loss_sum / weight
    for name, tree in (("gradient", gradients), ("parameter", params), ("update", updates)):
      for block, norm in norms_by_block(tree).items():
        means[f"{name}_norm" if block == "all" else f"{name}_norm/{block}"] = norm
    ema = state.ema
    if ema_decay is not None:
      ema = jax.tree.map(lambda a, p: ema_decay * a + (1 - ema_decay) * p, ema, params)
    return TrainState(state.step + 1, params, opt_state, ema, objective_state), means

  return jax.jit(
      step,
      in_shardings=(state_shardings, batch_sharding(mesh), replicated(mesh)),
      out_shardings=(state_shardings, replicated(mesh)),
      donate_argnums=0,
  )


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

  def split(x):
    parts = x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)
    spec = PartitionSpec(None, *batch_sharding(mesh).spec)
    return jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, spec))

  def add(carry, part_and_key):
    totals, objective_state = carry
    found, objective_state = one(objective_state, *part_and_key)
    return (jax.tree.map(jnp.add, totals, found), objective_state), None

  parts, keys = jax.tree.map(split, batch), jax.random.split(key, micro_batches)
  first = jax.tree.map(lambda x: x[0], (parts, keys))
  shapes, _ = jax.eval_shape(one, state.objective_state, *first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  ((gradients, sums), objective_state), _ = jax.lax.scan(
      add, (zeros, state.objective_state), (parts, keys)
  )
  return gradients, sums, objective_state


@jax.jit
def all_finite(tree):
  """Whether every number in a tree of arrays is finite, a bool scalar."""
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))

"""The training step: gradient, clip, update; one jitted function over a mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

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
    objective, optimizer, *, prepare, mesh, state_shardings, ema_decay: float | None = None
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
  """

  def step(state, batch, key):
    prepare_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
    batch = prepare(batch, key=prepare_key)

    def mean_loss(params):
      loss_sum, weight, metrics, objective_state = objective.loss(
          params, state.objective_state, batch, loss_key, state.step, True
      )
      return loss_sum / jnp.maximum(weight, 1.0), (metrics, objective_state)

    (loss, (metrics, objective_state)), gradients = jax.value_and_grad(
        mean_loss, has_aux=True
    )(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    means = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in metrics.items()}
    means |= {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
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


@jax.jit
def all_finite(tree):
  """Whether every number in a tree of arrays is finite, a bool scalar."""
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))

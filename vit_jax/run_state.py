"""The state of a run: begun, restored from a checkpoint, saved to one."""

import dataclasses

import jax
import jax.numpy as jnp

from vit_jax import config as config_lib
from vit_jax.errors import CheckpointError
from vit_jax.observe.versions import commit, versions
from vit_jax.optim.skipping import init_health
from vit_jax.step import TrainState
from vit_jax.warm_start import warm_start


def begin(plan, pretrained) -> TrainState:
  """Initial state, drawn from the seed; parameters from a checkpoint where one is given."""
  state = jax.jit(plan.init, out_shardings=plan.state_shardings)(plan.init_key)
  if pretrained is None:
    return state
  config = plan.config
  state, said = warm_start(
      state, pretrained, model=config.model, keep_head=config.init.head == "keep"
  )
  print(said)
  return state


def restore(plan, checkpoints, step: int) -> tuple[TrainState, int]:
  """State of a committed step on this run's mesh, and the count of examples it had seen."""
  abstract = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      plan.abstract,
      plan.state_shardings,
  )
  # Whether an average is kept may have been amended: read what is there.
  wanted, stored = bool(abstract.ema), checkpoints.has(step, "ema")
  abstract = dataclasses.replace(abstract, ema=abstract.params if stored else {})
  training = _training_items(abstract)
  if not checkpoints.has(step, "health"):  # of an earlier version
    del training["health"]
  params, training, meta = checkpoints.restore(step, params=abstract.params, training=training)
  print(f"resume: from step {step} of {plan.total_steps}")
  if "health" not in training:
    training["health"] = jax.jit(init_health, out_shardings=plan.state_shardings.health)()
  state = TrainState(params=params, **training)
  if wanted != stored:
    state = dataclasses.replace(state, ema=jax.tree.map(jnp.copy, params) if wanted else {})
    print(f"resume: the average of the parameters {'begins' if wanted else 'ends'} here")
  return state, meta["examples_seen"]


def save(
    saves, step: int, state, config, examples_seen: int, fingerprint: str, *, metrics
) -> None:
  """Begins to save a step in the background.

  Args:
    saves: a `checkpoint.retry.Saves`, or the run's `Checkpoints`.
    examples_seen: the place in the data.
    fingerprint: of the data.
    metrics: {name: float} of an evaluation of this state.

  Raises:
    CheckpointError: the step is there already, though the run had not reached it.
    WriteFailed: as `saves.save`.
  """
  begun = saves.save(
      step,
      params=state.params,
      training=_training_items(state),
      meta={
          "config": config_lib.to_json(config),
          "examples_seen": examples_seen,
          "metrics": metrics,
          "fingerprint": fingerprint,
          "versions": versions(),
          "commit": commit(),
      },
  )
  if not begun:
    raise CheckpointError(
        f"step {step} is among the run's checkpoints already, though this run had not reached it: "
        "move that one away, or choose another --workdir"
    )


def _training_items(state: TrainState) -> dict:
  """What a checkpoint holds beside the parameters."""
  fields = dataclasses.fields(state)
  return {f.name: getattr(state, f.name) for f in fields if f.name != "params"}

"""What a run will compute, decided from config and data before anything is written or compiled."""

import dataclasses
import functools
from typing import Any, Callable

import jax
import numpy as np

from vit_jax import config as config_lib
from vit_jax import durations
from vit_jax import micro_batch
from vit_jax.batch_ops.prepare import prepare_batch
from vit_jax.diagnosis import make_diagnosis
from vit_jax.errors import ConfigError
from vit_jax.models.flops import training_flops
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.optim import rules
from vit_jax.optim.optimizer import make_optimizer
from vit_jax.optim.schedule import make_schedule
from vit_jax.parallel import memory
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.parallel import sharding
from vit_jax.resolve import model_arguments
from vit_jax.step import init_state, make_train_step


# Keys of config.optimizer that are used beside the chain of transformations.
_RULES = ("weight_decay_mask", "learning_rate_rules", "layer_decay", "freeze")
_NOT_THE_CHAINS = ("learning_rate", "learning_rate_batch_size", "ema_decay")


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run's parts, ready to be started.

  Attributes:
    config: resolved; no key of `model` or `input` that matters is open, `micro_batch` a number.
    mesh: over all devices.
    total_steps: of the whole run.
    steps_in: a duration's text to steps.
    model_config: attributes of `models.vit.ViT`.
    objective: see `objectives/__init__.py`.
    schedule: step to learning rate.
    init: key to `step.TrainState`; to be jitted with `state_shardings`.
    init_key, step_key: PRNG keys, functions of the seed.
    abstract: the state's shapes and dtypes.
    state_shardings: a tree like the state.
    train_step: see `step.make_train_step`.
    diagnose: see `diagnosis.make_diagnosis`.
  """

  config: Any
  mesh: jax.sharding.Mesh
  total_steps: int
  steps_in: Callable[[str], int]
  model_config: dict
  objective: Any
  schedule: Callable
  init: Callable
  init_key: jax.Array
  step_key: jax.Array
  abstract: Any
  state_shardings: Any
  train_step: Callable
  diagnose: Callable

  @property
  def parameters(self) -> int:
    """How many numbers the model has."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))


def make_plan(
    config, *, examples: int, num_classes: int, class_weights: tuple[float, ...] | None = None,
    devices=None, device_bytes: int | None = None,
) -> Plan:
  """Builds the parts of a run.

  Args:
    config: resolved (`resolve.resolve`).
    examples: length of the training split.
    num_classes: of the data set.
    class_weights: see `objectives.supervised`.
    devices: all by default; those of a described topology will do, nothing is put on them.
    device_bytes: memory of a device, by default what it reports.

  Raises:
    ConfigError: mesh, batch or durations do not work out.
  """
  devices = jax.devices() if devices is None else list(devices)
  device_bytes = device_bytes or memory.device_bytes(jax.local_devices()[0])
  _check_devices(config, devices[0].platform)
  batch_size, ema_decay = config.input.batch_size, config.optimizer.ema_decay
  steps_in = functools.partial(durations.to_steps, batch_size=batch_size, examples=examples)
  total_steps = steps_in(config.total, total_steps=None)
  steps_in = functools.partial(steps_in, total_steps=total_steps)

  model_config = model_arguments(config, num_classes=num_classes)
  schedule, optimizer = _optimization(config, steps_in, total_steps, depth=model_config["depth"])
  init_key, step_key = jax.random.split(jax.random.key(config.seed))
  image = np.zeros((1, config.model.image_size, config.model.image_size, 3), np.float32)

  def parts(place):
    """The objective, and the initial state as a function of a key."""
    objective = Supervised(
        ViT(**model_config, place=place), loss_name=config.objective.loss,
        head_bias=config.objective.head_bias, class_weights=class_weights,
    )
    return objective, lambda key: init_state(
        objective, optimizer, key, {"image": image}, ema_decay=ema_decay
    )

  # The size of the state decides about the mesh, and the mesh where the model keeps its tokens.
  abstract = jax.eval_shape(parts(None)[1], init_key)
  mesh = _mesh(config, devices, abstract, device_bytes, width=model_config["width"])
  _check_batch_size(batch_size, mesh_lib.data_shards(mesh))
  objective, init = parts(mesh_lib.placement(mesh))
  state_shardings = sharding.shardings(abstract, mesh)
  frozen = config.optimizer.freeze
  prepare = functools.partial(
      prepare_batch, mean=config.input.mean, std=config.input.std, num_classes=num_classes,
      **config.batch_ops,
  )
  gradient = lambda size: dict(
      prepare=prepare, mesh=mesh, frozen=frozen and rules.frozen_mask(abstract.params, frozen),
      micro_batches=micro_batch.micro_batches(batch_size, size, mesh_lib.data_shards(mesh)),
  )
  train_step = lambda size: make_train_step(
      objective, optimizer, state_shardings=state_shardings, ema_decay=ema_decay,
      spike_factor=config.skip.spike_factor, **gradient(size),
  )
  if config.micro_batch == "auto":
    config = _with_what_fits(
        config, mesh, device_bytes,
        lambda size: micro_batch.step_bytes(
            train_step(size), *abstract_arguments(config, abstract), device=devices[0]
        ),
    )
  return Plan(
      config=config,
      mesh=mesh,
      total_steps=total_steps,
      steps_in=steps_in,
      model_config=model_config,
      objective=objective,
      schedule=schedule,
      init=init,
      init_key=init_key,
      step_key=step_key,
      abstract=abstract,
      state_shardings=state_shardings,
      train_step=train_step(config.micro_batch or batch_size),
      diagnose=make_diagnosis(objective, **gradient(config.micro_batch or batch_size)),
  )


def _optimization(config, steps_in, total_steps: int, *, depth: int):
  """The learning rate by step, and the chain of transformations that it drives."""
  warmup_steps = steps_in(config.schedule.warmup)
  if not 0 <= warmup_steps < total_steps:
    raise ConfigError(
        f"config.schedule.warmup {config.schedule.warmup!r} is {warmup_steps} steps and "
        f"config.total {config.total!r} is {total_steps}: train longer, or warm up for less"
    )
  rate, end = config.optimizer.learning_rate, config.schedule.end_learning_rate
  if base := config.optimizer.learning_rate_batch_size:
    # Linear scaling (arXiv 1706.02677, section 2.1), of the whole schedule.
    rate, end = (r * config.input.batch_size / base for r in (rate, end))
  schedule = make_schedule(
      config.schedule.name,
      learning_rate=rate,
      end_learning_rate=end,
      warmup_steps=warmup_steps,
      total_steps=total_steps,
      cooldown_steps=steps_in(config.schedule.cooldown),
      timescale_steps=max(1, steps_in(config.schedule.timescale)),
  )
  return schedule, make_optimizer(
      schedule=schedule, peak_learning_rate=rate, depth=depth,
      **{k: v for k, v in config.optimizer.items() if k not in _NOT_THE_CHAINS},
  )


def _mesh(config, devices, abstract, device_bytes: int, *, width: int):
  """The mesh that the config asks for; what it leaves open, by memory."""
  axes = dict(config.mesh)
  if axes["fsdp"] is None and axes["replica"] is None:
    # The gradients are like the parameters.  Micro-batches hold them twice, but a mesh that
    # depended on micro_batch=auto would be another after a restart, when that is a number.
    trained = (abstract, abstract.params)
    axes["fsdp"] = mesh_lib.choose_fsdp(
        devices, tensor=axes["tensor"], width=width, device_bytes=device_bytes,
        state_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trained)),
    )
  return mesh_lib.create_mesh(**axes, devices=devices)


def _with_what_fits(config, mesh, available: int, needed: Callable[[int], int]):
  """The config with the largest micro-batch that fits into a device."""
  size, taken = micro_batch.largest_that_fits(
      needed, batch_size=config.input.batch_size, data_shards=mesh_lib.data_shards(mesh),
      available=available,
  )
  print(
      f"micro_batch: {size} of {config.input.batch_size} examples at a time need "
      f"{taken / 1e9:.3g} GB, by the compiler's plan, of the {available / 1e9:.3g} GB that a "
      "device has for a program"
  )
  return config_lib.replace(config, {"micro_batch": size})


def abstract_arguments(config, abstract) -> tuple:
  """Shapes of (state, batch, key), for which a training step is compiled before it is run.

  Args:
    config: resolved; its images have one label each.
    abstract: the state's shapes.
  """
  size, side = config.input.batch_size, config.model.image_size
  batch = {
      "image": jax.ShapeDtypeStruct((size, side, side, 3), np.uint8),
      "label": jax.ShapeDtypeStruct((size,), np.int32),
      "mask": jax.ShapeDtypeStruct((size,), np.float32),
  }
  return abstract, batch, jax.eval_shape(jax.random.key, 0)


def describe(plan: Plan) -> str:
  """Several lines: model, cost, mesh, steps, and where each parameter lies."""
  params = plan.abstract.params
  model, mesh = plan.model_config, plan.mesh
  gflops = training_flops(**model) / 1e9
  optimizer = plan.config.optimizer
  peak = float(plan.schedule(plan.steps_in(plan.config.schedule.warmup)))
  lines = [
      f"model: width {model['width']}, depth {model['depth']}, {model['num_heads']} heads, patch "
      f"{model['patch_size']}, {model['image_size']} px, {model['num_classes']} classes: "
      f"{plan.parameters:,} parameters, {gflops:.3g} GFLOP a training image (its matrix products)",
      f"mesh: {' x '.join(f'{name} {size}' for name, size in mesh.shape.items())} on "
      f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
      f"steps: {plan.total_steps} of {plan.config.input.batch_size} images "
      f"({plan.config.total})",
      "parameters:",
      sharding.placement_table(sharding.place(params, mesh)),
      f"optimizer: {optimizer.name}, learning rate up to {peak:.4g}",
  ]
  lines += [f"  {line}" for line in rules.describe(params, **_rules(plan))]
  return "\n".join(lines)


def parameter_table(plan: Plan) -> dict[str, dict]:
  """Where each parameter lies and how it is trained, by path, for `json`.

  Returns:
    "shape", "dtype", "axes" (for each dimension a mesh axis or None), "dropped" (axes that do not
    divide their dimension), and what `optim.rules.by_path` says.
  """
  params = plan.abstract.params
  trained = rules.by_path(params, **_rules(plan))
  return {
      at.path: {
          "shape": list(at.shape), "dtype": at.dtype,
          "axes": list(at.spec) + [None] * (len(at.shape) - len(at.spec)),
          "dropped": list(at.dropped), **trained[at.path],
      }
      for at in sharding.place(params, plan.mesh)
  }


def _rules(plan: Plan) -> dict:
  """Arguments of `optim.rules` beside the parameters."""
  told = {name: plan.config.optimizer[name] for name in _RULES}
  return told | {"depth": plan.model_config["depth"]}


def _check_batch_size(batch_size: int, shards: int) -> None:
  """Pairs of neighbours (Mixup) must lie on one of the `shards` devices."""
  unit = 2 * shards
  if batch_size % unit:
    near = max(unit, round(batch_size / unit) * unit)
    raise ConfigError(
        f"config.input.batch_size {batch_size} does not divide over the mesh: it must be a "
        f"multiple of {unit} (2 x {shards} data shards); the nearest is {near}"
    )


def _check_devices(config, platform: str) -> None:
  """What these devices cannot do."""
  if config.model.attention == "cudnn" and platform not in ("gpu", "cuda"):
    raise ConfigError(
        f"config.model.attention is 'cudnn', which needs an NVIDIA GPU; this run has {platform}: "
        "leave it at 'auto'"
    )

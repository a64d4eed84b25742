"""A run that begins from another's whole state: parameters, optimizer, step, place in the data.

Two cool-downs of one run, a longer schedule, another learning rate, or a way around a spike; the
other run stays as it is.
"""

import dataclasses
from typing import Any

from vit_jax import config as config_lib
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.processes import decided_by_first
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.errors import ConfigError
from vit_jax.loading import split_ref, step_of_run
from vit_jax.resolve import OPEN

# Identity keys that may differ from the parent's: where a run comes from, how parameters begin
# that are not begun, and a name for shapes that are compared one by one.
_MAY_DIFFER = (
    "fork.checkpoint", "fork.skip", "init.checkpoint", "init.head",
    "model.attention_initialization", "model.variant",
)
# Open keys of the model that are not taken from the parent.
_OF_THE_DEVICES = ("dtype", "scan", "remat")
_OF_A_VARIANT = ("width", "depth", "mlp_dim", "num_heads", "patch_size")


@dataclasses.dataclass(frozen=True)
class Parent:
  """A committed step of another run.

  Attributes:
    run: its directory.
    step: a number, also where `config.fork.checkpoint` says "latest" or "best".
    info: its run.json.
    config: its resolved config, as it lies in the checkpoint.
  """

  run: RunDirectory
  step: int
  info: dict
  config: Any

  @property
  def ref(self) -> str:
    """What names exactly this step from anywhere."""
    return f"{self.run.path}@{self.step}"

  def checkpoints(self) -> Checkpoints:
    """Its checkpoints, for reading only; a context."""
    return Checkpoints(self.run.checkpoints, read_only=True)


def find_parent(config, info: dict | None) -> Parent | None:
  """The step that a run without a checkpoint of its own goes on from, None where it is no fork.

  Args:
    config: of the run.
    info: its run.json, whose number stands though the parent has newer steps now; None where the
      run is new.

  Raises:
    ConfigError: `config.fork.checkpoint` names no run, or `config.fork.skip` is set without it.
    CheckpointError: the run has no such step, or it is damaged.
  """
  ref = info["fork"]["ref"] if info and info.get("fork") else config.fork.checkpoint
  if not ref:
    if config_lib.FIELDS["fork.skip"].default != config.fork.skip:
      raise ConfigError(
          f"config.fork.skip is {config.fork.skip!r}, but config.fork.checkpoint is not set: name "
          "the RUN@STEP to go on from"
      )
    return None
  path, which = split_ref(ref)
  run = RunDirectory(path)
  if not run.exists() or "+" in which:
    raise ConfigError(
        f"config.fork.checkpoint is {ref!r}: it must be RUN@STEP, RUN@latest or RUN@best of a run "
        "of vit_jax, whose whole state is taken; config.init.checkpoint takes weights of any kind"
    )
  step = decided_by_first(lambda: step_of_run(path, which))
  with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
    stored = checkpoints.meta(step)["config"]
  return Parent(run, step, run.read_info(), config_lib.from_json(stored, origin=f"{path}@{step}"))


def inherit(config, parent: Parent | None):
  """The config with what it leaves open of the model and of the evaluation's images as the
  parent's."""
  if parent is None:
    return config
  ours, theirs = config_lib.flatten(config), config_lib.flatten(parent.config)
  decided = (*_OF_THE_DEVICES, *(_OF_A_VARIANT if config.model.variant else ()))
  open_keys = [key for key in OPEN if key.startswith("input.") and ours[key] is None]
  open_keys += [
      f"model.{name}" for name, value in config.model.items()
      if value is None and name not in decided
  ]
  if config.init.head == "keep" and not config.model.pre_logits:  # it came with the head
    open_keys.append("model.pre_logits")
  return config_lib.replace(config, {key: theirs[key] for key in open_keys})


def check(config, parent: Parent, fingerprint: str | None = None) -> None:
  """Holds that a resolved config can go on from the parent's state.

  Args:
    fingerprint: of the data; None where it is not at hand.

  Raises:
    ConfigError: another model, seed, data or batch size, or an optimizer with another state; the
      keys are named.
  """
  changed = config_lib.differences(parent.config, config)
  wrong = {k: v for k, v in changed[config_lib.IDENTITY].items() if k not in _MAY_DIFFER}
  recipe = changed[config_lib.RECIPE]
  if "input.batch_size" in recipe:  # steps and schedule count batches
    wrong["input.batch_size"] = recipe["input.batch_size"]
  if "sgd" in recipe.get("optimizer.name", ()):
    wrong["optimizer.name"] = recipe["optimizer.name"]
  if wrong:
    said = "; ".join(
        f"config.{key} is {new!r}, there {old!r}" for key, (old, new) in wrong.items()
    )
    raise ConfigError(
        f"a fork takes the whole state of {parent.ref}, which does not fit: {said}. Set them as "
        "they are there, or take the weights alone with --config.init.checkpoint"
    )
  if fingerprint not in (None, parent.info["fingerprint"]):
    raise ConfigError(
        f"{parent.ref} was trained on other data: the fingerprint of config.input is "
        f"{fingerprint[:12]}, there {parent.info['fingerprint'][:12]}. A fork goes on in the same "
        "data; --config.init.checkpoint takes the weights alone"
    )


def changes(config, parent: Parent) -> dict[str, tuple]:
  """{key: (the parent's value, the fork's)}, for the history of the fork."""
  changed = config_lib.differences(parent.config, config)
  return changed[config_lib.RUNTIME] | changed[config_lib.RECIPE]

"""`vit-jax plan`: what a run would do, on this machine or on one that is elsewhere."""

import sys

import jax

from vit_jax import config as config_lib
from vit_jax import fork
from vit_jax.data.class_weights import class_weights
from vit_jax.data.open import open_configured
from vit_jax.errors import ConfigError
from vit_jax.evaluate import evaluation_source, evaluation_split
from vit_jax.forecast import forecast
from vit_jax.forecast_table import format_forecast
from vit_jax.known_data import data_size
from vit_jax.loading import load
from vit_jax.parallel.topology import parse
from vit_jax.plan import describe, make_plan, parameter_table
from vit_jax.resolve import resolve
from vit_jax.resume import check_not_beyond
from vit_jax.warm_start import kept_head, needs_weights


def plan(
    recipe: str, overrides: dict[str, str], *, topology: str | None = None,
    examples: int | None = None, classes: int | None = None, mfu: float | None = None,
) -> tuple[str, dict]:
  """Plans a run; writes nothing.

  Args:
    recipe: NAME[:ARG] or FILE.py[:ARG].
    overrides: keys to text, as of the command line.
    topology: as "v5e:16x16*2"; None for this machine.
    examples, classes: of the data, where it is neither known nor at hand; for a topology.
    mfu: share of the peak that training is taken to reach, in (0, 1]; for a topology.

  Returns:
    What to print, and the same for `json`.

  Raises:
    ConfigError, DataError, CheckpointError: what is wrong, where, and how to fix it.
  """
  config = config_lib.load(recipe, overrides)
  changed = _changed(config_lib.load(recipe), config)
  if topology is None:
    if (examples, classes, mfu) != (None, None, None):
      raise ConfigError("--examples, --classes and --mfu are for --topology=...")
    return _here(config, changed)
  if mfu is not None and not 0 < mfu <= 1:
    raise ConfigError(f"--mfu={mfu}: give a share of the peak, as 0.4")
  for name, count in (("examples", examples), ("classes", classes)):
    if count is not None and count < 1:
      raise ConfigError(f"--{name}={count}: it must be at least 1")
  target = parse(topology)
  parent = fork.find_parent(config, None)
  resolved, _ = _resolve(
      config, parent, platform=target.chip.platform, weights_required=False
  )
  if parent:
    fork.check(resolved, parent)
  data = data_size(config, recipe=recipe, examples=examples, classes=classes)
  compiled = "; to compile may take minutes" if target.chip.platform == "tpu" else ""
  print(f"planning for {target}{compiled} ...", file=sys.stderr)
  told = forecast(resolved, target, data, mfu=mfu) | {"changed": changed}
  if parent:
    check_not_beyond(parent.step, told["run"]["steps"]["value"])
  return "\n".join(_changes(changed) + [format_forecast(told)]), told


def _here(config, changed: dict) -> tuple[str, dict]:
  """The plan of `vit-jax train` on this machine's devices."""
  dataset = open_configured(config)
  if "train" not in dataset.splits:
    raise ConfigError(
        f"{dataset.name} has only {', '.join(dataset.splits)}, so that nothing can be trained"
    )
  split = evaluation_split(config, dataset)
  train, held = dataset.splits["train"], evaluation_source(config, dataset, split)
  parent = fork.find_parent(config, None)
  resolved, pretrained = _resolve(
      config, parent, platform=jax.default_backend(), weights_required=True
  )
  if pretrained and config.init.head == "keep":
    kept_head(pretrained, dataset, by_order=config.evaluate.classes == "by_order")
  weights = config.objective.class_weights
  weights = weights and class_weights(weights, train)
  made = make_plan(
      resolved, examples=len(train), num_classes=len(dataset.classes), class_weights=weights
  )
  if parent:
    fork.check(made.config, parent, dataset.fingerprint)
    check_not_beyond(parent.step, made.total_steps)
  told = {
      "config": config_lib.to_json(made.config),
      "changed": changed,
      "data": {
          "name": dataset.name, "fingerprint": dataset.fingerprint, "notes": list(dataset.notes),
          "train": len(train), "evaluated": {split: len(held)}, "classes": len(dataset.classes),
      },
      "mesh": dict(made.mesh.shape),
      "total_steps": made.total_steps,
      "parameters": made.parameters,
      "parameter_table": parameter_table(made),
  }
  values = config_lib.flatten(told["config"])
  lines = ["config:"] + [f"  {key} = {value!r}" for key, value in values.items()]
  lines += _changes(changed)
  lines += [f"data: {note}" for note in dataset.notes]
  lines += [
      f"data: {dataset.name}, {len(train)} train and {len(held)} {split} images, "
      f"{len(dataset.classes)} classes",
      describe(made),
  ]
  return "\n".join(lines), told


def _resolve(config, parent: fork.Parent | None, *, platform: str, weights_required: bool):
  """Fills the open keys, from the run or the weights to start from where these are named; and the
  weights, None where there are none."""
  config = fork.inherit(config, parent)
  named = config.init.checkpoint if parent is None else None
  pretrained = load(named) if named else None
  key = needs_weights(config)
  if key and (weights_required or not config.model.variant):
    raise ConfigError(
        f"this recipe starts from weights ({key}), which decide the model: name them with "
        "--config.init.checkpoint=REF" + (
            "" if weights_required else ", or say which model they are: --config.model.variant=B/16"
        )
    )
  return resolve(config, checkpoint=pretrained, platform=platform), pretrained


def _changed(default, config) -> dict:
  """What the command line changed: key to [recipe's value, new value]."""
  differences = config_lib.differences(default, config)
  return {key: list(pair) for found in differences.values() for key, pair in found.items()}


def _changes(changed: dict) -> list[str]:
  if not changed:
    return ["changed by the command line: nothing"]
  return ["changed by the command line:"] + [
      f"  {key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()
  ]

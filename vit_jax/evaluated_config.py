"""The config of an evaluation: a checkpoint as it is, on the data that a run or a recipe names, and
what the command line changes of either."""

import jax

from vit_jax import config as config_lib
from vit_jax import measures
from vit_jax.errors import ConfigError
from vit_jax.models.vit import DEFAULTS
from vit_jax.resolve import OPEN, resolve

# What a run's config says of its own data, and which means nothing of others.
_OF_THE_DATA = (
    "input.path", "input.split", "input.sampling", "input.held_out", "evaluate.split",
    "evaluate.real_labels",
)


def evaluated_config(checkpoint, config_spec: str | None, overrides: dict[str, str]):
  """Returns the resolved config, and lines to tell of it.

  The model and its images are the checkpoint's, unless the command line says otherwise; where
  nobody knows how its images are preprocessed, a recipe may.  What that takes a crop from is then a
  share of its own image size.

  Args:
    checkpoint: a `loading.Checkpoint`.
    config_spec, overrides: as of `evaluate.evaluate`.

  Raises:
    ConfigError: nobody names the data, or the command line contradicts the checkpoint.
  """
  named, known = _of_the_data(checkpoint, config_spec, overrides), checkpoint.preprocessing_known
  open_keys = [
      key for key in OPEN if key not in overrides and (known or not key.startswith("input."))
  ]
  values = {key: config_lib.FIELDS[key].default for key in open_keys}
  values["init.head"] = config_lib.FIELDS["init.head"].default  # what it keeps is for training
  if "model.image_size" in values:
    side = checkpoint.preprocessing["image_size"]  # that of the positions may be another
    if not isinstance(side, int):
      raise ConfigError(
          f"{checkpoint.ref} is for images of {side[0]} x {side[1]} pixels: set "
          "config.model.image_size, the side of the squares that evaluation takes"
      )
    values["model.image_size"] = side
    if not known and named.input.short_side and "input.short_side" not in overrides:
      share = named.input.short_side / (named.model.image_size or 224)
      values["input.short_side"] = round(side * share)
  config = resolve(
      config_lib.replace(named, values), checkpoint=checkpoint, platform=jax.default_backend()
  )
  told, theirs, own = [], config_lib.flatten(named), config_lib.flatten(config)
  for key in open_keys if config_spec is not None else ():
    if key in measures.OTHERWISE.values() and theirs[key] not in (None, own[key]):
      told.append(
          f"data: the recipe's {key} {theirs[key]!r} is not used: the checkpoint's is {own[key]!r}"
      )
  if not known and (changed := _otherwise_preprocessed(config, checkpoint)):
    said = ", ".join(f"{name} {value!r}" for name, value in changed.items())
    told.append(f"data: not as assumed, but as is configured, images are preprocessed by {said}")
  return config, told


def otherwise(config, checkpoint, overrides: dict[str, str], wanted) -> dict:
  """Returns those of `measures.OTHERWISE` that are not the checkpoint's own, by name.

  Args:
    config: as `evaluated_config` returns it.
    wanted: some of `measures.NAMES`.

  Raises:
    ConfigError: they would make it another model.
  """
  model = DEFAULTS | checkpoint.model_config
  own = {f"model.{name}": value for name, value in model.items()}
  own |= {f"input.{name}": value for name, value in checkpoint.preprocessing.items()}
  own["model.image_size"] = own.pop("input.image_size")
  own["model.position_image_size"] = model["position_image_size"] or model["image_size"]
  if checkpoint.config is not None:
    own["objective.loss"] = checkpoint.config.objective.loss
  asked = config_lib.flatten(config)
  differing = [
      key for key in overrides if key not in own or _plain(asked[key]) != _plain(own[key])
  ]
  fixed = set(OPEN) & set(own) - set(measures.OTHERWISE.values())
  if key := next((key for key in differing if key in fixed), None):
    raise ConfigError(
        f"config.{key} is {asked[key]!r}, but {checkpoint.ref} has {own[key]!r}, and is judged as "
        "it is: leave it out"
    )
  told = {} if checkpoint.preprocessing_known else _otherwise_preprocessed(config, checkpoint)
  told |= {name: asked[key] for name, key in measures.OTHERWISE.items() if key in differing}
  pooling = config.model.pooling
  if pooling == model["pooling"]:
    return told
  if measures.need_a_head(wanted):
    raise ConfigError(
        f"config.model.pooling is {pooling!r}, but the head of {checkpoint.ref} was trained on "
        f"{model['pooling']!r}: only --measures=knn,few_shot,linear_probe can pool otherwise"
    )
  if pooling == "map" and "map_head" not in checkpoint.params:
    raise ConfigError(f"config.model.pooling is 'map', and {checkpoint.ref} has no map_head")
  return told | {"pooling": pooling}


def pooled(config, checkpoint) -> dict:
  """Returns attributes of `models.vit.ViT` with which a checkpoint answers with a feature, also one
  trained to give tokens or pixels."""
  model = DEFAULTS | checkpoint.model_config
  pooling = config.model.pooling
  return {
      "pooling": pooling, "norm_after_pooling": config.model.norm_after_pooling,
      # It was trained on what its own pooling gives.
      "pre_logits": model["pre_logits"] and pooling == model["pooling"],
      "pixel_decoder": False,
  }


def _otherwise_preprocessed(config, checkpoint) -> dict:
  """What of a resolved `config.input` is not the checkpoint's own preprocessing."""
  own = checkpoint.preprocessing
  return {
      name: config.input[name] for name in measures.OTHERWISE
      if name in own and name != "image_size" and _plain(config.input[name]) != _plain(own[name])
  }


def _of_the_data(checkpoint, config_spec: str | None, overrides: dict[str, str]):
  """The config that names the data: a recipe's, or the run's own; where the command line names
  other data, without what it says of the run's."""
  config = checkpoint.config
  if config_spec is not None:
    named = config_lib.load(config_spec, overrides)
    if config is None:
      return named
    # It answers as it was trained, whatever the recipe of the data trains.
    trained = {"objective.loss": config.objective.loss, "model.dtype": config.model.dtype}
    return config_lib.replace(named, {k: v for k, v in trained.items() if k not in overrides})
  if config is None:
    raise ConfigError(
        f"{checkpoint.ref} is not one of our runs, so the data must be named: add --config=folder "
        "--config.input.path=DIR"
    )
  if "input.dataset" in overrides:
    defaults = {key: config_lib.FIELDS[key].default for key in _OF_THE_DATA}
    config = config_lib.replace(config, defaults)
  return config_lib.override(config, overrides)


def _plain(value):
  return list(value) if isinstance(value, (tuple, list)) else value

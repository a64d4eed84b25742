"""Which class of transformers holds a model, and the model in the form in which it does."""

import difflib
from typing import Mapping

import numpy as np

from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop.huggingface_classes import ARCHITECTURES, Architecture, mlp_ratio
from vit_jax.models.positions import grid, learned_positions
from vit_jax.models.vit import DEFAULTS, DESCRIPTION

_TOKENS = {(True, False): "class", (True, True): "class and distillation",
           (False, False): "patches"}


def choose(model: Mapping, architecture: str | None) -> str:
  """The class to write: the one asked for, or the richest that holds the weights.

  Args:
    model: a description; absent keys are `DEFAULTS`.
    architecture: a key of `ARCHITECTURES`, or None.

  Raises:
    ConfigError: no such class.
    CheckpointError: the class cannot hold the model, or none can; the text names what does.
  """
  model = _described(model)
  if architecture is not None and architecture not in ARCHITECTURES:
    near = difflib.get_close_matches(architecture, ARCHITECTURES, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"no Hugging Face class {architecture!r} is written; did you mean {near}? Else choose one "
        f"of {', '.join(ARCHITECTURES)}."
    )
  able = [name for name, a in ARCHITECTURES.items() if not obstacles(model, a)]
  if architecture in able:
    return architecture
  whole = [name for name in able if not left_out(model, ARCHITECTURES[name])]
  if architecture is None and whole:
    return whole[0]
  if architecture is not None:
    problem = f"{architecture} cannot hold this model: " + "; ".join(
        obstacles(model, ARCHITECTURES[architecture])
    )
  else:
    problem = f"No Hugging Face class that is written holds this model whole ({_traits(model)})"
  raise CheckpointError(f"{problem}.{_alternatives(model, able, whole)}")


def _alternatives(model, able, whole) -> str:
  """The classes that hold a model, in whole or in part."""
  found = []
  if whole:
    found.append(f"--architecture={whole[0]}")
  found += [
      f"--architecture={name} without {' and '.join(left_out(model, ARCHITECTURES[name]))}"
      for name in able if name not in whole
  ]
  return f" These can: {', '.join(found)}." if found else ""


def _traits(model) -> str:
  """What makes a model unusual, for an error."""
  found = [
      f"{key} {model[key]!r}" for key in DESCRIPTION
      if key in DEFAULTS and model[key] != DEFAULTS[key]
      and key not in ("gelu", "layer_norm_epsilon", "position_interpolation", "position_embedding",
                      "position_image_size", "class_token_position")
  ]
  return ", ".join(found + [f"{model['num_classes']} classes"])


def obstacles(model: Mapping, target: Architecture) -> list[str]:
  """Why a class cannot hold a whole description, one phrase each; none where it can."""
  family = target.family
  tokens = _TOKENS.get((model["class_token"], model["distillation_token"]))
  square = len(set(grid(model["image_size"], model["patch_size"]))) == 1
  features = target.answer in ("cls", "gap")
  with_logits = target.answer in ("logits", "both logits")
  tests = (
      (tokens != family.tokens, f"its tokens are {family.tokens}, the model's {tokens}"),
      (model["pooling"] != target.pooling and not (model["pooling"] == "none" and features),
       f"it has no pooling {model['pooling']!r}"),
      (model["norm_after_pooling"], "it normalises before pooling"),
      (model["qk_norm"], "it has no qk_norm"),
      (model["pre_logits"] and not target.pooler, "it has no layer for pre_logits"),
      (with_logits and not model["num_classes"], "the model has no head"),
      (target.answer == "both logits" and not model["distillation_head"],
       "the model has no distillation head"),
      (target.answer == "pixels" and not model["pixel_decoder"], "the model decodes no pixels"),
      (not family.dinov2 and model["layer_scale"] is not None, "it has no LayerScale"),
      (not family.dinov2 and model["mlp"] != "gelu", f"it has no {model['mlp']} MLP"),
      (family.dinov2 and mlp_ratio(model) is None,
       f"no whole mlp_ratio makes its MLP {model['mlp_dim']} wide"),
      ((target.model_type == "dinov2_with_registers") != bool(model["register_tokens"]),
       f"the model has {model['register_tokens']} register tokens"),
      ((family.square or target.answer == "pixels") and not square, "it takes square images only"),
  )
  return [text for wrong, text in tests if wrong]


def left_out(model: Mapping, target: Architecture) -> list[str]:
  """What of a model's answer a class that can hold it leaves out, in words for an error."""
  found = []
  if model["num_classes"] and target.answer not in ("logits", "both logits"):
    found.append(f"the head of {model['num_classes']} classes")
  if model["distillation_head"] and target.answer != "both logits":
    found.append("the distillation head")
  if model["pixel_decoder"] and target.answer != "pixels":
    found.append("the pixel decoder")
  return found


def notes(model: Mapping, architecture: str) -> list[str]:
  """What `fit` changes that a reader of the export should know, one sentence each."""
  model, target = _described(model), ARCHITECTURES[architecture]
  found = [f"{what} is left out: {architecture} has none" for what in left_out(model, target)]
  if model["mask_token"] and target.mask_token == "dropped":
    found.append(f"the mask token is left out: {architecture} has none")
  if model["position_embedding"] != "learned":
    found.append(
        f"the fixed position embedding {model['position_embedding']} is written as a table"
    )
  interpolation = target.family.position_interpolation
  if model["position_interpolation"] != interpolation:
    found.append(
        f"for images of another size transformers resamples positions {interpolation}, "
        f"this model {model['position_interpolation']}"
    )
  return found


def fit(model: Mapping, params: Mapping, architecture: str) -> tuple[dict, dict]:
  """The same function in the form that a class stores, exactly.

  Leaves out what the class lacks (see `notes`), writes fixed positions as a table and absent ones
  as rows of zeros, absent LayerScale as ones, absent biases and mask tokens as zeros.

  Args:
    model: a description that the class can hold (see `choose`).
    params: its parameters, any float dtype; shared with the result, not copied.
    architecture: a key of `ARCHITECTURES`.

  Returns:
    (whole description, nested dict of arrays).
  """
  model, target = _described(model), ARCHITECTURES[architecture]
  params, width = dict(params), model["width"]
  _fit_answer(model, params, target)
  if target.mask_token == "dropped" and model["mask_token"]:
    del params["mask_token"]
  if target.mask_token == "made" and not model["mask_token"]:
    params["mask_token"] = np.zeros((1, 1, width), np.float32)
  model["mask_token"] = {"dropped": False, "made": True, "kept": model["mask_token"]}[
      target.mask_token
  ]
  _fit_positions(model, params)
  model["position_interpolation"] = target.family.position_interpolation
  blocks = dict(params["blocks"])
  if target.family.dinov2 and model["layer_scale"] is None:
    ones = np.ones((model["depth"], width), np.float32)
    blocks |= {"layer_scale1": ones, "layer_scale2": ones}
    model["layer_scale"] = 1.0
  if target.model_type == "siglip_vision_model" and not model["qkv_bias"]:
    zeros = np.zeros((model["depth"], model["num_heads"], width // model["num_heads"]), np.float32)
    parts = {key: {**blocks["attention"][key], "bias": zeros} for key in ("query", "key", "value")}
    blocks["attention"] = blocks["attention"] | parts
    model["qkv_bias"] = True
  params["blocks"] = blocks
  return model, params


def _described(model: Mapping) -> dict:
  """A whole description: every key of `DESCRIPTION` and no other."""
  missing = [key for key in DESCRIPTION if key not in DEFAULTS and key not in model]
  if missing:
    raise CheckpointError(f"the model's description lacks {', '.join(missing)}.")
  return {key: model[key] if key in model else DEFAULTS[key] for key in DESCRIPTION}


def _fit_answer(model: dict, params: dict, target: Architecture) -> None:
  """Takes off the heads that a class lacks; a model without pooling gets the class's, which
  decides no parameter."""
  if target.answer != "both logits" and model["distillation_head"]:
    del params["distillation_head"]
    model["distillation_head"] = False
  if target.answer not in ("logits", "both logits") and model["num_classes"]:
    del params["head"]
    model["num_classes"] = 0
  if target.answer != "pixels" and model["pixel_decoder"]:
    del params["pixel_decoder"]
    model["pixel_decoder"] = False
  model["pooling"] = target.pooling


def _fit_positions(model: dict, params: dict) -> None:
  """Makes the positions a learned table with rows for class and distillation token."""
  prefix = model["class_token"] + model["distillation_token"]
  if model["position_embedding"] != "learned":
    learned, table = learned_positions(model, params)
    model |= learned
    params |= table
  if prefix and not model["class_token_position"]:
    table = np.asarray(params["position_embedding"])
    zeros = np.zeros((1, prefix, model["width"]), table.dtype)
    params["position_embedding"] = np.concatenate([zeros, table], axis=1)
  model["class_token_position"] = True

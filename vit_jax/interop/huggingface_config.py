"""`config.json` of transformers' ViTs, from and to our descriptions and labels."""

import math
from pathlib import Path
from typing import Mapping, NoReturn, Sequence

from vit_jax.errors import CheckpointError
from vit_jax.interop.class_labels import check_labels, placeholders
from vit_jax.interop.huggingface_classes import (
    ARCHITECTURES, FAMILIES, READ_ONLY, REFUSED, REFUSED_FAMILIES, mlp_ratio, swiglu_width,
)
from vit_jax.models.vit import DEFAULTS

# Hugging Face's names of the two kinds; "gelu_new" and "gelu_pytorch_tanh" are one formula.
_GELU = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
_ACTIVATION = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}
_READ = (*ARCHITECTURES, *READ_ONLY)


def to_model(config: Mapping, path: Path) -> dict:
  """The encoder that a config.json describes, absent keys being transformers' defaults.

  Args:
    config: the parsed file.
    path: where it lies, for the errors.

  Returns:
    A whole description without head, mask token and `pre_logits`, which only the tensors tell.

  Raises:
    CheckpointError: another model type or class, or a setting that our ViT does not have.
  """
  model_type = config.get("model_type")
  _check_class(config, path)
  family = FAMILIES[model_type]
  if model_type in ("siglip", "siglip2"):
    config = config.get("vision_config") or {}
  values = _Values(dict(family.defaults) | {k: v for k, v in config.items() if v is not None}, path)
  model = DEFAULTS | {
      "width": values.whole("hidden_size", 768),
      "depth": values.whole("num_hidden_layers", 12),
      "num_heads": values.whole("num_attention_heads", 12),
      "patch_size": values.whole("patch_size", 16),
      "num_classes": 0,
      "class_token": family.tokens != "patches",
      "distillation_token": family.tokens == "class and distillation",
      "pooling": "gap" if family.tokens == "patches" else "cls",
      "position_interpolation": family.position_interpolation,
      "gelu": values.one_of("hidden_act", "gelu", _GELU),
      "layer_norm_epsilon": values.fraction("layer_norm_eps"),
  }
  if model_type.startswith("siglip2"):
    model["image_size"] = _siglip2_size(values, model["patch_size"])
  else:
    model["image_size"] = values.size("image_size", 224)
  if model_type.startswith("siglip"):
    # Without its head the class answers with all tokens.
    model["pooling"] = "map" if values.flag("vision_use_head", True) else "none"
  else:
    model["qkv_bias"] = values.flag("qkv_bias", True)
  if family.dinov2:
    swiglu = values.flag("use_swiglu_ffn", False)
    ratio = values.whole("mlp_ratio", 4)
    model |= {
        "mlp": "swiglu" if swiglu else "gelu",
        "mlp_dim": swiglu_width(model["width"], ratio) if swiglu else model["width"] * ratio,
        "layer_scale": values.number("layerscale_value"),
    }
    if model_type == "dinov2_with_registers":
      model["register_tokens"] = values.whole("num_register_tokens", 4)
  else:
    model["mlp_dim"] = values.whole("intermediate_size", 3072)
  if values.whole("num_channels", 3) != 3:
    values.refuse(f"num_channels is {config['num_channels']}; only RGB models are read.")
  if model["width"] % model["num_heads"]:
    values.refuse(
        f"hidden_size {model['width']} is not a multiple of num_attention_heads "
        f"{model['num_heads']}."
    )
  sides = model["image_size"]
  for side in [sides] if isinstance(sides, int) else sides:
    if side % model["patch_size"]:
      values.refuse(f"image_size {side} is not a multiple of patch_size {model['patch_size']}.")
  return model


def _check_class(config: Mapping, path: Path) -> None:
  model_type, named = config.get("model_type"), config.get("architectures") or []
  if model_type not in FAMILIES:
    reason = REFUSED_FAMILIES.get(model_type, "models of another type need other layers")
    raise CheckpointError(
        f"{path}: model_type is {model_type!r}; what is read is {', '.join(FAMILIES)}: {reason}."
    )
  for name in named:
    if name in REFUSED:
      raise CheckpointError(f"{path}: a {name} is not read: {REFUSED[name]}.")
  if named and not set(named) & set(_READ):
    raise CheckpointError(
        f"{path}: architectures is {named}; what is read is {', '.join(_READ)}."
    )


class _Values:
  """The settings of a config.json, each checked as it is taken."""

  def __init__(self, config: Mapping, path: Path):
    self._config, self._path = config, path

  def refuse(self, what: str) -> NoReturn:
    raise CheckpointError(f"{self._path}: {what}")

  def whole(self, key: str, default: int) -> int:
    value = self._config.get(key, default)
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
      value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1:
      self.refuse(f"{key} is {value!r}; one whole number is needed.")
    if value < 1:
      self.refuse(f"{key} is {value!r}; it must be positive.")
    return int(value)

  def size(self, key: str, default: int) -> int | list[int]:
    """A side, or [height, width] where these differ."""
    value = self._config.get(key, default)
    pair = isinstance(value, (list, tuple)) and len(value) == 2 and value[0] != value[1]
    if not pair:
      return self.whole(key, default)
    if not all(isinstance(side, int) and side > 0 for side in value):
      self.refuse(f"{key} is {value!r}; two whole numbers are needed.")
    return list(value)

  def number(self, key: str) -> float:
    value = self._config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      self.refuse(f"{key} is {value!r}; a number is needed.")
    return float(value)

  def fraction(self, key: str) -> float:
    value = self._config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
      self.refuse(f"{key} is {value!r}; a number from 0 to 1 is needed.")
    return float(value)

  def flag(self, key: str, default: bool) -> bool:
    value = self._config.get(key, default)
    if not isinstance(value, bool):
      self.refuse(f"{key} is {value!r}; true or false is needed.")
    return value

  def one_of(self, key: str, default: str, meanings: Mapping[str, str]) -> str:
    value = self._config.get(key, default)
    if value not in tuple(meanings):
      self.refuse(f"{key} is {value!r}; the supported ones are {', '.join(meanings)}.")
    return meanings[value]


def _siglip2_size(values: _Values, patch: int) -> int:
  """The side of the square image whose patches are those of SigLIP 2's position table."""
  patches = values.whole("num_patches", 256)
  side = math.isqrt(patches)
  if side**2 != patches:
    values.refuse(f"num_patches is {patches}; a square number is needed.")
  return side * patch


def check_pooler(config: Mapping, path: Path):
  """Holds that the pooler is our `pre_logits`: a square dense layer, then tanh.

  Raises:
    CheckpointError: it is not.
  """
  if config["model_type"] == "ijepa":
    raise CheckpointError(
        f"{path}: I-JEPA's pooler sees the first patch alone, which no pooling of this ViT does. "
        "Save the model with add_pooling_layer=False to read it without."
    )
  size = config.get("pooler_output_size") or config.get("hidden_size", 768)
  activation = config.get("pooler_act", "tanh")
  if size != config.get("hidden_size", 768) or activation != "tanh":
    raise CheckpointError(
        f"{path}: the pooler has pooler_output_size {size} and pooler_act {activation!r}; only "
        "one of hidden_size with tanh is read. Save the model with add_pooling_layer=False to "
        "read it without."
    )


def check_decoder(config: Mapping, path: Path):
  """Holds that the decoder of masked pixels draws patches of the size that are embedded.

  Raises:
    CheckpointError: it does not.
  """
  stride, patch = config.get("encoder_stride", 16), config.get("patch_size", 16)
  if stride != patch and [stride, stride] != patch:
    raise CheckpointError(
        f"{path}: encoder_stride is {stride} and patch_size {patch}; a decoder is read only where "
        "the two are equal."
    )


def named_classes(config: Mapping, path: Path) -> int | None:
  """Number of classes that a config.json states, None where it leaves transformers' default.

  Raises:
    CheckpointError: `id2label` does not name the classes 0, 1, 2, ...
  """
  names = config.get("id2label")
  if names is None:
    return config.get("num_labels")
  if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
    raise CheckpointError(
        f"{path}: id2label does not map \"0\", \"1\", \"2\" and so on to names. "
        "Correct it by hand."
    )
  return len(names)


def to_labels(config: Mapping) -> tuple[str, ...] | None:
  """The class names in order, None where they are transformers' placeholders LABEL_0, ..."""
  names = config.get("id2label") or {}
  labels = tuple(str(names[str(i)]) for i in range(len(names)))
  return None if labels == placeholders(len(labels)) else labels


def to_config(
    model: Mapping, *, architecture: str, labels: Sequence[str] | None, dtype: str
) -> dict:
  """The config.json of a model, in the exact types that transformers 5 insists on.

  Args:
    model: a whole description in the form of `huggingface_fit.fit`.
    architecture: a key of `ARCHITECTURES`.
    labels: `num_classes` names, or None.
    dtype: of the tensors on disk.

  Raises:
    CheckpointError: as many labels as classes are needed.
  """
  target, size = ARCHITECTURES[architecture], model["image_size"]
  config = {
      "architectures": [architecture],
      "model_type": target.model_type,
      "hidden_size": int(model["width"]),
      "num_hidden_layers": int(model["depth"]),
      "num_attention_heads": int(model["num_heads"]),
      "hidden_act": _ACTIVATION[model["gelu"]],
      "layer_norm_eps": float(model["layer_norm_epsilon"]),
      "image_size": int(size) if isinstance(size, int) else [int(side) for side in size],
      "patch_size": int(model["patch_size"]),
      "num_channels": 3,
      # Releases differ in the name they look for.
      "dtype": dtype,
      "torch_dtype": dtype,
  }
  if target.family.dinov2:
    config |= {
        "mlp_ratio": mlp_ratio(model),
        "use_swiglu_ffn": model["mlp"] == "swiglu",
        "layerscale_value": float(model["layer_scale"]),
        "use_mask_token": bool(model["mask_token"]),
    }
    if model["register_tokens"]:
      config["num_register_tokens"] = int(model["register_tokens"])
  else:
    config["intermediate_size"] = int(model["mlp_dim"])
  if target.model_type == "siglip_vision_model":
    config |= {"attention_dropout": 0.0, "vision_use_head": True}
  else:
    config |= {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "qkv_bias": bool(model["qkv_bias"]),
    }
  if target.model_type in ("vit", "deit"):
    config["encoder_stride"] = int(model["patch_size"])
  if model["pre_logits"]:
    config |= {"pooler_output_size": int(model["width"]), "pooler_act": "tanh"}
  if model["num_classes"]:
    config |= _classes(model["num_classes"], labels)
  return config


def _classes(count: int, labels: Sequence[str] | None) -> dict:
  labels = placeholders(count) if labels is None else tuple(labels)
  check_labels(labels, count)
  return {
      "id2label": {str(i): str(label) for i, label in enumerate(labels)},
      # Of several classes of one name the first keeps it: a mapping cannot hold them all.
      "label2id": {str(labels[i]): i for i in reversed(range(len(labels)))},
  }

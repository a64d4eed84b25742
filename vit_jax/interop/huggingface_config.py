"""`config.json` of a Hugging Face ViT, from and to our model dict and labels."""

from pathlib import Path
from typing import Mapping, Sequence

from vit_jax.errors import CheckpointError

ARCHITECTURES = ("ViTForImageClassification", "ViTModel")

# Hugging Face's names of the two kinds; "gelu_new" and "gelu_pytorch_tanh" are one formula.
_GELU = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
_ACTIVATION = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}


def to_model(config: Mapping, path: Path) -> dict:
  """The encoder that a config.json describes, absent keys being transformers' defaults.

  Args:
    config: the parsed file.
    path: where it lies, for the errors.

  Returns:
    The model dict without `num_classes` and `pre_logits`, which only the tensors tell.

  Raises:
    CheckpointError: another model type or class, or a setting that our ViT does not have.
  """

  def refuse(what: str):
    raise CheckpointError(f"{path}: {what}")

  if config.get("model_type") != "vit":
    refuse(
        f"model_type is {config.get('model_type')!r}; only \"vit\" is read. Models of another "
        "type need other layers than this ViT has."
    )
  named = config.get("architectures") or []
  if named and not set(named) & set(ARCHITECTURES):
    refuse(f"architectures is {named}; what is read is {' or '.join(ARCHITECTURES)}.")

  def integer(key: str, default: int) -> int:
    value = config.get(key, default)
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
      value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
      refuse(f"{key} is {value!r}; one whole number is needed (images and patches are square).")
    if value < 1:
      refuse(f"{key} is {value!r}; it must be positive.")
    return int(value)

  activation = config.get("hidden_act", "gelu")
  if activation not in tuple(_GELU):
    refuse(f"hidden_act is {activation!r}; the supported ones are {', '.join(_GELU)}.")
  if config.get("qkv_bias", True) is not True:
    refuse("qkv_bias is off; only a ViT with biases on query, key and value is read.")
  epsilon = config.get("layer_norm_eps", 1e-12)
  if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon < 1:
    refuse(f"layer_norm_eps is {epsilon!r}; a number from 0 to 1 is needed.")
  if integer("num_channels", 3) != 3:
    refuse(f"num_channels is {config['num_channels']}; only RGB models are read.")
  model = {
      "width": integer("hidden_size", 768),
      "depth": integer("num_hidden_layers", 12),
      "mlp_dim": integer("intermediate_size", 3072),
      "num_heads": integer("num_attention_heads", 12),
      "patch_size": integer("patch_size", 16),
      "image_size": integer("image_size", 224),
      "pooling": "cls",
      "gelu": _GELU[activation],
      "layer_norm_epsilon": float(epsilon),
  }
  if model["width"] % model["num_heads"]:
    refuse(
        f"hidden_size {model['width']} is not a multiple of num_attention_heads "
        f"{model['num_heads']}."
    )
  if model["image_size"] % model["patch_size"]:
    refuse(
        f"image_size {model['image_size']} is not a multiple of patch_size "
        f"{model['patch_size']}."
    )
  return model


def check_pooler(config: Mapping, path: Path):
  """Holds that the pooler is our `pre_logits`: a square dense layer, then tanh.

  Raises:
    CheckpointError: it is not.
  """
  size = config.get("pooler_output_size") or config.get("hidden_size", 768)
  activation = config.get("pooler_act", "tanh")
  if size != config.get("hidden_size", 768) or activation != "tanh":
    raise CheckpointError(
        f"{path}: the pooler has pooler_output_size {size} and pooler_act {activation!r}; only "
        "one of hidden_size with tanh is read. Save the model with add_pooling_layer=False to "
        "read it without."
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
  return None if labels == _placeholders(len(labels)) else labels


def _placeholders(count: int) -> tuple[str, ...]:
  return tuple(f"LABEL_{i}" for i in range(count))


def to_config(
    model: Mapping, *, architecture: str, labels: Sequence[str] | None, dtype: str
) -> dict:
  """The config.json of a model, in the exact types that transformers 5 insists on.

  Args:
    model: the model dict as it is exported: head and `pre_logits` only where `architecture` has
      them.
    architecture: one of `ARCHITECTURES`.
    labels: `num_classes` names, or None.
    dtype: of the tensors on disk.

  Raises:
    CheckpointError: as many labels as classes are needed.
  """
  config = {
      "architectures": [architecture],
      "model_type": "vit",
      "hidden_size": int(model["width"]),
      "num_hidden_layers": int(model["depth"]),
      "num_attention_heads": int(model["num_heads"]),
      "intermediate_size": int(model["mlp_dim"]),
      "hidden_act": _ACTIVATION[model["gelu"]],
      "hidden_dropout_prob": 0.0,
      "attention_probs_dropout_prob": 0.0,
      "initializer_range": 0.02,
      "layer_norm_eps": float(model["layer_norm_epsilon"]),
      "image_size": int(model["image_size"]),
      "patch_size": int(model["patch_size"]),
      "num_channels": 3,
      "qkv_bias": True,
      "encoder_stride": int(model["patch_size"]),
      # Releases differ in the name they look for.
      "dtype": dtype,
      "torch_dtype": dtype,
  }
  if model["pre_logits"]:
    config |= {"pooler_output_size": int(model["width"]), "pooler_act": "tanh"}
  if model["num_classes"]:
    labels = _placeholders(model["num_classes"]) if labels is None else tuple(labels)
    if len(labels) != model["num_classes"]:
      raise CheckpointError(
          f"{len(labels)} labels were given for a head of {model['num_classes']} classes. "
          "Give one name a class, in the order of the classes."
      )
    config["id2label"] = {str(i): str(label) for i, label in enumerate(labels)}
    # Of several classes of one name the first keeps it: a mapping cannot hold them all.
    config["label2id"] = {str(labels[i]): i for i in reversed(range(len(labels)))}
  return config

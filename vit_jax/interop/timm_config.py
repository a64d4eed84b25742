"""config.json of timm's directories, from and to our description, labels and preprocessing."""

import math
from pathlib import Path
from typing import Mapping, Sequence

from vit_jax.errors import CheckpointError
from vit_jax.interop import timm_architectures
from vit_jax.interop.class_labels import check_labels, placeholders
from vit_jax.interop.timm_preprocessing import from_timm_pretrained_cfg, timm_pretrained_cfg
from vit_jax.models.vit import DEFAULTS

# timm's usual initial value, for checkpoints that do not say it.
LAYER_SCALE = 1e-5
_POOLS = {"token": "cls", "avg": "gap", "map": "map", "": "none"}
_GELU = {"gelu": "erf", "gelu_tanh": "tanh"}


def to_config(
    model: Mapping, *, architecture: str, preprocessing: Mapping | None,
    labels: Sequence[str] | None,
) -> dict:
  """The config.json of a model in timm's form (see `timm_directory.fit`).

  Raises:
    CheckpointError: as many labels as classes are needed; preprocessing of another image size, or
      that timm cannot repeat.
  """
  if preprocessing and sides_of(preprocessing["image_size"]) != sides_of(model["image_size"]):
    raise CheckpointError(
        f"preprocessing makes images of {preprocessing['image_size']} pixels, the model takes "
        f"{model['image_size']}, and timm does not interpolate by itself. Convert with "
        f"--image-size={'x'.join(map(str, dict.fromkeys(sides_of(preprocessing['image_size']))))}."
    )
  classes, width, size = model["num_classes"], model["width"], model["image_size"]
  pool = {ours: theirs for theirs, ours in _POOLS.items()}[model["pooling"]]
  swiglu = model["mlp"] == "swiglu"
  arguments = {
      "img_size": size,
      "patch_size": model["patch_size"],
      "embed_dim": width,
      "depth": model["depth"],
      "num_heads": model["num_heads"],
      "mlp_ratio": timm_architectures.mlp_ratio((1 + swiglu) * model["mlp_dim"], width),
      "global_pool": pool,
      "fc_norm": model["norm_after_pooling"],
      "qkv_bias": model["qkv_bias"],
      "qk_norm": model["qk_norm"],
      # Not null, which would leave the architecture's own value.
      "init_values": model["layer_scale"] or 0.0,
      "class_token": model["class_token"],
      "no_embed_class": not (model["class_token"] and model["class_token_position"]),
      "reg_tokens": model["register_tokens"],
  }
  if not swiglu:
    arguments["act_layer"] = {ours: theirs for theirs, ours in _GELU.items()}[model["gelu"]]
  if model["layer_norm_epsilon"] == 1e-5:
    arguments["pre_norm"] = False
  heads = ["head", "head_dist"] if model["distillation_head"] else "head"
  config = {
      "architecture": architecture,
      "num_classes": classes,
      "num_features": width,
      "global_pool": pool,
      "model_args": arguments,
      "pretrained_cfg": {
          **(timm_pretrained_cfg(preprocessing) if preprocessing else {}),
          "input_size": [3, *sides_of(size)],
          "fixed_input_size": True,
          "num_classes": classes,
          "first_conv": "patch_embed.proj",
          "classifier": heads,
      },
  }
  if classes:
    names = tuple(labels) if labels is not None else placeholders(classes)
    check_labels(names, classes)
    config["label_names"] = [str(name) for name in names]
  return config


def sides_of(size) -> tuple[int, int]:
  """(height, width) of an image size."""
  return (size, size) if isinstance(size, int) else tuple(size)


class Facts:
  """What the tensors themselves say of a model, in timm's names.

  Attributes:
    path: of the file, for the errors.
    names: of the tensors.
  """

  def __init__(self, source, stored: Mapping[str, str]):
    self.path = source.path
    self.names = stored.keys()
    self._shapes = {name: tuple(source.shapes[key]) for name, key in stored.items()}

  def shape(self, name: str, rank: int) -> tuple[int, ...]:
    """Shape of a tensor that there must be, of `rank` axes."""
    found = self._shapes.get(name)
    if found is None or len(found) != rank:
      problem = "is missing" if found is None else f"has the shape {found}, not of {rank} axes"
      raise CheckpointError(
          f"{self.path} is not a whole ViT in timm's naming: {name} {problem}. Copy it again "
          "from its source."
      )
    return found

  def sizes(self) -> dict:
    """The part of a description that shapes and names decide."""
    width, channels, patch, across = self.shape("patch_embed.proj.weight", 4)
    if channels != 3 or patch != across:
      raise CheckpointError(
          f"{self.path}: patches of {patch} x {across} pixels with {channels} channels "
          "(patch_embed.proj.weight); only square ones of RGB images are read."
      )
    heads = timm_architectures.num_heads(width)
    if "blocks.0.attn.q_norm.weight" in self.names:
      heads = width // self.shape("blocks.0.attn.q_norm.weight", 1)[0]
    layers = [int(name.split(".")[1]) for name in self.names if name.startswith("blocks.")]
    hidden = self.shape("blocks.0.mlp.fc2.weight", 2)[1]
    packed = self.shape("blocks.0.mlp.fc1.weight", 2)[0] == 2 * hidden
    has = lambda name: name in self.names
    return {
        "width": width,
        "depth": 1 + max(layers, default=0),
        "mlp_dim": hidden,
        "num_heads": heads,
        "patch_size": patch,
        "num_classes": self.shape("head.weight", 2)[0] if has("head.weight") else 0,
        "class_token": has("cls_token"),
        "distillation_token": has("dist_token"),
        "distillation_head": has("head_dist.weight"),
        "register_tokens": self.shape("reg_token", 3)[1] if has("reg_token") else 0,
        "pre_logits": has("pre_logits.fc.weight"),
        "qkv_bias": has("blocks.0.attn.qkv.bias"),
        "qk_norm": has("blocks.0.attn.q_norm.weight"),
        "layer_scale": LAYER_SCALE if has("blocks.0.ls1.gamma") else None,
        "mlp": "swiglu" if packed else "gelu",
        "position_embedding": "learned",
    }

  def pooling(self) -> str:
    """The likeliest pooling."""
    if "attn_pool.latent" in self.names:
      return "map"
    return "cls" if "cls_token" in self.names and "fc_norm.weight" not in self.names else "gap"


def described_model(facts: Facts, config: Mapping, path: Path, report: list) -> dict:
  """The description that config.json and tensors give together."""
  cfg = _pretrained_cfg(config)
  given = config.get("model_args") or {}
  arguments = timm_architectures.arguments(config["architecture"], given, path)
  epsilon = 1e-5 if arguments.get("norm_layer") == timm_architectures.EPSILON_5 else 1e-6
  model = {
      **DEFAULTS, **facts.sizes(), "layer_norm_epsilon": epsilon,
      "position_interpolation": "bicubic_antialias",
  }
  model["num_heads"] = arguments.get("num_heads", model["num_heads"])
  model["gelu"] = _activation(model, arguments, path)
  if model["layer_scale"] is not None:
    model["layer_scale"] = float(arguments.get("init_values") or LAYER_SCALE)
  pool = given.get("global_pool", config.get("global_pool", arguments.get("global_pool")))
  if pool is not None and pool not in _POOLS:
    raise CheckpointError(
        f"{path}: global_pool is {pool!r}; what is read is {', '.join(map(repr, _POOLS))}."
    )
  model["pooling"] = facts.pooling() if pool is None else _POOLS[pool]
  classes = config.get("num_classes", cfg.get("num_classes", model["num_classes"]))
  if classes != model["num_classes"]:
    raise CheckpointError(
        f"{path} names {classes} classes, but the head in {facts.path} has "
        f"{model['num_classes']}. The two files do not belong together."
    )
  size = given.get("img_size") or (cfg.get("input_size") or [None])[1:]
  return _with_positions(facts, model, size, report)


def bare_model(facts: Facts, report: list) -> dict:
  """The description of weights that come alone, as the code that wrote such files has it."""
  model = {
      **DEFAULTS, **facts.sizes(), "pooling": facts.pooling(), "gelu": "erf",
      "layer_norm_epsilon": 1e-6, "position_interpolation": "bicubic",
  }
  if model["mlp"] == "swiglu":
    model["gelu"] = DEFAULTS["gelu"]
  report.append(
      f"assumed, because the weights cannot say it: {model['num_heads']} heads, pooling "
      f"{model['pooling']!r}, a square image, layer_norm_epsilon 1e-6, "
      f"{'SwiGLU' if model['mlp'] == 'swiglu' else 'GELU by erf'}, positions resampled bicubically"
  )
  return _with_positions(facts, model, None, report)


def _activation(model: Mapping, arguments: Mapping, path: Path) -> str:
  """Our name of the GELU; of SwiGLU it is the default and of no consequence."""
  swiglu, activation = model["mlp"] == "swiglu", arguments.get("act_layer", "gelu")
  if swiglu and arguments.get("mlp_layer") == "SwiGLUPacked" and activation == "silu":
    return DEFAULTS["gelu"]
  if swiglu or activation not in _GELU:
    raise CheckpointError(
        f"{path}: act_layer is {activation!r}{' in a gated MLP' if swiglu else ''}; what is read "
        f"is {', '.join(_GELU)}, and silu in the SwiGLUPacked of {timm_architectures.SWIGLU[0]}."
    )
  return _GELU[activation]


def _with_positions(facts: Facts, model: dict, size, report: list) -> dict:
  """Adds what the length of the position table tells: image size, rows of the prefix."""
  rows, patch = facts.shape("pos_embed", 3)[1], model["patch_size"]
  own = model["class_token"] + model["distillation_token"]
  prefixes = list(dict.fromkeys((own, own + model["register_tokens"], 0)))
  sides = sides_of(size if isinstance(size, int) else size) if size else None
  if sides and not any(side % patch for side in sides):
    patches = (sides[0] // patch) * (sides[1] // patch)
    prefix = next((count for count in prefixes if rows - count == patches), None)
  else:
    prefix = None
  if prefix is None:
    prefix = next(
        (n for n in prefixes if rows > n and math.isqrt(rows - n) ** 2 == rows - n), None
    )
    if prefix is None:
      raise CheckpointError(
          f"{facts.path}: {rows} positions (pos_embed) are not those of a square image"
          f"{f', nor of one of {sides[0]} x {sides[1]} pixels' if sides else ''}. Name the size "
          "in a config.json of timm (\"model_args\": {\"img_size\": [height, width]}) beside it."
      )
    sides = (math.isqrt(rows - prefix) * patch,) * 2
    if size:
      report.append(f"the positions are those of {sides[0]} pixels, not of config.json's {size}")
  model["image_size"] = sides[0] if sides[0] == sides[1] else list(sides)
  model["class_token_position"] = not own or prefix > 0
  return model


def read_fc_norm(stored: dict, model: dict, path, report: list) -> None:
  """Reads timm's fc_norm, a norm after pooling, as what it is in our terms."""
  if "fc_norm.weight" not in stored:
    return
  if model["pooling"] == "map":
    raise CheckpointError(
        f"{path} has fc_norm after attention pooling (global_pool \"map\"), which this ViT does "
        "not have. Load it with timm."
    )
  model["norm_after_pooling"] = model["pooling"] == "gap"
  if not model["norm_after_pooling"]:
    for part in ("weight", "bias"):
      stored[f"norm.{part}"] = stored.pop(f"fc_norm.{part}")
    report.append("fc_norm of the class token is read as the same norm of all tokens before")


def _pretrained_cfg(config: Mapping) -> Mapping:
  """The preprocessing and labels of a config.json; older ones have them at the top."""
  return config.get("pretrained_cfg") or config


def to_preprocessing(config: Mapping, size, path: Path) -> dict | None:
  """The evaluation transform, None where config.json says nothing of it."""
  cfg = _pretrained_cfg(config)
  if not {"mean", "std", "interpolation", "crop_pct"} & cfg.keys():
    return None
  sides = sides_of(size)
  if len({*sides}) > 1:  # timm crops a square's share of it; the whole is squashed here
    cfg = {**cfg, "crop_pct": 1.0, "crop_mode": "squash"}
  return from_timm_pretrained_cfg({**cfg, "input_size": [3, *sides]}, path)


def to_labels(config: Mapping, classes: int, path: Path) -> tuple[str, ...] | None:
  """The class names in order, None where there are none or only placeholders."""
  cfg = _pretrained_cfg(config)
  names = config.get("label_names") or cfg.get("label_names") or cfg.get("labels")
  if not names or not classes:
    return None
  if isinstance(names, dict):
    names = [names.get(str(i)) for i in range(max(classes, len(names)))]
  if len(names) != classes or None in names:
    raise CheckpointError(
        f"{path} names {len(names)} labels for a head of {classes} classes. Correct label_names."
    )
  labels = tuple(map(str, names))
  return None if labels == placeholders(classes) else labels

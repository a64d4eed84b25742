"""timm's local directories: config.json beside model.safetensors, as `timm.create_model` loads them.

`read` also takes bare state dicts in timm's naming, as DeiT, DINO, DINOv2 and MAE publish them.
transformers loads the same directory through its TimmWrapper classes.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

import vit_jax
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop import timm_architectures, timm_judge
from vit_jax.interop.export_directory import MARK
from vit_jax.interop.imported import Imported
from vit_jax.interop.safetensors_writer import DTYPES, write_tensors
from vit_jax.interop.tensor_files import open_tensors, read_json
from vit_jax.interop.tensor_table import check_params, leaves, read_params
from vit_jax.interop.timm_keys import (
    WithoutRegisterRows, disk_tensors, encoder_names, position_rows, tensors,
)
from vit_jax.interop.timm_preprocessing import from_timm_pretrained_cfg, timm_pretrained_cfg
from vit_jax.models.positions import grid, sincos2d
from vit_jax.models.vit import DEFAULTS

FORMAT = "timm"
_POOLS = {"token": "cls", "avg": "gap", "map": "map", "": "none"}
_GELU = {"gelu": "erf", "gelu_tanh": "tanh"}


def read(path) -> Imported:
  """Reads a directory of timm's, or a state dict in timm's naming.

  Args:
    path: a directory with config.json and weights, or a file of weights alone (.safetensors,
      .pth, .pt, .bin).  What such a file cannot say is assumed, and the report says what.

  Raises:
    CheckpointError: a file is missing or damaged, another kind of model, a setting that ours does
      not have (named), or tensors missing, unexpected or misshapen (listed by name).
  """
  path = Path(path)
  config_path, config = _find_config(path)
  labels, preprocessing = None, None
  with open_tensors(path) as source:
    stored, report = encoder_names(list(source.shapes), source.path)
    facts = _Facts(source, stored)
    if config is None:
      model = _bare_model(facts, report)
    else:
      model = _described_model(facts, config, config_path, report)
      labels = _labels(config, model["num_classes"], config_path)
      preprocessing = _preprocessing(config, model["image_size"], config_path)
    _one_norm(stored, model, source.path, report)
    params = read_params(
        model, tensors(model), _without_register_rows(source, stored, model, report), stored
    )
  if preprocessing is None:
    report.append(f"{path} says nothing about preprocessing")
  if model["distillation_token"] and not model["num_classes"]:
    report.append("the answer is the class token's feature; timm's is the mean of both tokens'")
  count = sum(leaf.size for _, leaf in leaves(params))
  report.insert(0, f"read {len(stored)} tensors, {count:,} parameters, from {source.path}")
  return Imported(
      model=model, params=params, preprocessing=preprocessing, labels=labels,
      report=tuple(report),
  )


def _find_config(path: Path) -> tuple[Path, dict | None]:
  """timm's config.json in a directory or beside its weights; None for weights that come alone."""
  directory = path if path.is_dir() else path.parent
  config_path = directory / "config.json"
  beside = path.is_dir() or path.name in ("model.safetensors", "pytorch_model.bin")
  if not beside or not config_path.is_file():
    return config_path, None
  config = read_json(config_path)
  if "architecture" in config:
    return config_path, config
  if path.is_dir():
    raise CheckpointError(
        f"{config_path} names no \"architecture\", so it is not timm's. Hugging Face directories "
        "have \"model_type\" there."
    )
  return config_path, None


def _without_register_rows(source, stored, model, report):
  """The source itself, or one whose positions are ours."""
  rows, columns = grid(model["image_size"], model["patch_size"])
  own = position_rows(model) if model["class_token"] else 0
  extra = source.shapes[stored["pos_embed"]][1] - rows * columns - own
  if not extra or extra != model["register_tokens"]:
    return source
  report.append("added the registers' rows of pos_embed to the register tokens")
  return WithoutRegisterRows(source, stored, prefix=own, registers=extra)


def choose(model: Mapping, architecture: str | None) -> str:
  """timm's name to build a model on; its sizes and options all stand in `model_args`.

  Args:
    model: a description.
    architecture: the name to use, None for the nearest.

  Raises:
    ConfigError: this name cannot be the base of this model; the text lists those that can.
    CheckpointError: timm's ViT cannot be this model; the text names the targets that can.
  """
  model = {**DEFAULTS, **model}
  problem = next((text for wrong, text in _limits(model) if wrong), None)
  if problem:
    raise CheckpointError(
        f"A timm directory cannot hold this model: {problem}. --to=orbax holds every model."
    )
  names = timm_architectures.candidates(model)
  if architecture is not None and architecture not in names:
    raise ConfigError(
        f"architecture {architecture!r} is not one that this model can be written on; choose "
        f"one of {', '.join(names)}, or leave it out."
    )
  return architecture or names[0]


def _limits(model: Mapping):
  """(whether it holds, what timm 1.0 lacks) for every setting that it cannot say."""
  epsilon, swiglu = model["layer_norm_epsilon"], model["mlp"] == "swiglu"
  distilled = model["distillation_head"]
  yield model["pixel_decoder"], (
      "its pixel decoder is not timm's; the Hugging Face class ViTForMaskedImageModeling has one"
  )
  yield model["pre_logits"], (
      "timm has no pre_logits between feature and head; the Hugging Face class ViTModel has it "
      "as its pooler, and --to=google-npz and --to=big-vision-npz hold it with the head"
  )
  yield epsilon not in (1e-6, 1e-5), (
      f"its layer_norm_epsilon is {epsilon:g}, and timm's config.json can say 1e-6 and 1e-5 "
      "alone; Hugging Face classes hold any"
  )
  yield epsilon == 1e-5 and (swiglu or distilled), (
      "timm has no architecture with layer_norm_epsilon 1e-5 and "
      f"{'SwiGLU' if swiglu else 'a distillation head'}"
  )
  yield swiglu and (distilled or model["pooling"] == "map"), (
      "timm has SwiGLU for class token and average pooling alone"
  )
  yield distilled and model["register_tokens"], (
      "timm's distilled ViT has no register tokens"
  )


def fit(model: Mapping, params: Mapping, architecture: str) -> tuple[dict, dict]:
  """The same function as timm's classes compute it.

  A mask token is left out; fixed position embeddings become a learned table; a distillation token
  without a head of its own becomes the first register token, its position added to it; timm's
  distilled ViT always has positions for its two tokens, zeros where ours has none.

  Args:
    model, params: a description and its parameters.
    architecture: as `choose` gave it.

  Returns:
    (model, params); leaves that do not change are the same objects.
  """
  del architecture
  model, params = {**DEFAULTS, **model}, dict(params)
  params.pop("mask_token", None)
  model["mask_token"] = False
  width = model["width"]
  if model["position_embedding"] != "learned":
    table = sincos2d(
        model["position_embedding"], *grid(model["image_size"], model["patch_size"]), width
    )
    params["position_embedding"] = np.asarray(table)[None]
    model |= {"position_embedding": "learned", "class_token_position": False}
  if model["distillation_token"] and not model["distillation_head"]:
    token = np.asarray(params.pop("distillation_token"))
    if model["class_token_position"]:
      table = np.asarray(params["position_embedding"])
      token = token + table[:, 1:2]
      params["position_embedding"] = np.delete(table, 1, axis=1)
    others = [np.asarray(params["register_tokens"])] if model["register_tokens"] else []
    params["register_tokens"] = np.concatenate([token, *others], axis=1)
    model |= {"distillation_token": False, "register_tokens": 1 + model["register_tokens"]}
  if model["distillation_head"] and not model["class_token_position"]:
    table = np.asarray(params["position_embedding"])
    zeros = np.zeros((1, 2, width), table.dtype)
    params["position_embedding"] = np.concatenate([zeros, table], axis=1)
    model["class_token_position"] = True
  if not model["class_token"]:
    model["class_token_position"] = True  # of no consequence
  if model["mlp"] == "swiglu":
    model["gelu"] = DEFAULTS["gelu"]  # of no consequence
  if model["layer_scale"] == 0:
    model["layer_scale"] = _LAYER_SCALE  # timm takes 0 for none; it is an initial value
  return model, params


# timm's usual initial value, for checkpoints that do not say it.
_LAYER_SCALE = 1e-5


def write(
    directory, *, model: Mapping, params: Mapping, preprocessing: Mapping | None,
    labels: Sequence[str] | None, architecture: str | None = None, dtype: str = "float32",
    max_shard_bytes: int | None = None,
) -> dict:
  """Fills a directory that timm and transformers' TimmWrapper load, importing neither.

  Args:
    directory: an empty one.
    model, params: a description and its parameters.
    preprocessing: the evaluation transform, None where it is not known.
    labels: class names in order; None writes placeholders.
    architecture: a name for `choose`, or None.
    dtype: of the tensors: "float32", "bfloat16" or "float16", rounded to nearest.
    max_shard_bytes: timm reads one file of weights, so a larger one is only noted.

  Returns:
    The report that also lies in the directory as conversion.json.

  Raises:
    ConfigError: unknown architecture or dtype.
    CheckpointError: timm cannot hold the model, parameters that do not fit the model or are not
      finite, wrong number of labels.
    OSError: the disk is full or not writable.
  """
  directory = Path(directory)
  if dtype not in DTYPES:
    raise ConfigError(f"dtype {dtype!r} is not written; choose one of {', '.join(DTYPES)}.")
  architecture = choose(model, architecture)
  check_params(model, params)
  notes = ["the mask token is left out: timm has none"] if model.get("mask_token") else []
  model, params = fit(model, params, architecture)
  if preprocessing and _sides(preprocessing["image_size"]) != _sides(model["image_size"]):
    raise CheckpointError(
        f"preprocessing makes images of {preprocessing['image_size']} pixels, the model takes "
        f"{model['image_size']}. Give the preprocessing that the model is evaluated with."
    )
  config = _config(model, architecture, preprocessing, labels)
  shapes, values = disk_tensors(model, params)
  parameters = sum(math.prod(shape) for shape in shapes.values())
  size = parameters * DTYPES[dtype].itemsize
  if max_shard_bytes is not None and size > max_shard_bytes:
    notes.append(f"one file of {size:,} bytes: timm reads no shards from a directory")
  if preprocessing is None:
    notes.append("the model's preprocessing is not known: timm will use its own default")
  text = (json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
  (directory / "config.json").write_bytes(text)
  weights = write_tensors(directory / "model.safetensors", shapes, values, dtype=dtype)
  report = {
      "format": FORMAT,
      "architecture": architecture,
      "dtype": dtype,
      "tensors": len(shapes),
      "parameters": parameters,
      "bytes": size,
      "files": {"config.json": hashlib.sha256(text).hexdigest(), "model.safetensors": weights},
      "notes": notes,
      "vit_jax": vit_jax.__version__,
      "verification": None,
  }
  text = json.dumps(report, indent=2, ensure_ascii=False)
  (directory / MARK).write_text(text + "\n", encoding="utf-8")
  return report


def judge(directory, batches: Mapping, patch_mask=None) -> dict | None:
  """Lets timm compute tokens and outputs from the files of a directory, in float32.

  Args:
    directory: as `write` left it.
    batches: float32 `[B, H, W, 3]` by name.
    patch_mask: of no use here; timm has no mask token.

  Returns:
    {batch: {"tokens", "outputs"}} (see `timm_judge.forward`), None where timm is not installed.

  Raises:
    CheckpointError: timm's model has other tensors than the file.
  """
  del patch_mask
  timm = timm_judge.import_timm()
  if timm is None:
    return None
  import safetensors.torch

  # As create_model(..., pretrained=True), without memory for weights that are then replaced.
  network = timm.create_model(f"local-dir:{directory}", device="meta", weight_init="skip")
  stored = safetensors.torch.load_file(Path(directory) / "model.safetensors")
  try:
    network.load_state_dict(stored, strict=True, assign=True)
  except RuntimeError as error:
    raise CheckpointError(
        f"timm {timm.__version__} does not load the export cleanly: "
        f"{' '.join(str(error).split())} Do not publish it."
    ) from error
  return timm_judge.forward(network, batches)


def _config(model, architecture, preprocessing, labels) -> dict:
  """The config.json of a model in timm's form."""
  classes, width, size = model["num_classes"], model["width"], model["image_size"]
  pool = {ours: theirs for theirs, ours in _POOLS.items()}[model["pooling"]]
  swiglu = model["mlp"] == "swiglu"
  arguments = {
      "img_size": size,
      "patch_size": model["patch_size"],
      "embed_dim": width,
      "depth": model["depth"],
      "num_heads": model["num_heads"],
      "mlp_ratio": timm_judge.mlp_ratio((1 + swiglu) * model["mlp_dim"], width),
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
          "input_size": [3, *_sides(size)],
          "fixed_input_size": True,
          "num_classes": classes,
          "first_conv": "patch_embed.proj",
          "classifier": heads,
      },
  }
  if classes:
    names = tuple(labels) if labels is not None else _placeholders(classes)
    if len(names) != classes:
      raise CheckpointError(
          f"{len(names)} labels were given for a head of {classes} classes. Give one name a "
          "class, in the order of the classes."
      )
    config["label_names"] = [str(name) for name in names]
  return config


def _placeholders(count: int) -> tuple[str, ...]:
  """As transformers names classes without names."""
  return tuple(f"LABEL_{i}" for i in range(count))


def _sides(size) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else tuple(size)


class _Facts:
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
    layers = [int(name.split(".")[1]) for name in self.names if name.startswith("blocks.")]
    hidden = self.shape("blocks.0.mlp.fc2.weight", 2)[1]
    packed = self.shape("blocks.0.mlp.fc1.weight", 2)[0] == 2 * hidden
    has = lambda name: name in self.names
    return {
        "width": width,
        "depth": 1 + max(layers, default=0),
        "mlp_dim": hidden,
        "num_heads": timm_architectures.num_heads(width),
        "patch_size": patch,
        "num_classes": self.shape("head.weight", 2)[0] if has("head.weight") else 0,
        "class_token": has("cls_token"),
        "distillation_token": has("dist_token"),
        "distillation_head": has("head_dist.weight"),
        "register_tokens": self.shape("reg_token", 3)[1] if has("reg_token") else 0,
        "pre_logits": has("pre_logits.fc.weight"),
        "qkv_bias": has("blocks.0.attn.qkv.bias"),
        "qk_norm": has("blocks.0.attn.q_norm.weight"),
        "layer_scale": _LAYER_SCALE if has("blocks.0.ls1.gamma") else None,
        "mlp": "swiglu" if packed else "gelu",
        "position_embedding": "learned",
    }

  def pooling(self) -> str:
    """The likeliest pooling."""
    if "attn_pool.latent" in self.names:
      return "map"
    return "cls" if "cls_token" in self.names and "fc_norm.weight" not in self.names else "gap"


def _described_model(facts: _Facts, config: Mapping, path: Path, report: list) -> dict:
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
    model["layer_scale"] = float(arguments.get("init_values") or _LAYER_SCALE)
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


def _bare_model(facts: _Facts, report: list) -> dict:
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


def _with_positions(facts: _Facts, model: dict, size, report: list) -> dict:
  """Adds what the length of the position table tells: image size, rows of the prefix."""
  rows, patch = facts.shape("pos_embed", 3)[1], model["patch_size"]
  own = model["class_token"] + model["distillation_token"]
  prefixes = list(dict.fromkeys((own, own + model["register_tokens"], 0)))
  sides = _sides(size if isinstance(size, int) else size) if size else None
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


def _one_norm(stored: dict, model: dict, path, report: list) -> None:
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


def _preprocessing(config: Mapping, size, path: Path) -> dict | None:
  """The evaluation transform, None where config.json says nothing of it."""
  cfg = _pretrained_cfg(config)
  if not {"mean", "std", "interpolation", "crop_pct"} & cfg.keys():
    return None
  return from_timm_pretrained_cfg({**cfg, "input_size": [3, *_sides(size)]}, path)


def _labels(config: Mapping, classes: int, path: Path) -> tuple[str, ...] | None:
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
  return None if labels == _placeholders(classes) else labels

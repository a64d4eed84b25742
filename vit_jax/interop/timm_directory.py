"""timm's local directories: config.json beside model.safetensors, for `timm.create_model`.

`read` also takes bare state dicts in timm's naming, as DeiT, DINO, DINOv2 and MAE publish them.
transformers loads the same directory through its TimmWrapper classes.
"""

import math
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop import timm_architectures, timm_config, timm_judge
from vit_jax.interop.export_directory import write_json, write_report
from vit_jax.interop.imported import Imported
from vit_jax.interop.safetensors_writer import DTYPES, check_dtype, write_tensors
from vit_jax.interop.tensor_files import open_tensors, read_json
from vit_jax.interop.tensor_table import check_depth, check_params, leaves, read_params
from vit_jax.interop.timm_keys import (
    WithoutRegisterRows, disk_tensors, encoder_names, position_rows, tensors,
)
from vit_jax.models.positions import grid, learned_positions
from vit_jax.models.vit import DEFAULTS

FORMAT = "timm"


def read(path, *, streamed: bool = False) -> Imported:
  """Reads a directory of timm's, or a state dict in timm's naming.

  Args:
    path: a directory with config.json and weights, or a file of weights alone (.safetensors,
      .pth, .pt, .bin).  What such a file cannot say is assumed, and the report says what.
    streamed: see `tensor_table.read_params`.

  Raises:
    CheckpointError: a file is missing or damaged, another kind of model, a setting that ours does
      not have (named), or tensors missing, unexpected or misshapen (listed by name).
  """
  path = Path(path)
  config_path, config = _find_config(path)
  labels, preprocessing = None, None
  with open_tensors(path) as source:
    stored, report = encoder_names(list(source.shapes), source.path)
    facts = timm_config.Facts(source, stored)
    if config is None:
      model = timm_config.bare_model(facts, report)
    else:
      model = timm_config.described_model(facts, config, config_path, report)
      labels = timm_config.to_labels(config, model["num_classes"], config_path)
      preprocessing = timm_config.to_preprocessing(config, model["image_size"], config_path)
    timm_config.read_fc_norm(stored, model, source.path, report)
    check_depth(model, stored, source.path)
    params = read_params(
        model, tensors(model), _without_register_rows(source, stored, model, report), stored,
        streamed=streamed,
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
    raise CheckpointError(f"A timm directory cannot hold this model: {problem}.")
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
  yield model["pixel_decoder"], "timm has no pixel decoder"
  yield model["pre_logits"], "timm has no pre_logits between feature and head"
  yield epsilon not in (1e-6, 1e-5), (
      f"its layer_norm_epsilon is {epsilon:g}, and timm's config.json can say 1e-6 and 1e-5 alone"
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
    model, params = learned_positions(model, params)
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
    model["layer_scale"] = timm_config.LAYER_SCALE  # timm takes 0 for none; it is an initial value
  return model, params


def write(
    directory, *, model: Mapping, params: Mapping, preprocessing: Mapping | None,
    labels: Sequence[str] | None, architecture: str | None = None, dtype: str = "float32",
    max_shard_bytes: int | None = None,
) -> dict:
  """Fills a directory that timm and transformers' TimmWrapper load, importing neither.

  Args:
    preprocessing: the evaluation transform, None where it is not known.
    architecture: a name for `choose`, or None.
    max_shard_bytes: timm reads one file of weights, so a larger one is only noted.
    Others: as in `huggingface.write`.

  Returns, Raises: as `huggingface.write`.
  """
  directory = Path(directory)
  check_dtype(dtype)
  architecture = choose(model, architecture)
  check_params(model, params)
  notes = ["the mask token is left out: timm has none"] if model.get("mask_token") else []
  model, params = fit(model, params, architecture)
  config = timm_config.to_config(
      model, architecture=architecture, preprocessing=preprocessing, labels=labels
  )
  shapes, values = disk_tensors(model, params)
  parameters = sum(math.prod(shape) for shape in shapes.values())
  size = parameters * DTYPES[dtype].itemsize
  if max_shard_bytes is not None and size > max_shard_bytes:
    notes.append(f"one file of {size:,} bytes: timm reads no shards from a directory")
  kernel = model["position_interpolation"]
  if kernel != "bicubic_antialias":
    notes.append(f"at another image size timm interpolates by a kernel of its own, not {kernel}")
  if preprocessing is None:
    notes.append("the model's preprocessing is not known: timm will use its own default")
  files = {
      "config.json": write_json(directory / "config.json", config),
      "model.safetensors": write_tensors(
          directory / "model.safetensors", shapes, values, dtype=dtype
      ),
  }
  return write_report(directory, {
      "format": FORMAT,
      "architecture": architecture,
      "dtype": dtype,
      "tensors": len(shapes),
      "parameters": parameters,
      "bytes": size,
      "files": files,
      "notes": notes,
  })


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

"""ViTs in Google's .npz files: the original's, AugReg's, big_vision's and SigLIP's.

`read` takes any generation; `google_npz` and `big_vision_npz` write one each, and share the rest
here.  A directory of ours has a conversion.json that says what the arrays cannot.
"""

import contextlib
import math
from pathlib import Path
import shutil
import tempfile
from typing import Callable, Mapping, Sequence

import numpy as np

from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop import timm_judge
from vit_jax.interop.class_labels import check_labels
from vit_jax.interop.export_directory import MARK, write_report
from vit_jax.interop.imported import Imported
from vit_jax.interop.npz_archive import Npz, append_npz, find_npz, write_npz
from vit_jax.interop.npz_keys import (
    WithoutClassRow, encoder_names, tensors, with_query_biases,
)
from vit_jax.interop.safetensors_writer import DTYPES
from vit_jax.interop.tensor_files import read_json
from vit_jax.interop.tensor_table import check_depth, check_params, leaves, read_params
from vit_jax.models.positions import ANY_SIZE, learned_positions
from vit_jax.models.vit import DEFAULTS, DESCRIPTION

WEIGHTS = "model.npz"


def read(path, *, streamed: bool = False) -> Imported:
  """Reads a ViT from an .npz of Google's.

  Args:
    path: the file, or a directory with one; a conversion.json beside it, as our exports have it,
      says what the arrays cannot.  Without one, what the original code does is assumed, and the
      report says what.
    streamed: of no consequence: an array is read whole.

  Raises:
    CheckpointError: not an .npz, damaged, no ViT or a hybrid, arrays missing, unexpected or
      misshapen (listed by name).
  """
  del streamed
  file = find_npz(Path(path))
  mark = file.parent / MARK
  said = read_json(mark) if file.name == WEIGHTS and mark.is_file() else {}
  with Npz(file) as source:
    stored, report = encoder_names(list(source.shapes), file)
    scanned = any(name.startswith("Transformer/encoderblock/") for name in stored)
    facts = _Facts(source, stored, scanned)
    if "model" in said:
      model = {**DEFAULTS, **{k: said["model"][k] for k in DESCRIPTION if k in said["model"]}}
      source_ = source
    else:
      model = facts.model(report)
      source_ = facts.without_class_row(model, report)
    if not scanned:
      check_depth(model, stored, source.path)
    params = read_params(model, tensors(model, scanned=scanned), source_, stored)
  labels = said.get("labels")
  preprocessing = said.get("preprocessing")
  count = sum(leaf.size for _, leaf in leaves(params))
  report.insert(0, f"read {len(stored)} arrays, {count:,} parameters, from {file}")
  return Imported(
      model=model, params=params, preprocessing=preprocessing,
      labels=None if labels is None else tuple(labels), report=tuple(report),
  )


class _Facts:
  """What the arrays themselves say of a model."""

  def __init__(self, source, stored: Mapping[str, str], scanned: bool):
    self._source, self._stored = source, stored
    self._block = "Transformer/encoderblock" + ("" if scanned else "_0")
    self._scanned = scanned

  def _shape(self, name: str, rank: int) -> tuple[int, ...]:
    found = self._source.shapes.get(self._stored.get(name))
    if found is None or len(found) != rank:
      problem = "is missing" if found is None else f"has the shape {found}, not of {rank} axes"
      raise CheckpointError(
          f"{self._source.path} is not a whole ViT of Google's: {name} {problem}. Copy it again "
          "from its source."
      )
    return found

  def _block_shape(self, name: str, rank: int) -> tuple[int, ...]:
    found = self._shape(f"{self._block}/{name}", rank + self._scanned)
    return found[1:] if self._scanned else found

  def model(self, report: list) -> dict:
    """The description; what is assumed goes to the report."""
    patch, across, channels, width = self._shape("embedding/kernel", 4)
    if patch != across or channels != 3:
      raise CheckpointError(
          f"{self._source.path}: patches of {patch} x {across} pixels with {channels} channels "
          "(embedding/kernel); only square ones of RGB images are read."
      )
    has = lambda name: name in self._stored
    if self._scanned:
      depth = self._shape("Transformer/encoderblock/LayerNorm_0/scale", 2)[0]
    else:
      numbers = [
          int(name.split("/")[1].removeprefix("encoderblock_")) for name in self._stored
          if name.startswith("Transformer/encoderblock_")
      ]
      depth = 1 + max(numbers, default=0)
    query = self._block_shape("MultiHeadDotProductAttention_0/query/kernel", 3)
    pooling = "map" if has("MAPHead_0/probe") else "cls" if has("cls") else "gap"
    model = {
        **DEFAULTS,
        "width": width,
        "depth": depth,
        "mlp_dim": self._block_shape("MlpBlock_0/Dense_0/kernel", 2)[1],
        "num_heads": query[1],
        "patch_size": patch,
        "num_classes": self._shape("head/kernel", 2)[1] if has("head/kernel") else 0,
        "class_token": has("cls"),
        "pooling": pooling,
        "pre_logits": has("pre_logits/kernel"),
        "position_interpolation": "bilinear",
        "gelu": "tanh",
        "layer_norm_epsilon": 1e-6,
    }
    report.append(
        f"assumed as Google's code has it: pooling {pooling!r}, layer_norm_epsilon 1e-6, GELU by "
        "tanh, positions of a square image, resampled bilinearly"
    )
    self._add_positions(model, report)
    return model

  def _add_positions(self, model: dict, report: list) -> None:
    patch = model["patch_size"]
    if "pos_embedding" not in self._stored:
      # big_vision's posemb="sincos2d"; the file does not know its size.
      size = 224 // patch * patch
      model |= {
          "position_embedding": "sincos2d", "image_size": size, "position_image_size": ANY_SIZE
      }
      report.append(
          f"there is no pos_embedding: fixed sincos2d positions, images of {size} pixels assumed; "
          "those of another size are counted anew"
      )
      return
    rows = self._shape("pos_embedding", 3)[1]
    first = next((n for n in (0, 1) if math.isqrt(rows - n) ** 2 == rows - n), None)
    if first is None or rows < 1:
      raise CheckpointError(
          f"{self._source.path}: {rows} positions (pos_embedding) are not those of a square image, "
          "and an .npz does not say the sides. A conversion.json beside it would."
      )
    model["image_size"] = math.isqrt(rows - first) * patch
    model["class_token_position"] = bool(first) or not model["class_token"]

  def without_class_row(self, model: Mapping, report: list):
    """The source itself, or one whose positions are those of a model without class token."""
    name = self._stored.get("pos_embedding")
    if name is None or model["class_token"]:
      return self._source
    if self._source.shapes[name][1] == (model["image_size"] // model["patch_size"]) ** 2:
      return self._source
    if model["pooling"] != "map":
      raise CheckpointError(
          f"{self._source.path} holds a position for a class token but no cls. Copy it again from "
          "its source."
      )
    report.append("left out the first position, a class token's, which this model does not have")
    return WithoutClassRow(self._source, name)


def limits(model: Mapping):
  """(whether it holds, what it is) for every setting that no .npz of Google's can say."""
  yield model["layer_norm_epsilon"] != 1e-6, (
      f"Google's code has layer_norm_epsilon 1e-6, not {model['layer_norm_epsilon']:g}"
  )
  yield model["mlp"] == "gelu" and model["gelu"] != "tanh", "Google's GELU is the tanh one"
  yield model["mlp"] != "gelu", "Google's ViT has no SwiGLU"
  yield model["layer_scale"] is not None, "Google's ViT has no LayerScale"
  yield model["qk_norm"], "Google's ViT has no QK-norm"
  yield model["register_tokens"], "Google's ViT has no register tokens"
  yield model["distillation_token"], "Google's ViT has no distillation token"
  yield model["norm_after_pooling"], "Google's ViT has its last norm before pooling"
  yield model["pixel_decoder"], "Google's ViT has no pixel decoder"
  yield model["class_token"] and model["pooling"] in ("gap", "map"), (
      f"Google's ViT has no class token beside pooling {model['pooling']!r}"
  )


def choose(
    model: Mapping, architecture: str | None, *, known: str, target: str, limit: tuple[bool, str]
) -> str:
  """The one class of a target.

  Args:
    known: its name.
    target: of `--to`.
    limit: one of the target alone, as `limits` gives them.

  Raises:
    ConfigError: another class was asked for.
    CheckpointError: the target cannot hold the model; the text names those that can.
  """
  if architecture not in (None, known):
    raise ConfigError(f"--to={target} has no class {architecture!r}; leave it out.")
  problem = next((text for wrong, text in (*limits(model), limit) if wrong), None)
  if problem:
    raise CheckpointError(f"--to={target} cannot hold this model: {problem}.")
  return known


def fit(model: Mapping, params: Mapping) -> tuple[dict, dict]:
  """The same function without a mask token, with biases of query, key and value (zeros), and with
  fixed positions as a learned table where they are MAE's or count another size's patches."""
  model, params = {**DEFAULTS, **model}, dict(params)
  params.pop("mask_token", None)
  model["mask_token"] = False
  counted = model["position_image_size"]
  if model["position_embedding"] == "sincos2d_mae" or counted not in (None, ANY_SIZE):
    model, params = learned_positions(model, params)
  if not model["qkv_bias"]:
    model["qkv_bias"] = True
    params = with_query_biases(model, params)
  if not model["class_token"] or model["position_embedding"] != "learned":
    model["class_token_position"] = True  # of no consequence
  return model, params


def write(
    directory, *, model: Mapping, params: Mapping, fitted: tuple[dict, dict],
    preprocessing: Mapping | None, labels: Sequence[str] | None, architecture: str, dtype: str,
    max_shard_bytes: int | None, rename: Callable[[str], str], target: str,
) -> dict:
  """Fills an empty directory with model.npz and conversion.json.

  Args:
    model, params: what is exported.
    fitted: the same as the format stores it.
    rename: big_vision's name of an array to that in the file.
    target: of `--to`, noted as "format".
    Others: as in `google_npz.write`.
  """
  directory = Path(directory)
  check_params(model, params)
  notes = ["the mask token is left out: Google's ViT has none"] if model.get("mask_token") else []
  model, params = fitted
  if labels is not None:
    check_labels(labels, model["num_classes"])
  table = {rename(tensor.name): tensor for tensor in tensors(model, scanned=False)}
  shapes = {name: tensor.shape for name, tensor in table.items()}
  parameters = sum(math.prod(shape) for shape in shapes.values())
  size = parameters * DTYPES[dtype].itemsize
  if max_shard_bytes is not None and size > max_shard_bytes:
    notes.append(f"one file of {size:,} bytes: an .npz is not divided")
  digest = write_npz(
      directory / WEIGHTS, shapes, lambda name: table[name].to_disk(params), dtype=dtype
  )
  return write_report(directory, {
      "format": target,
      "architecture": architecture,
      "dtype": dtype,
      "tensors": len(table),
      "parameters": parameters,
      "bytes": size,
      "model": {key: model[key] for key in DESCRIPTION},
      "preprocessing": None if preprocessing is None else dict(preprocessing),
      "labels": None if labels is None else [str(label) for label in labels],
      "files": {WEIGHTS: digest},
      "notes": notes,
  })


def judge(directory, batches: Mapping, *, prefix: str) -> dict | None:
  """Lets timm's own reader of such files compute tokens and outputs, in float32.

  pre_logits, which timm has no layer for, are computed from the file in NumPy.

  Args:
    directory: as `write` left it.
    batches: float32 `[B, H, W, 3]` by name.
    prefix: of the arrays' names.

  Returns:
    {batch: {"tokens", "outputs"}} (see `timm_judge.forward`), None where timm is not installed.
  """
  said = read_json(Path(directory) / MARK)
  model, file = said["model"], Path(directory) / WEIGHTS
  timm = timm_judge.import_timm()
  if timm is None:
    return None
  half = said["dtype"] == "bfloat16"
  name = f"{prefix}pos_embedding"
  with _with_fixed_positions(file, model, name, said["dtype"]) as (whole, learned):
    network = timm_judge.load_npz(timm, whole, learned, half=half)
  answers = timm_judge.forward(network, batches)
  if model["pre_logits"]:
    with Npz(file) as source:
      read_pair = lambda name: [source.read(f"{prefix}{name}/{x}") for x in ("kernel", "bias")]
      dense = [read_pair(name) for name in ("pre_logits", "head")[: 1 + bool(model["num_classes"])]]
    for answer in answers.values():
      kernel, bias = dense[0]
      answer["outputs"] = np.tanh(answer["outputs"] @ kernel + bias)
      for kernel, bias in dense[1:]:
        answer["outputs"] = answer["outputs"] @ kernel + bias
  return answers


@contextlib.contextmanager
def _with_fixed_positions(file: Path, model: Mapping, name: str, dtype: str):
  """File and model; of one with fixed positions, which timm lacks, a copy that has them learned."""
  if model["position_embedding"] == "learned":
    yield file, model
    return
  model, params = learned_positions(dict(model), {})
  with tempfile.TemporaryDirectory(dir=file.parent.parent) as scratch:
    copy = Path(scratch) / file.name
    shutil.copyfile(file, copy)
    append_npz(copy, name, params["position_embedding"], dtype=dtype)
    yield copy, model

"""Hugging Face directories of ViTs, read and written with NumPy alone.

`read` takes what any release of transformers wrote for `ViTModel` or
`ViTForImageClassification`; `write` emits the one layout that transformers 4 and 5 both load.
`verify.export_huggingface` writes, proves what was written and only then puts it in place.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

import vit_jax
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop import huggingface_config, huggingface_processor
from vit_jax.interop.export_directory import MARK
from vit_jax.interop.huggingface_keys import (
    canonical, leaf_shapes, leaves, take, tensors as tensor_table,
)
from vit_jax.interop.tensor_files import (
    DTYPES, TensorFiles, first_ten, read_json, write_tensors,
)

# What `write` makes; an export holds nothing else.
FILES = {"config.json", "model.safetensors", "preprocessor_config.json", MARK}
_MODEL_KEYS = (
    "width", "depth", "mlp_dim", "num_heads", "patch_size", "image_size", "num_classes",
    "pooling", "pre_logits", "gelu", "layer_norm_epsilon",
)


@dataclasses.dataclass(frozen=True)
class Imported:
  """A foreign checkpoint in our terms.

  Attributes:
    model: keyword arguments of `ViT`, those that shape the model; JSON-able.
    params: nested dict of float32 NumPy arrays.
    preprocessing: the evaluation transform, None where the directory has no
      preprocessor_config.json.
    labels: class names in order, None where there are none.
    report: what a user should be told, one line each.
  """

  model: dict
  params: dict
  preprocessing: dict | None
  labels: tuple[str, ...] | None
  report: tuple[str, ...]


def read(directory) -> Imported:
  """Reads a Hugging Face ViT: config.json with model.safetensors or its shards.

  `ViTForImageClassification` becomes a model with a head.  `ViTModel` becomes one without; its
  pooler, where the file has one, is `pre_logits`.

  Raises:
    CheckpointError: a file is missing or damaged, another model than a ViT, a setting that ours
      does not have, or tensors missing, unexpected or misshapen (listed by name).
  """
  directory = Path(directory)
  config_path = directory / "config.json"
  if not config_path.is_file():
    raise CheckpointError(
        f"{directory} has no config.json. A Hugging Face directory holds config.json beside "
        "model.safetensors; check the path."
    )
  config = read_json(config_path)
  model = huggingface_config.to_model(config, config_path)
  preprocessing, labels, report = None, None, []
  with TensorFiles(directory) as files:
    stored = _canonical_names(files)
    if stored.pop("embeddings.mask_token", None):
      report.append("ignored embeddings.mask_token: only masked pre-training uses it")
    classes = _head_classes(config, files, stored, config_path)
    model["num_classes"] = classes
    model["pre_logits"] = not classes and "pooler.dense.weight" in stored
    if model["pre_logits"]:
      huggingface_config.check_pooler(config, config_path)
    params = _read_params(model, files, stored)
    if classes:
      labels = huggingface_config.to_labels(config)
    count = sum(leaf.size for _, leaf in leaves(params))
    report.insert(0, f"read {len(stored)} tensors, {count:,} parameters, from {files.path}")
  processor = directory / "preprocessor_config.json"
  if processor.is_file():
    preprocessing = huggingface_processor.to_preprocessing(read_json(processor), processor)
  else:
    report.append(f"{directory} has no preprocessor_config.json: preprocessing is not known")
  return Imported(
      model={key: model[key] for key in _MODEL_KEYS}, params=params,
      preprocessing=preprocessing, labels=labels, report=tuple(report),
  )


def _canonical_names(files: TensorFiles) -> dict[str, str]:
  """Names in the file by their canonical names."""
  stored = {}
  for name in files.shapes:
    if canonical(name) in stored:
      raise CheckpointError(
          f"{files.path} holds one tensor under two names: {stored[canonical(name)]} and "
          f"{name}. Remove one of them."
      )
    stored[canonical(name)] = name
  return stored


def _head_classes(config, files: TensorFiles, stored, config_path: Path) -> int:
  """Number of classes, 0 where the checkpoint has no classifier."""
  stated = huggingface_config.named_classes(config, config_path)
  if "classifier.weight" not in stored:
    wants_head = "ViTForImageClassification" in (config.get("architectures") or [])
    return (stated or 2) if wants_head or "classifier.bias" in stored else 0
  rows = next(iter(files.shapes[stored["classifier.weight"]]), 0)
  if stated is not None and stated != rows:
    raise CheckpointError(
        f"{config_path} names {stated} classes, but classifier.weight in {files.path} has "
        f"{rows} rows. The two files do not belong together."
    )
  return rows


def _read_params(model: Mapping, files: TensorFiles, stored: Mapping[str, str]) -> dict:
  """Fills our tree from the files, having compared every name and shape."""
  table = tensor_table(model)
  expected = {tensor.name: tensor for tensor in table}
  found = {name: files.shapes[key] for name, key in stored.items()}
  misshapen = [
      f"{name} is {found[name]} instead of {tensor.shape}"
      for name, tensor in expected.items() if name in found and found[name] != tensor.shape
  ]
  faults = _faults(
      missing=[name for name in expected if name not in found],
      unexpected=[stored[name] for name in found if name not in expected],
      misshapen=misshapen,
  )
  if faults:
    raise CheckpointError(
        f"{files.path} does not fit the config.json beside it (names as in transformers 4, "
        f"without \"vit.\"). {faults}"
    )
  params = {}
  for path, shape in leaf_shapes(model).items():
    node = params
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = np.empty(shape, np.float32)
  for tensor in table:
    leaf = take(params, tensor.path)
    leaf = leaf if tensor.layer is None else leaf[tensor.layer]
    leaf[...] = tensor.from_disk(files.read(stored[tensor.name]))
  return params


def _faults(**names) -> str:
  """"Missing (2): a, b. Unexpected (1): c." of the lists that are not empty."""
  return " ".join(
      f"{kind.capitalize()} ({len(found)}): {first_ten(found)}."
      for kind, found in names.items() if found
  )


def choose_architecture(model: Mapping, architecture: str | None) -> str:
  """The Hugging Face class to write: the one asked for, or the richest that holds the weights.

  Raises:
    ConfigError: no such class.
    CheckpointError: the class cannot hold the model; the text names what can.
  """
  missing = [key for key in _MODEL_KEYS if key not in model]
  if missing:
    raise CheckpointError(f"the model's description lacks {', '.join(missing)}.")
  known = huggingface_config.ARCHITECTURES
  if architecture is not None and architecture not in known:
    raise ConfigError(
        f"no Hugging Face class {architecture!r} is written; choose one of {', '.join(known)}."
    )
  if model["pooling"] != "cls":
    raise CheckpointError(
        f"A model with pooling {model['pooling']!r} has no class token, and the Hugging Face "
        f"classes that are written ({', '.join(known)}) read their answer from one. The run's "
        "own checkpoints keep the model in full; train with pooling \"cls\" to publish there."
    )
  head, pre_logits = bool(model["num_classes"]), model["pre_logits"]
  if architecture == "ViTModel":
    return architecture
  if head and not pre_logits:
    return "ViTForImageClassification"
  if head:
    raise CheckpointError(
        "ViTForImageClassification has no layer for pre_logits between class token and "
        "classifier. Architecture ViTModel holds the encoder with pre_logits as its pooler and "
        "leaves the classifier out; the run's own checkpoints keep the model in full."
    )
  if architecture is not None:
    raise CheckpointError(
        "The model has no head, so ViTForImageClassification cannot hold it; ViTModel can."
    )
  return "ViTModel"


def exported(model: Mapping, params: Mapping, architecture: str) -> tuple[dict, dict]:
  """The part of (model, params) that the class holds: ViTModel leaves a head out."""
  if architecture == "ViTModel" and model["num_classes"]:
    return ({**model, "num_classes": 0}, {k: v for k, v in params.items() if k != "head"})
  return dict(model), dict(params)


def write(
    directory, *, model: Mapping, params: Mapping, preprocessing: Mapping | None,
    labels: Sequence[str] | None, architecture: str | None = None, dtype: str = "float32",
) -> dict:
  """Fills a directory that transformers 4 and 5 load, without importing torch or transformers.

  Args:
    directory: an empty one, such as `export_directory.new_export` gives.
    model: the model dict.
    params: nested dict of float arrays (NumPy or convertible to it).
    preprocessing: the evaluation transform; None writes no preprocessor_config.json.
    labels: class names in order; None writes placeholders.
    architecture: "ViTForImageClassification", "ViTModel", or None for the richest that holds
      the weights.
    dtype: of the tensors: "float32", "bfloat16" or "float16", rounded to nearest.

  Returns:
    The report that also lies in the directory as conversion.json: architecture, dtype, tensors,
    parameters, bytes (of the tensors), files (sha256 by name), notes, vit_jax (version) and
    verification (None until `verify.verify_huggingface` has passed).

  Raises:
    ConfigError: unknown architecture or dtype.
    CheckpointError: the class cannot hold the model, parameters that do not fit the model or
      are not finite, wrong number of labels.
    OSError: the disk is full or not writable.
  """
  directory = Path(directory)
  if dtype not in DTYPES:
    raise ConfigError(f"dtype {dtype!r} is not written; choose one of {', '.join(DTYPES)}.")
  architecture = choose_architecture(model, architecture)
  notes = _notes(model, preprocessing, labels, architecture)
  model, params = exported(model, params, architecture)
  _check_params(model, params)
  if preprocessing and preprocessing["image_size"] != model["image_size"]:
    raise CheckpointError(
        f"preprocessing makes images of {preprocessing['image_size']} pixels, the model takes "
        f"{model['image_size']}. Give the preprocessing that the model is evaluated with."
    )
  texts = {
      "config.json": huggingface_config.to_config(
          model, architecture=architecture, labels=labels, dtype=dtype
      )
  }
  if preprocessing:
    texts["preprocessor_config.json"] = huggingface_processor.to_processor(preprocessing)
  prefix = "vit." if architecture == "ViTForImageClassification" else ""
  table = {_disk_name(tensor.name, prefix): tensor for tensor in tensor_table(model)}
  shapes = {name: tensor.shape for name, tensor in table.items()}
  parameters = sum(int(np.prod(shape)) for shape in shapes.values())

  hashes = {}
  for name, content in texts.items():
    data = _json_bytes(content)
    (directory / name).write_bytes(data)
    hashes[name] = hashlib.sha256(data).hexdigest()
  hashes["model.safetensors"] = write_tensors(
      directory / "model.safetensors", shapes, lambda name: table[name].to_disk(params),
      dtype=dtype,
  )
  report = {
      "architecture": architecture,
      "dtype": dtype,
      "tensors": len(table),
      "parameters": parameters,
      "bytes": parameters * DTYPES[dtype].itemsize,
      "files": hashes,
      "notes": notes,
      "vit_jax": vit_jax.__version__,
      "verification": None,
  }
  (directory / MARK).write_bytes(_json_bytes(report))
  return report


def _disk_name(name: str, prefix: str) -> str:
  """Pooler and classifier stand outside of the encoder's prefix."""
  return name if name.startswith("classifier.") else prefix + name


def _json_bytes(content) -> bytes:
  return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _notes(model, preprocessing, labels, architecture) -> list[str]:
  """What the export leaves out or cannot say."""
  notes = []
  if architecture == "ViTModel" and model["num_classes"]:
    notes.append(f"the head of {model['num_classes']} classes is left out: ViTModel has none")
  if labels is not None and len(set(labels)) < len(labels):
    notes.append("some classes share a name; label2id holds the first of each")
  if preprocessing is None:
    notes.append("no preprocessor_config.json: the model's preprocessing is not known")
  elif not preprocessing["exif_orientation"]:
    notes.append("evaluated without EXIF orientation, which transformers applies on opening")
  return notes


def _check_params(model, params):
  expected = leaf_shapes(model)
  found = {path: tuple(np.shape(leaf)) for path, leaf in leaves(params)}
  faults = _faults(
      missing=["/".join(path) for path in expected if path not in found],
      unexpected=["/".join(path) for path in found if path not in expected],
      misshapen=[
          f"{'/'.join(path)} is {found[path]} instead of {shape}"
          for path, shape in expected.items() if path in found and found[path] != shape
      ],
  )
  if faults:
    raise CheckpointError(
        f"The parameters are not those of the model they came with, so nothing was written. "
        f"{faults}"
    )

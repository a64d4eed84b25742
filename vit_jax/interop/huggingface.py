"""Hugging Face directories of ViTs, read and written without torch or transformers.

`read` takes what any release of transformers wrote for the classes of `huggingface_classes`;
`write` emits the one layout that transformers 4 and 5 both load; `judge` lets transformers compute
what was written.  A target of `targets.py`.
"""

import math
from pathlib import Path
from typing import Mapping, Sequence

from vit_jax.errors import CheckpointError
from vit_jax.interop import huggingface_config, huggingface_processor
from vit_jax.interop.export_directory import write_json, write_report
from vit_jax.interop.huggingface_classes import ARCHITECTURES
from vit_jax.interop.huggingface_fit import choose, fit, notes as fit_notes
from vit_jax.interop.huggingface_judge import judge
from vit_jax.interop.huggingface_keys import canonical, ignored, tensors
from vit_jax.interop.imported import Imported
from vit_jax.interop.safetensors_writer import DTYPES, check_dtype, write_shards
from vit_jax.interop.tensor_files import TensorSource, open_tensors, read_json
from vit_jax.interop.tensor_table import check_depth, check_params, leaves, read_params
from vit_jax.models.vit import DESCRIPTION

__all__ = ("choose", "fit", "judge", "read", "write")

# Outside of the encoder's prefix.
_HEADS = ("classifier.", "cls_classifier.", "distillation_classifier.", "decoder.")


def read(directory, *, streamed: bool = False) -> Imported:
  """Reads a Hugging Face directory: config.json with the weights in any of its files.

  A class with classifiers becomes a model with them; ViTModel's pooler, where the file has one, is
  `pre_logits`.  Tensors of other parts (text towers, MAE's decoder) are left out and reported.

  Raises:
    CheckpointError: a file is missing or damaged, another model than is read, a setting that ours
      does not have, or tensors missing, unexpected or misshapen (listed by name).
  """
  directory = Path(directory)
  path = directory / "config.json"
  if not path.is_file():
    raise CheckpointError(
        f"{directory} has no config.json. A Hugging Face directory holds config.json beside "
        "model.safetensors; check the path."
    )
  config = read_json(path)
  model = huggingface_config.to_model(config, path)
  with open_tensors(directory) as source:
    stored, report = _canonical_names(source, config["model_type"])
    model |= _told_by_tensors(config, path, source, stored)
    check_depth(model, stored, source.path)
    table = tensors(model, config["model_type"], stored)
    params = read_params(model, table, source, stored, streamed=streamed)
    count = sum(leaf.size for _, leaf in leaves(params))
    report.insert(0, f"read {len(stored)} tensors, {count:,} parameters, from {source.path}")
  preprocessing, processor = None, directory / "preprocessor_config.json"
  if processor.is_file():
    preprocessing = huggingface_processor.to_preprocessing(read_json(processor), processor)
  else:
    report.append(f"{directory} has no preprocessor_config.json: preprocessing is not known")
  return Imported(
      model={key: model[key] for key in DESCRIPTION},
      params=params,
      preprocessing=preprocessing,
      labels=huggingface_config.to_labels(config) if model["num_classes"] else None,
      report=tuple(report),
  )


def _canonical_names(source: TensorSource, model_type: str) -> tuple[dict[str, str], list[str]]:
  """(names in the file by their canonical names, lines on what is left out)."""
  stored, others = {}, {}
  for name in source.shapes:
    ours = canonical(name, model_type)
    if what := ignored(ours, model_type):
      others[what] = others.get(what, 0) + 1
    elif ours in stored:
      raise CheckpointError(
          f"{source.path} holds one tensor under two names: {stored[ours]} and {name}. Remove one "
          "of them."
      )
    else:
      stored[ours] = name
  return stored, [
      f"left out {what} ({count} tensor{'s' if count > 1 else ''})"
      for what, count in others.items()
  ]


def _told_by_tensors(config, path: Path, source: TensorSource, stored) -> dict:
  """What of a description only the tensors tell: heads, pooler, mask token, decoder."""
  found = {"mask_token": "embeddings.mask_token" in stored}
  named = config.get("architectures") or []
  if "decoder.0.weight" in stored or "ViTForMaskedImageModeling" in named:
    huggingface_config.check_decoder(config, path)
    return found | {"pixel_decoder": True, "pooling": "none", "mask_token": True}
  if "pooler.dense.weight" in stored:
    huggingface_config.check_pooler(config, path)
    found["pre_logits"] = True
  teacher = "cls_classifier.weight" in stored or any("WithTeacher" in name for name in named)
  head = "cls_classifier.weight" if teacher else "classifier.weight"
  wanted = teacher or any("ForImageClassification" in name for name in named)
  stated = huggingface_config.named_classes(config, path)
  if head in stored:
    rows = next(iter(source.shapes[stored[head]]), 0)
    if stated is not None and stated != rows:
      raise CheckpointError(
          f"{path} names {stated} classes, but {head} in {source.path} has {rows} rows. The two "
          "files do not belong together."
      )
    return found | {"num_classes": rows, "distillation_head": teacher}
  if wanted or "classifier.bias" in stored:
    # Two is transformers' default; the tensors that lack are listed with the others.
    return found | {"num_classes": stated or 2, "distillation_head": teacher}
  return found


def write(
    directory, *, model: Mapping, params: Mapping, preprocessing: Mapping | None,
    labels: Sequence[str] | None, architecture: str | None = None, dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> dict:
  """Fills a directory that transformers 4 and 5 load, without importing torch or transformers.

  Args:
    directory: an empty one, such as `export_directory.new_export` gives.
    model: a description.
    params: nested dict of float arrays (NumPy or convertible to it).
    preprocessing: the evaluation transform; None writes no preprocessor_config.json.
    labels: class names in order; None writes placeholders.
    architecture: a key of `huggingface_classes.ARCHITECTURES`, or None for the richest that holds
      the weights.
    dtype: of the tensors: "float32", "bfloat16" or "float16", rounded to nearest.
    max_shard_bytes: more weights than this are split over files with an index.

  Returns:
    The report that also lies in the directory as conversion.json: architecture, dtype, tensors,
    parameters, bytes (of the tensors), files (sha256 by name), notes, vit_jax (version) and
    verification (None until it has passed).

  Raises:
    ConfigError: unknown architecture or dtype.
    CheckpointError: the class cannot hold the model, parameters that do not fit the model or
      are not finite, wrong number of labels.
    OSError: the disk is full or not writable.
  """
  directory = Path(directory)
  check_dtype(dtype)
  architecture = choose(model, architecture)
  target = ARCHITECTURES[architecture]
  check_params(model, params)
  notes = fit_notes(model, architecture)
  model, params = fit(model, params, architecture)
  labels = labels if model["num_classes"] else None
  notes += _notes(preprocessing, labels)
  _check_preprocessing(preprocessing, model, architecture)
  texts = {
      "config.json": huggingface_config.to_config(
          model, architecture=architecture, labels=labels, dtype=dtype
      )
  }
  if preprocessing:
    texts["preprocessor_config.json"] = huggingface_processor.to_processor(preprocessing)
  table = {
      tensor.name if tensor.name.startswith(_HEADS) else target.prefix + tensor.name: tensor
      for tensor in tensors(model, target.model_type)
  }

  hashes = {name: write_json(directory / name, content) for name, content in texts.items()}
  hashes |= write_shards(
      directory, {name: tensor.shape for name, tensor in table.items()},
      lambda name: table[name].to_disk(params), dtype=dtype, max_shard_bytes=max_shard_bytes,
  )
  parameters = sum(math.prod(tensor.shape) for tensor in table.values())
  return write_report(directory, {
      "architecture": architecture,
      "dtype": dtype,
      "tensors": len(table),
      "parameters": parameters,
      "bytes": parameters * DTYPES[dtype].itemsize,
      "files": hashes,
      "notes": notes,
  })


def _check_preprocessing(preprocessing, model, architecture: str) -> None:
  # Dinov2 interpolates its positions to whatever image comes; the other classes refuse it.
  if not preprocessing or architecture.startswith("Dinov2"):
    return
  made, taken = (
      size if isinstance(size, int) else list(size)
      for size in (preprocessing["image_size"], model["image_size"])
  )
  if made != taken:
    raise CheckpointError(
        f"preprocessing makes images of {made} pixels, the model takes {taken}, and {architecture} "
        f"does not interpolate by itself. Convert with --image-size={_pixels(made)}."
    )


def _notes(preprocessing, labels) -> list[str]:
  """What the export cannot say of labels and preprocessing."""
  notes = []
  if labels is not None and len(set(labels)) < len(labels):
    notes.append("some classes share a name; label2id holds the first of each")
  if preprocessing is None:
    notes.append("no preprocessor_config.json: the model's preprocessing is not known")
  elif not preprocessing["exif_orientation"]:
    notes.append("evaluated without EXIF orientation, which transformers applies on opening")
  return notes


def _pixels(size) -> str:
  return str(size) if isinstance(size, int) else "x".join(map(str, size))

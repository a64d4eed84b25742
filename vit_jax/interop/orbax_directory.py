"""A directory of our own for a model alone: parameters as Orbax keeps them, all else as JSON.

    params/            the tree of `models/vit.py`, float32, bfloat16 or float16
    conversion.json    description of the model, preprocessing, labels, hashes of the files
"""

import hashlib
import math
from pathlib import Path
from typing import Mapping, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop.export_directory import MARK, write_report
from vit_jax.interop.imported import Imported
from vit_jax.interop.safetensors_writer import DTYPES, check_dtype, check_finite, round_to
from vit_jax.interop.tensor_files import read_json
from vit_jax.interop.tensor_table import check_params, leaves
from vit_jax.models.vit import DEFAULTS, DESCRIPTION

ARCHITECTURE = "ViT"
FORMAT = "orbax"
_MAX_PACKED = 1000  # times; weights hardly shrink when they are packed


def read(path, *, streamed: bool = False) -> Imported:
  """Reads a directory that `write` made, whole: Orbax has no other way.

  Raises:
    CheckpointError: files missing or damaged, parameters that are not those of the description.
  """
  del streamed
  directory = Path(path)
  report = read_json(directory / MARK)
  if report.get("format") != FORMAT:
    raise CheckpointError(f"{directory / MARK} is not of an Orbax export of vit_jax.")
  _check_files(directory, report.get("files", {}))
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      stored = checkpointer.metadata(directory / "params").item_metadata.tree
      _check_claims(directory, report, stored)
      as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
      params = checkpointer.restore(directory / "params", restore_args=as_numpy)
  except (ValueError, FileNotFoundError, KeyError) as error:
    raise CheckpointError(
        f"{directory / 'params'} cannot be read by Orbax: {error}. Copy the directory again."
    ) from error
  model = DEFAULTS | {key: report["model"][key] for key in DESCRIPTION if key in report["model"]}
  check_params(model, params)
  labels = report.get("labels")
  return Imported(
      model=model,
      params=jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params),
      preprocessing=report.get("preprocessing"),
      labels=None if labels is None else tuple(labels),
      report=(f"read {report['parameters']:,} parameters from {directory / 'params'}",),
  )


def choose(model: Mapping, architecture: str | None) -> str:
  """"ViT": it holds every model of ours.

  Raises:
    ConfigError: another class was asked for.
  """
  del model
  if architecture not in (None, ARCHITECTURE):
    raise ConfigError(f"--to=orbax has no classes: leave --architecture={architecture} out")
  return ARCHITECTURE


def fit(model: Mapping, params: Mapping, architecture: str) -> tuple[dict, dict]:
  """The model as it is."""
  del architecture
  return dict(model), dict(params)


def write(
    directory, *, model: Mapping, params: Mapping, preprocessing: Mapping | None,
    labels: Sequence[str] | None, architecture: str | None = None, dtype: str = "float32",
    max_shard_bytes: int | None = None,
) -> dict:
  """Fills an empty directory.

  Args:
    Others: as in `huggingface.write`; Orbax divides the arrays into files itself.

  Returns:
    The report that also lies in the directory as conversion.json.

  Raises:
    ConfigError: unknown class or dtype.
    CheckpointError: parameters that do not fit the model, or are not finite.
  """
  del max_shard_bytes
  directory = Path(directory)
  check_dtype(dtype)
  architecture = choose(model, architecture)
  check_params(model, params)
  stored = jax.tree.map(lambda leaf: round_to(leaf, dtype), dict(params))
  for path, leaf in leaves(stored):
    check_finite("/".join(path), leaf, dtype)
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(directory / "params", stored)
  count = sum(leaf.size for _, leaf in leaves(stored))
  return write_report(directory, {
      "format": FORMAT,
      "architecture": architecture,
      "dtype": dtype,
      "tensors": len(list(leaves(stored))),
      "parameters": count,
      "bytes": count * DTYPES[dtype].itemsize,
      "model": {key: model[key] for key in DESCRIPTION if key in model},
      "preprocessing": None if preprocessing is None else dict(preprocessing),
      "labels": None if labels is None else list(labels),
      "files": _hashes(directory),
      "notes": [],
  })


def judge(directory, batches: Mapping, patch_mask) -> None:
  """Nobody else reads this format: what was read back is compared bit by bit, and that is all."""
  del directory, batches, patch_mask


def _hashes(directory: Path) -> dict[str, str]:
  """sha256 of every file below params/ by its relative name."""
  hashes = {}
  for path in sorted(p for p in (directory / "params").rglob("*") if p.is_file()):
    with path.open("rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    hashes[path.relative_to(directory).as_posix()] = digest
  return hashes


def _check_claims(directory: Path, report: Mapping, stored: Mapping) -> None:
  """Holds that the arrays are the model's and can lie in these files, before they are allocated."""
  check_params(DEFAULTS | dict(report["model"]), stored)
  claimed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for _, leaf in leaves(stored))
  files = sum(p.stat().st_size for p in (directory / "params").rglob("*") if p.is_file())
  if claimed > _MAX_PACKED * files:
    raise CheckpointError(
        f"{directory} claims {claimed:,} bytes of parameters, and its files have {files:,}. Copy "
        "the directory again from its source."
    )


def _check_files(directory: Path, expected: Mapping[str, str]) -> None:
  """Orbax restores a flipped bit without a word: compare every file with its hash first."""
  found = _hashes(directory)
  wrong = [name for name in expected if found.get(name) != expected[name]]
  if wrong:
    raise CheckpointError(
        f"{directory}: files are missing or not as they were written: {', '.join(wrong[:5])}. "
        "Copy the directory again from its source."
    )

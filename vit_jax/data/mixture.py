"""A file that lists data sets and their weights, opened as one.

    [
      {"dataset": "array_record", "path": "imagenet21k", "weight": 1},
      {"dataset": "tfds:imagenet2012", "path": "tfds", "split": "train[:99%]", "weight": 2}
    ]
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Callable

from vit_jax.data.sampling import mix
from vit_jax.data.source import DataSet
from vit_jax.errors import ConfigError

_KEYS = {"dataset": str, "path": str, "split": str, "weight": (int, float)}


def open_mixture(
    file: str | os.PathLike, open_dataset: Callable[..., DataSet], *, held_out: float, seed: int
) -> DataSet:
  """Opens the parts; "weight" (1) is how often an epoch shows each training record of a part.

  Paths are relative to the file.  The other splits are those of the first part, to which its
  classes belong too; classes of equal names are one.

  Args:
    open_dataset: `data.open.open_dataset`.

  Raises:
    ConfigError: the file has another form, or what a part's own opening raises.
    DataError: what a part's own opening raises.
  """
  file = Path(file)
  parts, weights = [], []
  for number, entry in enumerate(_read(file), start=1):
    path = entry.get("path")
    try:
      dataset = open_dataset(
          entry["dataset"], path=str(file.parent / os.path.expanduser(path)) if path else None,
          # Only the first part is evaluated on: nothing is held out of the others.
          held_out=0 if parts else held_out, split=entry.get("split", "train"), seed=seed,
      )
    except ConfigError as error:
      raise ConfigError(f"{file}, part {number}: {error}") from error
    if "train" not in dataset.splits:
      raise ConfigError(f"{file}, part {number}: {dataset.name} has no train split")
    parts.append(dataset)
    weights.append(float(entry.get("weight", 1)))
  train = mix(
      [part.splits["train"] for part in parts], weights, name=file.stem, split="train", seed=seed
  )
  if train.classes != parts[0].classes:
    extra = len(train.classes) - len(parts[0].classes)
    notes = (f"{file}: the parts after the first add {extra} classes",)
  else:
    notes = ()
  notes = tuple(note for part in parts for note in part.notes) + notes
  content = json.dumps([[part.fingerprint for part in parts], weights])
  # Labels of the first part keep their places, so its splits are valid as they are.
  splits = parts[0].splits | {"train": train}
  return DataSet(
      file.stem, train.classes, splits, hashlib.sha256(content.encode()).hexdigest(), notes
  )


def _read(file: Path) -> list[dict]:
  try:
    entries = json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise ConfigError(f"config.input.path: the mixture {file} cannot be read: {error}") from error
  form = 'a list such as [{"dataset": "folder", "path": "cats", "weight": 1}, ...]'
  if not isinstance(entries, list) or not entries:
    raise ConfigError(f"{file} must be {form}")
  for entry in entries:
    ok = isinstance(entry, dict) and "dataset" in entry and all(
        key in _KEYS and isinstance(value, _KEYS[key]) for key, value in entry.items()
    )
    if not ok or entry["dataset"] == "mixture":
      raise ConfigError(f"{file}: {json.dumps(entry)} is not a part; it must be {form}")
  return entries

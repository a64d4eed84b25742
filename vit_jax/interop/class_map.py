"""Slicing a head: some of many classes, in an order of their own, as ImageNet-1k out of 21k."""

from importlib import resources
from pathlib import Path
import re
from typing import Mapping, Sequence

import numpy as np

from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop.tensor_table import first_ten

IMAGENET_1K = "imagenet-1k"
_GOOGLE_21K = 21_843
_WORDNET = re.compile(r"n\d{8}")
# Far below any logit, and finite in float16 too.
_NEVER = -1e4


def slice_head(
    model: Mapping, params: Mapping, labels: Sequence[str] | None, *,
    wanted: Sequence[int | str] | str,
) -> tuple[dict, dict, tuple[str, ...] | None, str]:
  """Keeps some classes of a head.

  Args:
    model, params: a description and its parameters, with a head.
    labels: class names in order, None where they are not known.
    wanted: the classes in their new order, by index or by label (WordNet ids of checkpoints whose
      labels are such); or "imagenet-1k", which finds the 1000 by WordNet id among the labels, or
      by Google's order in a head of 21843 classes without labels.  A class of these 1000 that the
      head lacks (Google's lacks one) is never answered, so that the others keep their numbers.

  Returns:
    (model, params, labels, a line for the report); leaves other than the heads are shared.

  Raises:
    ConfigError: classes asked for twice, or not there.
    CheckpointError: the model has no head, or its classes are not known.
  """
  classes = model["num_classes"]
  if not classes:
    raise CheckpointError("The checkpoint has no head, so there are no classes to choose from.")
  missing = ()
  if isinstance(wanted, str):
    if wanted != IMAGENET_1K:
      raise ConfigError(f"unknown class map {wanted!r}; choose {IMAGENET_1K!r} or a list.")
    indices, new_labels = _imagenet_1k(classes, labels)
    missing = tuple(label for label, index in zip(new_labels, indices) if index is None)
  else:
    indices = _indices(wanted, classes, labels)
    new_labels = None if labels is None else tuple(labels[index] for index in indices)
  taken = np.array([0 if index is None else index for index in indices])
  absent = np.array([index is None for index in indices])
  sliced = {}
  for name in ("head", "distillation_head"):
    if name in params:
      kernel, bias = (np.asarray(params[name][part]) for part in ("kernel", "bias"))
      sliced[name] = {
          "kernel": np.where(absent, kernel.dtype.type(0), kernel[:, taken]),
          "bias": np.where(absent, bias.dtype.type(_NEVER), bias[taken]),
      }
  line = f"kept {len(indices) - len(missing)} of {classes} classes"
  if missing:
    line += (
        f"; never answers {first_ten(missing)}, which the head has no class for: an image of such "
        f"a class adds about {-_NEVER:.0f} nats to a loss"
    )
  return {**model, "num_classes": len(indices)}, {**params, **sliced}, new_labels, line


def read_class_map(path) -> tuple[int | str, ...]:
  """Reads a list of wanted classes: an index or a label a line; empty lines and # are skipped.

  Raises:
    ConfigError: no such file, no classes in it, or a line that is neither (its number is named).
  """
  path, found = Path(path), []
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"{path} cannot be read as a list of classes: {error}.") from error
  for number, line in enumerate(lines, start=1):
    line = line.partition("#")[0].strip()
    if not line:
      continue
    if line.lstrip("-").isdigit():
      if int(line) < 0:
        raise ConfigError(f"{path}, line {number}: the index {line} is negative.")
      found.append(int(line))
    elif _WORDNET.fullmatch(line):
      found.append(line)
    else:
      raise ConfigError(
          f"{path}, line {number}: {line!r} is neither an index nor a WordNet id (n01440764)."
      )
  if not found:
    raise ConfigError(f"{path} names no classes. Write an index or a WordNet id a line.")
  return tuple(found)


def _indices(wanted, classes: int, labels) -> list[int]:
  """Index of each wanted class."""
  at = {} if labels is None else {label: i for i, label in reversed(list(enumerate(labels)))}
  unknown = [
      entry for entry in wanted
      if (entry not in at if isinstance(entry, str) else not 0 <= entry < classes)
  ]
  if unknown:
    what = f"labels such as {first_ten(labels[:3])}" if labels else "no labels"
    raise ConfigError(
        f"{len(unknown)} of the wanted classes are not in the checkpoint, which has {classes} "
        f"classes and {what}: {first_ten(map(str, unknown))}."
    )
  indices = [at[entry] if isinstance(entry, str) else int(entry) for entry in wanted]
  twice = sorted({index for index in indices if indices.count(index) > 1}) if (
      len(set(indices)) < len(indices)
  ) else []
  if twice:
    raise ConfigError(f"classes are wanted twice: {first_ten(map(str, twice))}. Name each once.")
  return indices


def _imagenet_1k(classes: int, labels) -> tuple[list[int | None], tuple[str, ...]]:
  """Index of each of ImageNet-1k's classes (None: not there), and their WordNet ids."""
  text = (resources.files("vit_jax.interop") / "class_maps" / "imagenet21k_google_to_1k.txt")
  rows = [
      line.split() for line in text.read_text().splitlines() if line and not line.startswith("#")
  ]
  names = tuple(name for name, _ in rows)
  if labels is not None and sum(bool(_WORDNET.fullmatch(label)) for label in labels) == classes:
    at = {label: index for index, label in enumerate(labels)}
    found = [at.get(name) for name in names]
  elif labels is None and classes == _GOOGLE_21K:
    found = [None if index == "-" else int(index) for _, index in rows]
  else:
    raise CheckpointError(
        f"The head's {classes} classes are not known to be ImageNet-21k's: its labels are no "
        f"WordNet ids, and Google's order is that of {_GOOGLE_21K} classes without labels. Give "
        "a file with an index a line instead."
    )
  if sum(index is None for index in found) > 1 + len(found) // 100:
    raise CheckpointError(
        f"The head of {classes} classes lacks most of ImageNet-1k: it has "
        f"{sum(index is not None for index in found)} of {len(found)}."
    )
  return found, names

"""How much each class counts in the loss."""

import json
import math
from pathlib import Path

import numpy as np

from vit_jax.data.source import Source
from vit_jax.errors import ConfigError


def class_weights(spec: str, source: Source) -> tuple[float, ...]:
  """Weights in the order of the source's classes.

  Args:
    spec: "balanced" for N / (classes x records of the class), as scikit-learn's
      `compute_class_weight`; or a JSON file of {class: weight}, in which classes that are not
      named weigh 1.

  Raises:
    ConfigError: the source does not list its labels, lists several for an image, or is drawn in
      another proportion; a class has no records; or the file is no such object or names a class
      that does not exist.
  """
  if spec != "balanced":
    return _of_file(Path(spec), source.classes)
  if hasattr(source, "record_at") or source.max_labels > 1:
    raise ConfigError(
        "config.objective.class_weights is 'balanced', which is for data of one label an image "
        "that is neither a mixture nor sampled class_balanced: give a file of weights"
    )
  labels = getattr(source, "labels", None)
  if labels is None:
    raise ConfigError(
        f"config.objective.class_weights is 'balanced', but {source.name} does not list its "
        "labels: bring it into our own shards with `vit-jax prepare`, or give a file of weights"
    )
  counts = np.bincount(np.asarray(labels), minlength=len(source.classes))
  if not counts.all():
    absent = source.classes[int(np.argmin(counts))]
    raise ConfigError(
        f"config.objective.class_weights is 'balanced', but {source.name}/{source.split} has no "
        f"image of {absent!r}: give a file of weights instead"
    )
  return tuple((len(labels) / (len(counts) * counts)).tolist())


def _of_file(file: Path, classes: tuple[str, ...]) -> tuple[float, ...]:
  try:
    given = json.loads(file.read_text())
    ok = isinstance(given, dict) and all(
        type(x) in (int, float) and math.isfinite(x) and x >= 0 for x in given.values()
    )
  except (OSError, ValueError) as error:
    raise ConfigError(
        f"config.objective.class_weights: {file} cannot be read ({error}); give 'balanced' or a "
        'JSON file such as {"cat": 2.5}'
    ) from error
  if not ok:
    raise ConfigError(f"{file} must be an object of weights from 0 up, such as {{\"cat\": 2.5}}")
  if unknown := set(given) - set(classes):
    raise ConfigError(f"{file} names the class {min(unknown)!r}, which the data does not have")
  return tuple(float(given.get(name, 1.0)) for name in classes)

"""Which classes are taken for which: confusion matrix, accuracy of each class, macro-F1."""

import csv
import io
import pathlib
from typing import Sequence

import numpy as np

from vit_jax.bucket import atomic
from vit_jax.errors import ConfigError
from vit_jax.evaluators.predictions import Predictions

MAX_CLASSES = 4096  # a matrix of 128 MiB


def confusion_matrix(predictions: Predictions, classes: int) -> np.ndarray:
  """Returns int64 `[C, C]`, true classes down, predicted ones across, over readable images.

  Raises:
    ConfigError: more than `MAX_CLASSES` classes.
  """
  check_classes(classes)
  labels, predicted = (rows.astype(np.int64) for rows in _pairs(predictions))
  counts = np.bincount(labels * classes + predicted, minlength=classes**2)
  return counts.reshape(classes, classes)


def check_classes(classes: int) -> None:
  """Raises ConfigError for more than `MAX_CLASSES` classes."""
  if classes > MAX_CLASSES:
    raise ConfigError(
        f"a confusion matrix of {classes} classes would have {classes**2} cells; it is made for "
        f"at most {MAX_CLASSES}"
    )


def class_counts(predictions: Predictions, classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns int64 `[C]` twice: images of each class, unreadable ones too, and how many of them
  are predicted right."""
  labels, predicted = _pairs(predictions)
  labeled = predictions.labels[predictions.labels >= 0]
  return (
      np.bincount(labeled, minlength=classes),
      np.bincount(labels[labels == predicted], minlength=classes),
  )


def macro_f1(predictions: Predictions, classes: int) -> float:
  """Returns the mean over classes of F1 = 2 TP / (true + predicted), over readable images.

  Classes that are neither true nor predicted anywhere are left out, as scikit-learn's
  `f1_score(average="macro", zero_division=0)` does.
  """
  labels, predicted = _pairs(predictions)
  right = np.bincount(labels[labels == predicted], minlength=classes)
  both = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
  there = both > 0
  return float(np.mean(2 * right[there] / both[there])) if there.any() else 0.0


def write_confusion(path, predictions: Predictions, names: Sequence[str]) -> None:
  """Writes the matrix as CSV: a header of the predicted class names, then a row a true class.

  Args:
    path: of the file, which is replaced as a whole: a local path, also as a str, or a
      `bucket.path.BucketPath`.
    names: of the C classes.

  Raises:
    ConfigError: as `confusion_matrix`.
  """
  matrix = confusion_matrix(predictions, len(names))
  header = ["true \\ predicted", *names]
  _write(path, [header, *([name, *row] for name, row in zip(names, matrix.tolist()))])


def write_per_class(path, predictions: Predictions, names: Sequence[str]) -> None:
  """Writes CSV with the columns class, images, correct, accuracy (empty for a class without
  images); arguments as of `write_confusion`."""
  images, correct = (column.tolist() for column in class_counts(predictions, len(names)))
  rows = [
      [name, n, right, right / n if n else ""] for name, n, right in zip(names, images, correct)
  ]
  _write(path, [["class", "images", "correct", "accuracy"], *rows])


def _pairs(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
  """Labels and predictions of the readable images."""
  return (
      predictions.labels[predictions.readable], predictions.predicted[predictions.readable]
  )


def _write(path, rows) -> None:
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(rows)
  atomic.write_text(pathlib.Path(path) if isinstance(path, str) else path, text.getvalue())

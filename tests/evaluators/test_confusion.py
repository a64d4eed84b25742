"""Confusion matrix, accuracy of each class and macro-F1, by scikit-learn."""

import csv

import numpy as np
import pytest
from sklearn import metrics
from sklearn.naive_bayes import GaussianNB

from digit_features import digits
from vit_jax.errors import ConfigError
from vit_jax.evaluators.confusion import (
    class_counts, confusion_matrix, macro_f1, write_confusion, write_per_class,
)
from vit_jax.evaluators.predictions import Predictions


def digit_predictions(*, without=(), unreadable=()):
  """A classifier that is often wrong, on the digits that are none of `without`."""
  values, labels = digits()
  keep = ~np.isin(labels, without)
  values, labels = values[keep], labels[keep]
  predicted = GaussianNB().fit(values[:300], labels[:300]).predict(values).astype(np.int32)
  readable = np.ones(len(labels), bool)
  readable[list(unreadable)] = False
  return Predictions(labels, predicted, np.ones(len(labels), np.float32), readable)


@pytest.mark.parametrize("unreadable", [(), (0, 1, 2, 500)], ids=["all", "four unreadable"])
def test_as_scikit_learn(unreadable):
  predictions = digit_predictions(unreadable=unreadable)
  true = predictions.labels[predictions.readable]
  predicted = predictions.predicted[predictions.readable]
  matrix = confusion_matrix(predictions, 10)
  assert matrix.dtype == np.int64
  np.testing.assert_array_equal(
      matrix, metrics.confusion_matrix(true, predicted, labels=range(10))
  )
  expected = metrics.f1_score(true, predicted, average="macro", zero_division=0)
  assert 0.5 < expected < 0.95
  assert macro_f1(predictions, 10) == pytest.approx(expected, abs=1e-12)
  images, correct = class_counts(predictions, 10)
  np.testing.assert_array_equal(images, np.bincount(predictions.labels))
  if not unreadable:
    np.testing.assert_allclose(
        correct / images, metrics.recall_score(true, predicted, average=None)
    )
  assert images.sum() == len(predictions.labels)


def test_classes_that_are_nowhere_are_left_out_of_macro_f1():
  """Of 12 classes two are not there, two are only predicted, as scikit-learn takes them."""
  predictions = digit_predictions(without=(3, 8))
  predictions.predicted[:40] = 8
  expected = metrics.f1_score(
      predictions.labels, predictions.predicted, average="macro", zero_division=0
  )
  assert macro_f1(predictions, 12) == pytest.approx(expected, abs=1e-12)


def test_unreadable_images_are_wrong_in_their_class_and_not_in_the_matrix():
  whole = digit_predictions()
  right = int(np.flatnonzero(whole.labels == whole.predicted)[0])
  less = digit_predictions(unreadable=[right])
  label = whole.labels[right]
  assert class_counts(less, 10)[0][label] == class_counts(whole, 10)[0][label]
  assert class_counts(less, 10)[1][label] == class_counts(whole, 10)[1][label] - 1
  assert confusion_matrix(less, 10).sum() == len(whole.labels) - 1


def test_files(tmp_path):
  predictions = digit_predictions(without=(3,))
  names = ["zero", "one, or uno", 'two "2"', *map(str, range(3, 10))]
  write_confusion(tmp_path / "confusion.csv", predictions, names)
  write_per_class(str(tmp_path / "per_class.csv"), predictions, names)
  header, *rows = csv.reader((tmp_path / "confusion.csv").open(newline=""))
  assert header[1:] == names and [row[0] for row in rows] == names
  cells = np.array([row[1:] for row in rows], np.int64)
  np.testing.assert_array_equal(cells, confusion_matrix(predictions, 10))
  rows = list(csv.DictReader((tmp_path / "per_class.csv").open(newline="")))
  assert [row["class"] for row in rows] == names
  assert rows[3] == {"class": "3", "images": "0", "correct": "0", "accuracy": ""}
  images, correct = class_counts(predictions, 10)
  assert float(rows[5]["accuracy"]) == correct[5] / images[5]
  assert sum(int(row["correct"]) for row in rows) == np.trace(cells)


def test_too_many_classes_for_a_matrix():
  with pytest.raises(ConfigError, match="4097 classes"):
    confusion_matrix(digit_predictions(), 4097)
  assert len(class_counts(digit_predictions(), 21_843)[0]) == 21_843


@pytest.mark.parametrize("write", [write_confusion, write_per_class])
def test_a_file_is_the_old_one_or_the_new_one(write, tmp_path):
  file, names = tmp_path / "table.csv", ["\u00f1and\u00fa", *map(str, range(1, 10))]
  file.write_text("the one before")
  with file.open() as reader:
    write(file, digit_predictions(), names)
    assert reader.read() == "the one before"
  assert names[0] in file.read_text(encoding="utf-8")
  assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]

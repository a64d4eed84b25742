"""Nearest neighbours of the digits, by scikit-learn and float64 NumPy."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from digit_features import digit_splits, readable_rows
from vit_jax.evaluators import knn as knn_lib
from vit_jax.evaluators.features import Features
from vit_jax.evaluators.knn import knn


def judged(train, test, k):
  """scikit-learn's predictions, with DINO's weights of cosine distances."""
  judge = KNeighborsClassifier(
      n_neighbors=k, metric="cosine", algorithm="brute",
      weights=lambda distances: np.exp((1 - distances) / 0.07),
  )
  return judge.fit(*readable_rows(train)).predict(readable_rows(test)[0])


@pytest.mark.parametrize("unreadable", [(), (5, 17, 400)], ids=["all", "some unreadable"])
def test_as_scikit_learn(unreadable):
  train, test = digit_splits(unreadable=unreadable)
  got = knn(train, test)
  for k in (10, 20):
    predicted = judged(train, test, k)
    assert got[f"knn_{k}"] == np.sum(predicted == test.labels[test.readable]) / 497
  assert 0.9 < got["knn_20"] < got["knn_10"] < 1


def test_chunks_change_nothing(monkeypatch):
  """Every neighbour, with chunks that do not divide the rows."""
  train, test = digit_splits()
  similarities, nearest = knn_lib._neighbours(train.values, test.values)
  monkeypatch.setattr(knn_lib, "TEST_ROWS", 130)
  monkeypatch.setattr(knn_lib, "TRAIN_ROWS", 17)
  chunked = knn_lib._neighbours(train.values, test.values)
  exact = cosines(test, train)
  greatest = np.sort(exact, axis=1)[:, ::-1][:, :20]
  for found, where in ((similarities, nearest), chunked):
    # What rounds to the same float32 may change places.
    np.testing.assert_allclose(found, greatest, atol=5e-7)
    np.testing.assert_allclose(np.take_along_axis(exact, where, 1), greatest, atol=5e-7)
  assert np.mean(chunked[1] == nearest) > 0.999


def cosines(test, train):
  unit = [
      rows / np.linalg.norm(rows, axis=1, keepdims=True)
      for rows in (features.values.astype(np.float64) for features in (test, train))
  ]
  return unit[0] @ unit[1].T


def test_weights_and_not_numbers_decide():
  """One very near neighbour outweighs nineteen far ones of another class."""
  angles = np.array([0.1, *[1.0] * 19])
  train = Features(
      np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32),
      np.array([3, *[1] * 19], np.int32), np.ones(20, bool),
  )
  test = Features(
      np.array([[1, 0]], np.float32), np.array([3], np.int32), np.ones(1, bool)
  )
  assert np.exp((np.cos(0.1) - np.cos(1.0)) / 0.07) > 19
  assert knn(train, test) == {"knn_10": 1.0, "knn_20": 1.0}


@pytest.mark.parametrize("train_rows", [3, 64])
def test_ties(monkeypatch, train_rows):
  """Equal examples: the earlier are nearer; equal votes: the lower class wins."""
  monkeypatch.setattr(knn_lib, "TRAIN_ROWS", train_rows)
  same = lambda labels: Features(
      np.ones((len(labels), 2), np.float32), np.array(labels, np.int32),
      np.ones(len(labels), bool),
  )
  first = same([7] * 10 + [2] * 30)  # ten of each among twenty
  assert knn(first, same([7])) == {"knn_10": 1.0, "knn_20": 0.0}
  assert knn(first, same([2])) == {"knn_10": 0.0, "knn_20": 1.0}


def test_fewer_than_k_all_vote():
  train, test = digit_splits()
  few = Features(train.values[:7], train.labels[:7], train.readable[:7])
  got = knn(few, test)
  assert got["knn_10"] == got["knn_20"] == np.mean(judged(few, test, 7) == test.labels)

"""Logistic regression on the digits, by scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from digit_features import CLASSES, digit_splits, readable_rows
from vit_jax.evaluators import linear_probe as linear_probe_lib
from vit_jax.evaluators.linear_probe import Probe, linear_probe


def judge(train, tests, l2, kept=slice(None)):
  """Loss on what was fitted, and predictions, of scikit-learn's LogisticRegression."""
  values, labels = readable_rows(train)
  scaler = StandardScaler().fit(values)
  values, labels, tests = scaler.transform(values)[kept], labels[kept], scaler.transform(tests)
  model = LogisticRegression(C=1 / (l2 * len(labels)), max_iter=5000, tol=1e-6)
  model.fit(values, labels)
  return log_loss(labels, model.predict_proba(values)), model.predict(tests)


@pytest.mark.parametrize("l2, rows", [(1e-1, 8192), (1e-2, 500), (1e-3, 8192), (1e-4, 500)])
def test_as_scikit_learn_at_equal_strength(monkeypatch, l2, rows):
  monkeypatch.setattr(linear_probe_lib, "_ROWS", rows)
  train, test = digit_splits()
  probe = Probe(*train.rows(), classes=CLASSES)
  solution = probe.fit(l2)
  loss, predicted = judge(train, readable_rows(test)[0], l2)
  assert solution.loss == pytest.approx(loss, abs=1e-4)
  assert np.mean(probe.predict(test.values, solution) == predicted) >= 0.995
  assert solution.iterations < 300


def test_what_is_left_out_is_not_seen():
  train, test = digit_splits()
  kept = np.arange(1300) % 3 > 0
  probe = Probe(*train.rows(), classes=CLASSES)
  solution = probe.fit(1e-2, kept=kept)
  loss, predicted = judge(train, readable_rows(test)[0], 1e-2, kept)
  assert solution.loss == pytest.approx(loss, abs=1e-4)
  assert np.mean(probe.predict(test.values, solution) == predicted) >= 0.995
  again = probe.fit(1e-2, kept=kept, start=solution)
  assert again.iterations <= solution.iterations / 10


def test_the_whole_measure(monkeypatch):
  """The strength is the best on the held-out tenth, and all training images are fitted with it."""
  sweep = (1e-1, 1e-3)
  monkeypatch.setattr(linear_probe_lib, "L2S", sweep)
  train, test = digit_splits(unreadable=[0, 1, 2])
  got = linear_probe(train, test, classes=CLASSES)
  values, labels = readable_rows(train)
  held_out = np.random.default_rng(0).permutation(len(labels))[: len(labels) // 10]
  kept = np.setdiff1d(np.arange(len(labels)), held_out)
  right = {
      l2: np.sum(judge(train, values[held_out], l2, kept)[1] == labels[held_out]) for l2 in sweep
  }
  assert right[1e-1] < max(right.values()) - 1
  # A prediction on the border may differ.
  assert right[got["linear_probe_l2"]] >= max(right.values()) - 1
  loss, predicted = judge(train, readable_rows(test)[0], got["linear_probe_l2"])
  assert got["linear_probe_loss"] == pytest.approx(loss, abs=1e-4)
  expected = np.sum(predicted == test.labels[test.readable]) / 497
  assert got["linear_probe"] == pytest.approx(expected, abs=0.005) and expected < 0.95

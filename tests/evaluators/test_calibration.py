"""The reliability table by scikit-learn, its error by a plain loop in float64."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from digit_features import digits
from vit_jax.evaluators.calibration import calibration_error, reliability
from vit_jax.evaluators.predictions import Predictions


@pytest.fixture(scope="module")
def predictions():
  """A classifier of noisy digits, a few of them unreadable."""
  values, labels = digits()
  values = values + 6 * np.random.default_rng(0).standard_normal(values.shape)
  model = LogisticRegression(max_iter=1000).fit(values[:400] / 16, labels[:400])
  probabilities = model.predict_proba(values / 16)
  readable = np.ones(len(labels), bool)
  readable[[1, 700]] = False
  return Predictions(
      labels, probabilities.argmax(axis=1).astype(np.int32),
      probabilities.max(axis=1).astype(np.float32), readable,
  )


def test_table_as_scikit_learn(predictions):
  table = reliability(predictions)
  correct = (predictions.labels == predictions.predicted)[predictions.readable]
  confidence = predictions.confidence[predictions.readable].astype(np.float64)
  accuracies, confidences = calibration_curve(correct, confidence, n_bins=15)
  filled = [row for row in table if row["images"]]
  assert 8 < len(filled) < len(table) == 15
  np.testing.assert_allclose([row["accuracy"] for row in filled], accuracies, rtol=1e-12)
  np.testing.assert_allclose([row["confidence"] for row in filled], confidences, rtol=1e-12)
  assert sum(row["images"] for row in table) == predictions.readable.sum()


def test_error_by_a_loop(predictions):
  correct = (predictions.labels == predictions.predicted)[predictions.readable]
  confidence = predictions.confidence[predictions.readable].astype(np.float64)
  error = 0.0
  for m in range(15):
    inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
    if inside.any():
      error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
  assert error > 0.01
  assert calibration_error(reliability(predictions)) == pytest.approx(error, abs=1e-12)


def test_edges_belong_to_the_lower_bin_and_certainty_to_the_last():
  rows, edge = np.zeros(3, np.int32), np.linspace(0, 1, 16)[3]
  table = reliability(Predictions(rows, rows, np.array([0, edge, 1]), np.ones(3, bool)))
  assert [m for m, row in enumerate(table) if row["images"]] == [0, 2, 14]
  assert calibration_error(table) == pytest.approx((1 + 0.8 + 0) / 3)

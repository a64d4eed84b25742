"""Least squares on a few frozen features of each class (big_vision's evaluators/fewshot_lsr.py).

As there: features are standardised by the chosen examples, a constant 100 is appended, targets are
+1 for the class and -1 for the others, the greatest answer is the prediction; seeds 0, 1, 2.

Unlike there the strength of the ridge is not only the fixed 2^10: another is chosen from a sweep,
on training features that the regression does not see, so that the test labels choose nothing.
"""

import numpy as np
import scipy.linalg

from vit_jax.evaluators.features import Features

SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2S = 2.0 ** np.arange(-10, 20)
BIG_VISION_L2 = 2.0**10
_BIAS = 100.0  # so large that the ridge hardly holds it back
_HELD_OUT = 10_000  # at most so many images, as each is answered with every ridge
_ROWS = 4096


def few_shot(train: Features, test: Features, *, classes: int) -> dict[str, float]:
  """Measures features by regression on 1, 5, 10 and 25 examples of each class.

  Returns:
    For each number of shots S, means over the seeds of the test accuracy in 0..1:
    "few_shot_S_big_vision" with the ridge 2^10, and "few_shot_S" with the ridge "few_shot_S_l2",
    the same for all seeds, which is best on the held-out training features; among equals the
    strongest.  Where all classes are too small to hold out any, that too is 2^10.
  """
  values, labels = train.rows()
  results = {}
  for shots in SHOTS:
    regressions, right = [], np.zeros(len(L2S), np.int64)
    for seed in SEEDS:
      chosen, held_out = choose(labels, shots=shots, seed=seed, classes=classes)
      regressions.append(Regression(values[chosen], labels[chosen], classes=classes))
      predicted = regressions[-1].predict(values[held_out], L2S)
      right += np.sum(predicted == labels[held_out], axis=1)
    # Nothing held out leaves all at 0.
    best = np.flatnonzero(right == right.max())[-1]
    l2 = float(L2S[best]) if right.max() else BIG_VISION_L2
    accuracies = [
        [test.accuracy(rows) for rows in regression.predict(test.rows()[0], (l2, BIG_VISION_L2))]
        for regression in regressions
    ]
    own, big_vision = np.mean(accuracies, axis=0).tolist()
    results |= {
        f"few_shot_{shots}": own, f"few_shot_{shots}_l2": l2,
        f"few_shot_{shots}_big_vision": big_vision,
    }
  return results


def choose(
    labels: np.ndarray, *, shots: int, seed: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Chooses examples of each class, a pure function of the arguments.

  The first of each class's seeded permutation are the shots, which are those of big_vision; the
  last fifth, as far as it lies behind them, is held out (of at most `_HELD_OUT` in all).

  Args:
    labels: int `[N]`.
    shots: examples of each class; all where it has less.

  Returns:
    Rows of the shots and held-out rows, int `[M]` and `[H]`.
  """
  rng = np.random.default_rng(seed)
  chosen, held_out = [], []
  for label in range(classes):
    rows = rng.permutation(np.flatnonzero(labels == label))
    fifth = min(len(rows) // 5, max(1, _HELD_OUT // classes))
    chosen.append(rows[:shots])
    held_out.append(rows[max(shots, len(rows) - fifth) :])
  return np.concatenate(chosen), np.concatenate(held_out)


class Regression:
  """Ridge regression to one-hot targets, in float64, for any strength of the ridge.

  Of X^T X = Q diag(e) Q^T the weights are Q diag(1 / (e + l2)) Q^T X^T Y.  The standardised
  features have mean 0, so that the constant stands at right angles to them and is solved alone.
  """

  def __init__(self, values, labels, *, classes: int):
    """Prepares it for features `[M, D]` and labels int `[M]`."""
    values = np.asarray(values, np.float64)
    self._mean = values.mean(axis=0)
    # A feature that never varies has weight 0, which infinity keeps from being only nearly so:
    # elsewhere the feature may lie 10^5 deviations away.
    self._std = np.where(np.ptp(values, axis=0) > 0, values.std(axis=0) + 1e-5, np.inf)
    targets = 2.0 * (labels[:, None] == np.arange(classes)) - 1.0
    x = self._standardised(values)
    self._eigenvalues, self._q = scipy.linalg.eigh(x.T @ x)
    self._targets = self._q.T @ (x.T @ targets)
    self._constant = _BIAS**2 * len(x), _BIAS * targets.sum(axis=0)

  def weights(self, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns those of the standardised features `[D, classes]` and of the constant `[classes]`,
    minimising |X W - Y|^2 + l2 |W|^2."""
    eigenvalue, target = self._constant
    return self._q @ self._solved(l2), target / (eigenvalue + l2)

  def predict(self, values, l2s) -> np.ndarray:
    """Returns classes int `[L, M]` of features `[M, D]` with each of L ridges."""
    predicted = np.empty((len(l2s), len(values)), np.int64)
    eigenvalue, target = self._constant
    for start in range(0, len(values), _ROWS):
      part = slice(start, start + _ROWS)
      projected = self._standardised(values[part]) @ self._q
      for i, l2 in enumerate(l2s):
        answers = projected @ self._solved(l2) + _BIAS * target / (eigenvalue + l2)
        predicted[i, part] = np.argmax(answers, axis=1)
    return predicted

  def _solved(self, l2):
    return self._targets / (self._eigenvalues[:, None] + l2)

  def _standardised(self, values):
    return (values - self._mean) / self._std

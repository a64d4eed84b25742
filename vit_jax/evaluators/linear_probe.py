"""Multinomial logistic regression on frozen features, by full-batch L-BFGS.

Features are standardised by the training features, as the affine-free batch norm before the
linear probe of MAE does (arXiv 2111.06377, appendix A.1).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from vit_jax.evaluators.features import Features

# Strengths, from which the held-out features choose; each solution starts the next one's search.
L2S = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_ITERATIONS = 1000
_ROWS = 8192  # whose logits are on the device at once


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
  """A linear classifier of standardised features.

  Attributes:
    weights: float64 `[D + 1, classes]`; the last row is the bias.
    loss: mean cross-entropy in nats, without the penalty.
    iterations: of L-BFGS.
  """

  weights: np.ndarray
  loss: float
  iterations: int


def linear_probe(train: Features, test: Features, *, classes: int, seed: int = 0) -> dict:
  """Measures features by the best linear classifier of them.

  A tenth of the training features, a pure function of the seed, chooses the strength of the
  penalty, of equals the greatest; with it all training features are fitted.

  Returns:
    {"linear_probe": accuracy in 0..1 on the test features, "linear_probe_l2": the strength,
    "linear_probe_loss": of the training features, "linear_probe_iterations"}; 1000 iterations
    mean that it did not converge.
  """
  values, labels = train.rows()
  probe = Probe(values, labels, classes=classes)
  held_out = np.random.default_rng(seed).permutation(len(labels))[: len(labels) // 10]
  kept = np.ones(len(labels), bool)
  kept[held_out] = False
  best, solution = None, None
  for strength in L2S:
    solution = probe.fit(strength, kept=kept, start=solution)
    right = np.sum(probe.predict(values[held_out], solution) == labels[held_out])
    if best is None or right > best:
      best, l2, start = right, strength, solution
  solution = probe.fit(l2, start=start)
  return {
      "linear_probe": test.accuracy(probe.predict(test.rows()[0], solution)),
      "linear_probe_l2": l2,
      "linear_probe_loss": solution.loss,
      "linear_probe_iterations": solution.iterations,
  }


class Probe:
  """The training features, on one device, and the regression on any part of them."""

  def __init__(self, values: np.ndarray, labels: np.ndarray, *, classes: int):
    """Takes features float32 `[N, D]` and labels int `[N]`; features that never vary count 0."""
    self._count, self._classes = len(values), classes
    self._mean, deviation = _moments(values)
    self._scale = (1 / np.where(deviation > 0, deviation, np.inf)).astype(np.float32)
    self._values, self._labels = _parts(values), _parts(labels)

  def fit(self, l2: float, *, kept=None, start: Solution | None = None) -> Solution:
    """Minimises the mean cross-entropy + l2 / 2 |weights|^2, the bias being free.

    scikit-learn's `LogisticRegression(C=1 / (l2 N))`.  Loss and gradient are float32 on the
    device, with products in full precision; the search is float64.

    Args:
      kept: bool `[N]`, which examples count; all where it is None.
      start: where the search begins; at zero where it is None.
    """
    kept = np.ones(self._count, np.float32) if kept is None else kept.astype(np.float32)
    counted, count = _parts(kept), float(kept.sum())
    shape = (self._values.shape[-1] + 1, self._classes)

    def mean_loss(weights):
      losses, gradient = jax.device_get(_loss_and_gradient(
          weights.astype(np.float32), self._values, self._labels, counted, self._mean, self._scale
      ))
      # The parts are added in float64, so that the search sees small decreases.
      return losses.sum(dtype=np.float64) / count, gradient.astype(np.float64) / count

    def objective(flat):
      weights = flat.reshape(shape)
      loss, gradient = mean_loss(weights)
      gradient[:-1] += l2 * weights[:-1]
      return loss + l2 / 2 * np.sum(weights[:-1] ** 2), gradient.ravel()

    found = scipy.optimize.minimize(
        objective, np.zeros(np.prod(shape)) if start is None else start.weights.ravel(),
        jac=True, method="L-BFGS-B",
        options={"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "ftol": 1e-9, "gtol": 1e-6},
    )
    weights = found.x.reshape(shape)
    return Solution(weights, float(mean_loss(weights)[0]), int(found.nit))

  def predict(self, values: np.ndarray, solution: Solution) -> np.ndarray:
    """Returns classes int `[M]` of features `[M, D]`."""
    weights = solution.weights.astype(np.float32)
    parts = [
        _predict(weights, values[i : i + _ROWS], self._mean, self._scale)
        for i in range(0, len(values), _ROWS)
    ]
    return np.concatenate([np.zeros(0, np.int32), *map(np.asarray, parts)])


def _parts(rows: np.ndarray):
  """Host `[N, ...]` to device `[parts, at most _ROWS, ...]`, padded with zeros."""
  length = min(_ROWS, len(rows))
  count = -(-len(rows) // length)
  if count * length > len(rows):
    padded = np.zeros((count * length, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    rows = padded
  return jax.device_put(rows.reshape(count, length, *rows.shape[1:]))


def _moments(values) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation float32 `[D]`, summed in float64 a few rows at a time."""
  sums = lambda of: sum(
      of(values[i : i + _ROWS].astype(np.float64)).sum(axis=0)
      for i in range(0, len(values), _ROWS)
  )
  mean = sums(lambda rows: rows) / len(values)
  deviation = np.sqrt(sums(lambda rows: (rows - mean) ** 2) / len(values))
  return mean.astype(np.float32), deviation.astype(np.float32)


def _logits(weights, values, mean, scale):
  product = jnp.matmul((values - mean) * scale, weights[:-1], precision="highest")
  return product + weights[-1]


@jax.jit
def _predict(weights, values, mean, scale):
  return jnp.argmax(_logits(weights, values, mean, scale), axis=1).astype(jnp.int32)


@jax.jit
def _loss_and_gradient(weights, values, labels, counted, mean, scale):
  """Sums of the cross-entropy for each part `[parts]`, and their gradient `[D + 1, classes]`.

  Args:
    weights: float32 `[D + 1, classes]`.
    values: float32 `[parts, rows, D]`; labels and counted (1, or 0 to leave out): `[parts, rows]`.
  """

  def part_loss(weights, values, labels, counted):
    log_probabilities = jax.nn.log_softmax(_logits(weights, values, mean, scale))
    own = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    return -jnp.sum(own * counted)

  def add(gradient, part):
    loss, more = jax.value_and_grad(part_loss)(weights, *part)
    return gradient + more, loss

  gradient, losses = jax.lax.scan(add, jnp.zeros_like(weights), (values, labels, counted))
  return losses, gradient

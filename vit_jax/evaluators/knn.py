"""Weighted nearest neighbours on frozen features (DINO, arXiv 2104.14294, appendix F.1)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.evaluators.features import Features

NEIGHBOURS = (10, 20)
TEMPERATURE = 0.07
# Rows of one product: its 256 MiB bound what the device holds beside the test features.
TEST_ROWS, TRAIN_ROWS = 4096, 16384


def knn(train: Features, test: Features) -> dict[str, float]:
  """Returns {"knn_10", "knn_20"}: accuracy in 0..1 on the test features.

  The k training features of greatest cosine similarity s vote for their class, each with weight
  exp(s / 0.07).  None is approximated but by float32's rounding; of equal similarities the earlier
  training example is the nearer, of equal votes the lower class wins.  Where there are less than
  k, all vote.
  """
  values, labels = train.rows()
  similarities, nearest = _neighbours(values, test.rows()[0])
  return {
      f"knn_{k}": test.accuracy(_vote(similarities[:, :k], labels[nearest[:, :k]]))
      for k in NEIGHBOURS
  }


def _neighbours(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Cosine similarities float32 and training rows int32 of the nearest, both `[M, K]`, the
  nearest first; K is the greatest of `NEIGHBOURS`, or the number of training rows."""
  count = min(max(NEIGHBOURS), len(train))
  tests = [_normalised(test[i : i + TEST_ROWS]) for i in range(0, len(test), TEST_ROWS)]
  # Rows of similarity -inf, which every training row replaces.
  best = [
      (jnp.full((len(rows), count), -jnp.inf), jnp.zeros((len(rows), count), jnp.int32))
      for rows in tests
  ]
  for start in range(0, len(train), TRAIN_ROWS):
    part = _normalised(train[start : start + TRAIN_ROWS])
    best = [_nearer(found, rows, part, start) for found, rows in zip(best, tests)]
    jax.block_until_ready(best)  # else all parts would be sent at once
  best = jax.device_get(best)
  return tuple(np.concatenate(columns) for columns in zip(*best))


@jax.jit
def _normalised(rows):
  """Rows of length 1 (torch's `normalize`); zeros stay zeros."""
  return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


@functools.partial(jax.jit, donate_argnums=0)
def _nearer(found, tests, part, start):
  """The nearest among those found and a further part of the training rows, which begins at row
  `start`.  Earlier rows come first and `top_k` prefers the first, so ties are theirs."""
  products = jnp.matmul(tests, part.T, precision=jax.lax.Precision.HIGHEST)
  index = jnp.broadcast_to(start + jnp.arange(len(part)), products.shape)
  similarities = jnp.concatenate([found[0], products], axis=1)
  index = jnp.concatenate([found[1], index], axis=1)
  similarities, where = jax.lax.top_k(similarities, found[0].shape[1])
  return similarities, jnp.take_along_axis(index, where, axis=1)


def _vote(similarities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Class int `[M]` of the greatest weight among neighbours `[M, k]`."""
  weights = np.exp(similarities.astype(np.float64) / TEMPERATURE)
  same = labels[:, :, None] == labels[:, None, :]
  votes = np.einsum("mj,mij->mi", weights, same)  # for the class of neighbour i
  winners = votes == votes.max(axis=1, keepdims=True)
  return np.min(labels, axis=1, initial=np.iinfo(labels.dtype).max, where=winners)

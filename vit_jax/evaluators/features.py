"""A model's features of each example of a split; k-NN, few-shot and linear probe measure them."""

import dataclasses
from typing import Callable

import jax.numpy as jnp
import numpy as np

from vit_jax.errors import ConfigError, DataError, NonFiniteError
from vit_jax.evaluators.gather import Gather


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """Of N examples, in the order of the split.

  Attributes:
    values: float32 `[N, D]`.
    labels: int32 `[N]`, -1 where an example has none.
    readable: bool `[N]`; the other rows of `values` mean nothing.
  """

  values: np.ndarray
  labels: np.ndarray
  readable: np.ndarray

  def rows(self) -> tuple[np.ndarray, np.ndarray]:
    """Values `[M, D]` and labels `[M]` of the M readable examples; no copy where all are."""
    if self.readable.all():
      return self.values, self.labels
    return self.values[self.readable], self.labels[self.readable]

  def accuracy(self, predicted) -> float:
    """Share in 0..1 of the labelled examples that are right, unreadable ones being wrong.

    Args:
      predicted: int `[M]`, a class for each row of `rows()`.
    """
    right = np.sum(predicted == self.labels[self.readable])
    return float(right / max(1, np.sum(self.labels >= 0)))


class FeatureExtractor:
  """Computes features of a split."""

  def __init__(self, *, features: Callable, batches: Callable, examples: int, out_sharding):
    """Prepares an extraction.

    Args:
      features: function of (params, prepared batch) to `[B, D]` of any float dtype.
      batches, examples, out_sharding: as of `gather.Gather`.
    """

    def values(params, batch):
      rows = features(params, batch)
      if rows.ndim != 2:
        raise ConfigError(
            f"the model's features of a batch have shape {rows.shape}, not [B, D]: choose a "
            "pooling of the tokens (cls, gap or map)"
        )
      return {"values": rows.astype(jnp.float32)}

    self._gather = Gather(
        function=values, batches=batches, examples=examples, out_sharding=out_sharding
    )

  def run(self, params) -> Features:
    """Returns the features on the host of every process.

    Raises:
      ConfigError: features that are not `[B, D]`, or examples with several labels.
      DataError: no example is readable and has a label.
      NonFiniteError: a readable example's features are.
    """
    features = Features(**self._gather.run(params))
    if not features.readable.any():
      raise DataError("no image of the split can be read and has a label: nothing can be measured")
    # A row's sum is finite where the row is, unless the sum itself overflows, which is as bad.
    if not np.isfinite(features.rows()[0].sum(axis=1)).all():
      raise NonFiniteError("the model's features are infinite or NaN: its parameters are too")
    return features

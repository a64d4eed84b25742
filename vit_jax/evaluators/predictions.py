"""A classifier's answer for each example of a split; `confusion` and `calibration` measure it."""

import dataclasses
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.evaluators.gather import Gather


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """Of N examples, in the order of the split.

  Attributes:
    labels: int32 `[N]`, -1 where an example has none.
    predicted: int32 `[N]`, the class of the greatest logit, of equal ones the lowest.
    confidence: float32 `[N]`, in 0..1, the probability of that class by softmax or sigmoid.
    readable: bool `[N]`; the other rows of `predicted` and `confidence` mean nothing.
  """

  labels: np.ndarray
  predicted: np.ndarray
  confidence: np.ndarray
  readable: np.ndarray


class PredictionCollector:
  """Collects the predictions of a model on a split."""

  def __init__(
      self, *, logits: Callable, batches: Callable, examples: int, out_sharding,
      loss_name: str = "softmax",
  ):
    """Args and errors as of `classification.Classification` and `gather.Gather`.

    A head of sigmoids is as confident as its largest sigmoid says.
    """

    probabilities = jax.nn.sigmoid if loss_name == "sigmoid" else jax.nn.softmax

    def answer(params, batch):
      scores = logits(params, batch).astype(jnp.float32)
      return {
          "predicted": jnp.argmax(scores, axis=-1).astype(jnp.int32),
          "confidence": jnp.max(probabilities(scores), axis=-1),
      }

    self._gather = Gather(
        function=answer, batches=batches, examples=examples, out_sharding=out_sharding
    )

  def run(self, params) -> Predictions:
    return Predictions(**self._gather.run(params))

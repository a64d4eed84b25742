"""Classification with softmax cross-entropy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Supervised:
  """Softmax cross-entropy of a model's logits with target probabilities.

  Attributes:
    model: a Linen module from images `[B, S, S, 3]` to logits `[B, classes]`.
  """

  model: Any

  def init(self, key, batch):
    """Returns float32 parameters and an empty state; `batch["image"]` gives the shape."""
    return self.model.init(key, batch["image"][:1])["params"], {}

  def loss(self, params, state, batch, key, step, train: bool):
    """Sums the loss over the batch.

    Args:
      batch: image float32 `[B, S, S, 3]` normalised, target float32 `[B, classes]` (rows sum to
        1), mask float32 `[B]`.
      key: PRNG key of dropout and stochastic depth.

    Returns:
      loss_sum, the sum of masked cross-entropies in nats; weight, the sum of the mask; metrics;
      state unchanged.
    """
    del step
    logits = self.model.apply({"params": params}, batch["image"], train=train, key=key)
    losses = -jnp.sum(batch["target"] * jax.nn.log_softmax(logits), axis=-1)
    correct = jnp.argmax(logits, -1) == jnp.argmax(batch["target"], -1)
    loss_sum, weight = jnp.sum(losses * batch["mask"]), jnp.sum(batch["mask"])
    return loss_sum, weight, {"accuracy": (jnp.sum(correct * batch["mask"]), weight)}, state

"""Classification with softmax or sigmoid cross-entropy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

LOSSES = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class Supervised:
  """Cross-entropy of a model's logits with targets.

  "softmax": of the probabilities of one class among all, -sum_c t_c log softmax(z)_c, where
  several labels share the target evenly.
  "sigmoid": of each class's own question, summed over the classes (big_vision's for
  ImageNet-21k), -sum_c t_c log sigmoid(z_c) + (1 - t_c) log sigmoid(-z_c).  The BCE of timm and
  DeiT III is its mean: this divided by the number of classes.

  Attributes:
    model: a Linen module from images `[B, S, S, 3]` to logits `[B, classes]`.
    loss_name: one of `LOSSES`.
    head_bias: initial bias of each head; -10 makes the sigmoid of 21 843 classes start near 0.
    class_weights: one float per class, by which its term is multiplied; None for 1.  Softmax's
      mean is over the weights of the targets, as torch's `cross_entropy`.

  Raises:
    ValueError: from the constructor, unknown name.
  """

  model: Any
  loss_name: str = "softmax"
  head_bias: float = 0.0
  class_weights: tuple[float, ...] | None = None

  def __post_init__(self):
    if self.loss_name not in LOSSES:
      raise ValueError(f"unknown loss {self.loss_name!r}; choose one of {LOSSES}")

  def init(self, key, batch):
    """Returns float32 parameters and an empty state; `batch["image"]` gives the shape."""
    params = self.model.init(key, batch["image"][:1])["params"]
    for name in ("head", "distillation_head"):
      if self.head_bias and name in params:
        bias = jnp.full_like(params[name]["bias"], self.head_bias)
        params = params | {name: params[name] | {"bias": bias}}
    return params, {}

  def loss(self, params, state, batch, key, step, train: bool):
    """Sums the loss over the batch.

    Args:
      batch: image float32 `[B, S, S, 3]` normalised, target float32 `[B, classes]` (rows sum to
        1, or hold a 1 for each of several labels), mask float32 `[B]`.
      key: PRNG key of dropout and stochastic depth.

    Returns:
      loss_sum, the sum of masked cross-entropies in nats; weight, the sum of the mask (times the
      targets' class weights in softmax); metrics; state unchanged.
    """
    del step
    logits = self.model.apply({"params": params}, batch["image"], train=train, key=key)
    target, mask = batch["target"], batch["mask"]
    losses, weights = self._losses(logits, target)
    best = jnp.take_along_axis(target, jnp.argmax(logits, -1)[:, None], axis=-1)[:, 0]
    correct = best == jnp.max(target, -1)
    metrics = {"accuracy": (jnp.sum(correct * mask), jnp.sum(mask))}
    return jnp.sum(losses * mask), jnp.sum(weights * mask), metrics, state

  def _losses(self, logits, target):
    """Loss and weight of each example, `[B]` both."""
    ones = jnp.ones(len(target), target.dtype)
    if self.loss_name == "sigmoid":
      terms = target * jax.nn.log_sigmoid(logits) + (1 - target) * jax.nn.log_sigmoid(-logits)
    else:
      target = target / jnp.maximum(1.0, jnp.sum(target, axis=-1, keepdims=True))
      terms = target * jax.nn.log_softmax(logits)
    if self.class_weights is None:
      return -jnp.sum(terms, axis=-1), ones
    class_weights = jnp.asarray(self.class_weights, jnp.float32)
    if self.loss_name == "softmax":
      ones = jnp.sum(target * class_weights, axis=-1)
    return -jnp.sum(terms * class_weights, axis=-1), ones

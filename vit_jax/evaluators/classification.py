"""Top-1 accuracy and cross-entropy, exact over a whole split."""

from typing import Callable

import jax
import jax.numpy as jnp


class Classification:
  """Counts correct predictions over a split.

  The batches cover the split once; pads and unreadable images have mask 0.  Accuracy divides by the
  number of examples in the split, so an unreadable image counts as wrong.  Where an image may have
  several labels, the best prediction is right if it is among them, and examples without any, as
  some of ImageNet-ReaL's, are left out (arXiv 2006.07159, section 3).
  """

  def __init__(self, *, name: str, logits: Callable, batches: Callable, examples: int, out_sharding):
    """Prepares an evaluation.

    Args:
      name: of the split; metrics are called `eval/<name>/...`.
      logits: function of (params, prepared batch) to float `[B, classes]`.
      batches: function of no arguments to an iterator of device batches (image, label, mask, and
        labels int `[B, K]` padded with -1 where there are several).
      examples: length of the split.
      out_sharding: replicated over the mesh, so that every process reads the counts.
    """
    self.name, self._batches, self._examples = name, batches, examples

    def count(params, batch):
      scores, labels = logits(params, batch), batch.get("labels", batch["label"][:, None])
      # Of several labels the loss takes the mean, as if each were the only one.
      losses = -jnp.take_along_axis(jax.nn.log_softmax(scores), labels, axis=1)
      counts = jnp.sum(labels >= 0, axis=1)
      loss = jnp.sum(jnp.where(labels >= 0, losses, 0.0), axis=1) / jnp.maximum(counts, 1)
      correct = jnp.any(jnp.argmax(scores, -1)[:, None] == labels, axis=1)
      # Masked by selection: a pad's garbage must not leak in as 0 x NaN.
      real = batch["mask"] > 0
      return (
          jnp.sum(jnp.where(real, correct, False)),
          jnp.sum(jnp.where(real, loss, 0.0)),
          jnp.sum(real),
          jnp.sum(counts == 0),
      )

    self._count = jax.jit(count, out_shardings=out_sharding)

  def run(self, params) -> dict[str, float]:
    """Returns accuracy in 0..1, mean loss in nats over readable images, and counts."""
    counts = []
    for batch in self._batches():
      counts.append(self._count(params, batch))
      if len(counts) > 2:  # no more than this many batches wait on the device
        jax.block_until_ready(counts[-3])
    columns = zip(*jax.device_get(counts))
    correct, loss, readable, unlabeled = (
        sum(value.item() for value in column) for column in columns
    )
    examples = self._examples - unlabeled
    return {
        "accuracy": correct / max(1, examples),
        "loss": loss / max(1, readable),
        "examples": examples,
        "unreadable": examples - readable,
    }

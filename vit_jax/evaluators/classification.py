"""Top-1 accuracy and cross-entropy, exact over a whole split."""

from typing import Callable

import jax
import jax.numpy as jnp


class Classification:
  """Counts correct predictions over a split.

  The batches cover the split once; pads and unreadable images have mask 0.  Accuracy divides by the
  number of examples in the split, so an unreadable image counts as wrong.
  """

  def __init__(self, *, name: str, logits: Callable, batches: Callable, examples: int, out_sharding):
    """Prepares an evaluation.

    Args:
      name: of the split; metrics are called `eval/<name>/...`.
      logits: function of (params, prepared batch) to float `[B, classes]`.
      batches: function of no arguments to an iterator of device batches (image, label, mask).
      examples: length of the split.
      out_sharding: replicated over the mesh, so that every process reads the counts.
    """
    self.name, self._batches, self._examples = name, batches, examples

    def count(params, batch):
      scores, label = logits(params, batch), batch["label"]
      loss = -jnp.take_along_axis(jax.nn.log_softmax(scores), label[:, None], axis=1)[:, 0]
      correct = jnp.argmax(scores, -1) == label
      # Masked by selection: a pad's garbage must not leak in as 0 x NaN.
      real = batch["mask"] > 0
      return (
          jnp.sum(jnp.where(real, correct, False)),
          jnp.sum(jnp.where(real, loss, 0.0)),
          jnp.sum(real),
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
    correct, loss, readable = (sum(value.item() for value in column) for column in columns)
    return {
        "accuracy": correct / self._examples,
        "loss": loss / max(1, readable),
        "examples": self._examples,
        "unreadable": self._examples - readable,
    }

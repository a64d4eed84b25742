"""Top-1 and top-5 accuracy and cross-entropy, exact over a whole split."""

from typing import Callable

import jax
import jax.numpy as jnp


class Classification:
  """Counts correct predictions over a split.

  The batches cover the split once; pads and unreadable images have mask 0.  Accuracy divides by the
  number of examples in the split, so an unreadable image counts as wrong.  Where an image may have
  several labels, the best prediction is right if it is among them, and examples without any, as
  some of ImageNet-ReaL's, are left out (arXiv 2006.07159, section 3).  Likewise the best five, if
  one of them is.  Of equal scores the class with the lower index comes first.  A sigmoid keeps the
  order of the scores, so that the accuracy is a sigmoid head's precision@1 as well.
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
      ranks = _ranks(scores, labels)
      # Masked by selection: a pad's garbage must not leak in as 0 x NaN.
      real = batch["mask"] > 0
      sums = {
          "correct": jnp.sum(real & jnp.any(ranks < 1, axis=1)),
          "loss": jnp.sum(jnp.where(real, loss, 0.0)),
          "readable": jnp.sum(real),
          "unlabeled": jnp.sum(counts == 0),
      }
      if scores.shape[-1] > 5:
        sums["correct_top5"] = jnp.sum(real & jnp.any(ranks < 5, axis=1))
      return sums

    self._count = jax.jit(count, out_shardings=out_sharding)

  def run(self, params) -> dict[str, float]:
    """Returns accuracies in 0..1 (that of the best five where there are more than five classes),
    the mean loss in nats over readable images, and counts."""
    counts = []
    for batch in self._batches():
      counts.append(self._count(params, batch))
      if len(counts) > 2:  # no more than this many batches wait on the device
        jax.block_until_ready(counts[-3])
    counts = jax.device_get(counts)
    # Added as Python's numbers: a long split neither overflows nor rounds.
    sums = {key: sum(count[key].item() for count in counts) for key in counts[0]}
    examples = self._examples - sums["unlabeled"]
    accuracies = {"accuracy": sums["correct"] / max(1, examples)}
    if "correct_top5" in sums:
      accuracies["accuracy_top5"] = sums["correct_top5"] / max(1, examples)
    return accuracies | {
        "loss": sums["loss"] / max(1, sums["readable"]),
        "examples": examples,
        "unreadable": examples - sums["readable"],
    }


def _ranks(scores, labels):
  """How many classes come before each label: int32 `[B, K]`.

  Counted, because `top_k` would gather a batch that is split over a mesh.  NaN comes before
  anything, and a label that is none, or whose own score is NaN, after everything.

  Args:
    scores: `[B, classes]`.
    labels: int `[B, K]`, -1 for none.
  """
  index = jnp.arange(scores.shape[-1])
  own = jnp.take_along_axis(scores, labels, axis=1)[:, :, None]
  scores, labels = scores[:, None], labels[:, :, None]
  before = ~(scores <= own) | (scores == own) & (index < labels) | (labels < 0)
  return jnp.sum(before, axis=-1, dtype=jnp.int32)

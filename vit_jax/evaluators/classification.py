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

  def __init__(
      self, *, name: str, logits: Callable, batches: Callable, examples: int, out_sharding,
      loss_name: str = "softmax",
  ):
    """Prepares an evaluation.

    Args:
      name: of the split; metrics are called `eval/<name>/...`.
      logits: function of (params, prepared batch) to float `[B, classes]`.
      batches: function of no arguments to an iterator of device batches (image, label, mask, and
        labels int `[B, K]` padded with -1 where there are several).
      examples: length of the split.
      out_sharding: replicated over the mesh, so that every process reads the counts.
      loss_name: "softmax" or "sigmoid", as in `objectives.supervised`, of targets that are neither
        smoothed nor mixed.
    """
    self.name, self._batches, self._examples = name, batches, examples

    def count(params, batch):
      scores, labels = logits(params, batch), batch.get("labels", batch["label"][:, None])
      counts = jnp.sum(labels >= 0, axis=1)
      loss = _losses(scores, labels, counts, loss_name)
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


def _losses(scores, labels, counts, loss_name: str):
  """Cross-entropies in nats, float32 `[B]`; softmax takes the mean over several labels."""

  def of_labels(values):
    return jnp.sum(jnp.where(labels >= 0, jnp.take_along_axis(values, labels, axis=1), 0.0), axis=1)

  if loss_name == "softmax":
    return -of_labels(jax.nn.log_softmax(scores)) / jnp.maximum(counts, 1)
  # log sigmoid(z) = z + log sigmoid(-z).
  return -jnp.sum(jax.nn.log_sigmoid(-scores), axis=1) - of_labels(scores)


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

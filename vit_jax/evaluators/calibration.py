"""Whether a classifier is right as often as it says (arXiv 1706.04599)."""

import numpy as np

from vit_jax.evaluators.predictions import Predictions

BINS = 15


def reliability(predictions: Predictions) -> list[dict]:
  """Returns the reliability table over readable images, a row for each of `BINS` equal widths.

  Returns:
    {"above": low edge, "to": high edge (inclusive), "images", "confidence": their mean,
    "accuracy": share of right ones}; the last two None in an empty bin.
  """
  readable = predictions.readable
  confidence = predictions.confidence[readable].astype(np.float64)
  correct = predictions.predicted[readable] == predictions.labels[readable]
  edges = np.linspace(0, 1, BINS + 1)
  which = np.searchsorted(edges[1:-1], confidence)  # bin m is (m / BINS, (m + 1) / BINS]
  images = np.bincount(which, minlength=BINS)
  sums = np.bincount(which, confidence, BINS), np.bincount(which, correct, BINS)
  return [
      {
          "above": float(edges[m]), "to": float(edges[m + 1]), "images": int(images[m]),
          "confidence": float(sums[0][m] / images[m]) if images[m] else None,
          "accuracy": float(sums[1][m] / images[m]) if images[m] else None,
      }
      for m in range(BINS)
  ]


def calibration_error(table: list[dict]) -> float:
  """Returns the expected calibration error in 0..1 of a reliability table: the mean over images
  of |accuracy - confidence| of their bin (equation 3)."""
  filled = [row for row in table if row["images"]]
  gaps = (row["images"] * abs(row["accuracy"] - row["confidence"]) for row in filled)
  return sum(gaps) / max(1, sum(row["images"] for row in filled))

"""The handwritten digits that scikit-learn brings along: 1 797 real images, no download."""

import hashlib

import numpy as np

from vit_jax.data.hold_out import content_hash, hold_out
from vit_jax.data.source import ArraySource, DataSet

_CLASSES = tuple(map(str, range(10)))


def open_digits(*, held_out: float = 0.2) -> DataSet:
  """Opens the digits as uint8 `[N, 8, 8, 3]` in memory, gray repeated over the channels.

  The set has no splits of its own: "validation" is held out by content hash, stratified.

  Args:
    held_out: share of each class, in [0, 1); with 0 there is only "train".

  Raises:
    ConfigError: held_out is out of range.
  """
  from sklearn.datasets import load_digits  # takes a second, and only this data set needs it

  bunch = load_digits()
  # Values are 0..16: the UCI set counts the ink in blocks of 4x4 pixels.
  gray = np.round(bunch.images * (255 / 16)).astype(np.uint8)
  images = np.repeat(gray[..., None], 3, axis=-1)
  labels = bunch.target.astype(np.int32)
  names = [f"{i:04d}" for i in range(len(labels))]
  hashes = [content_hash(image.tobytes()) for image in gray]
  held = hold_out(hashes, labels.tolist(), names, fraction=held_out)
  splits, notes = {"train": _source("train", images, labels, ~held)}, ()
  if held.any():
    splits["validation"] = _source("validation", images, labels, held)
    notes = (
        f"digits: {100 * held_out:g} % ({held.sum()} images) held out by content hash, "
        "stratified by class",
    )
  digest = hashlib.sha256(images.tobytes() + labels.tobytes() + held.tobytes()).hexdigest()
  return DataSet("digits", _CLASSES, splits, digest, notes)


def _source(split: str, images, labels, chosen) -> ArraySource:
  return ArraySource("digits", split, _CLASSES, images[chosen], labels[chosen])

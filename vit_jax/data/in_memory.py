"""Training batches of a decoded set, gathered whole: thousands of times cheaper than by record.

The position in the stream decides everything: position // N is the epoch, and the epoch's
permutation turns position % N into an example.  Crops and flips hash (seed, epoch, example).
"""

import functools
from typing import Iterator

import cv2
import numpy as np

from vit_jax.data.augment import TrainTransform
from vit_jax.data.preprocess import resize
from vit_jax.data.source import ArraySource

# A set that is larger once resized goes through the pipeline by record.
_MAX_BYTES = 2 * 1024**3


def fits(source: ArraySource, transform: TrainTransform) -> bool:
  """Whether the set can be gathered: resized once, where the transform allows it, it fits."""
  side = transform.image_size + 2 * transform.crop_padding
  plain = transform.crop in ("pad", "none") and not transform.changes_pixels
  return plain and transform.crop_filter != "random" and (
      len(source) * side * side * 3 <= _MAX_BYTES
  )


def gathered_batches(
    source: ArraySource, *, batch_size: int, seed: int, start: int, shard: int, shards: int,
    transform: TrainTransform,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches forever; arguments and result as `pipeline.train_batches`."""
  padding = transform.crop_padding if transform.crop == "pad" else 0
  images = _prepared(source, transform, padding)
  permutation = functools.partial(_permutation, seed, len(source))
  permutation = functools.lru_cache(maxsize=2)(permutation)
  rows = batch_size // shards
  first = start + shard * rows
  while True:
    epochs, examples = _examples(first, rows, len(source), permutation)
    bits = _hash(seed, epochs, examples)
    if padding:
      chosen = _crop(images, examples, bits >> np.uint64(1), padding)
    else:
      chosen = images[examples]
    yield {
        "image": _flip(chosen, bits & np.uint64(1)) if transform.flip else chosen,
        "label": source.labels[examples].astype(np.int32),
        "mask": np.ones(rows, np.float32),
    }
    first += batch_size


def _prepared(source: ArraySource, transform: TrainTransform, padding: int) -> np.ndarray:
  """The whole set at the size of the result, with zeros around: uint8 `[N, S+2p, S+2p, 3]`."""
  size = transform.image_size
  out = np.zeros((len(source), size + 2 * padding, size + 2 * padding, 3), np.uint8)
  for place, image in zip(out, source.images):
    place[padding : padding + size, padding : padding + size] = resize(
        image, size, size, interpolation=transform.crop_filter
    )
  return out


def _windows(images: np.ndarray, size: int) -> np.ndarray:
  """Every row of every window as one item of 3 * size bytes: `[N, H, W - size + 1]`.

  An overlapping view; gathering its items copies whole rows, ten times faster than pixels.
  """
  count, height, width, _ = images.shape
  image, row, pixel, _ = images.strides
  return np.ndarray(
      (count, height, width - size + 1), np.dtype((np.void, 3 * size)), images,
      strides=(image, row, pixel),
  )


def _permutation(seed: int, size: int, epoch: int) -> np.ndarray:
  """The order of one epoch, a permutation of `range(size)`."""
  key = np.array([seed % 2**64, epoch], np.uint64)
  return np.random.Generator(np.random.Philox(key=key)).permutation(size)


def _examples(first: int, count: int, size: int, permutation) -> tuple[np.ndarray, np.ndarray]:
  """Epoch and example of `count` positions from `first` on, uint64 and int64 `[count]`."""
  epochs, examples = [], []
  while count:
    epoch, offset = divmod(first, size)
    part = permutation(epoch)[offset : offset + count]
    epochs.append(np.full(len(part), epoch, np.uint64))
    examples.append(part)
    first, count = first + len(part), count - len(part)
  return np.concatenate(epochs), np.concatenate(examples)


def _hash(seed: int, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
  """64 random bits for each (seed, epoch, example), uint64 `[B]`."""
  key = _mix(np.full(len(epochs), seed % 2**64, np.uint64))
  return _mix(_mix(key ^ epochs) ^ examples.astype(np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
  """One step of SplitMix64 (Steele, Lea, Flood 2014), a bijection of uint64."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def _crop(
    images: np.ndarray, examples: np.ndarray, bits: np.ndarray, padding: int
) -> np.ndarray:
  """One window of each example, `[N, S+2p, S+2p, 3]` to uint8 `[B, S, S, 3]`; its corner is two
  groups of 24 bits, scaled."""
  size = images.shape[1] - 2 * padding
  choices, group = np.uint64(2 * padding + 1), np.uint64(0xFFFFFF)
  top, left = (
      ((bits >> np.uint64(shift) & group) * choices >> np.uint64(24)).astype(np.int64)
      for shift in (0, 24)
  )
  windows = _windows(images, size)
  rows = windows[examples[:, None], top[:, None] + np.arange(size), left[:, None]]
  return rows.view(np.uint8).reshape(len(examples), size, size, 3)


def _flip(images: np.ndarray, choice: np.ndarray) -> np.ndarray:
  """Mirrors, in place, those of uint8 `[B, S, S, 3]` whose `choice` is 1."""
  mirrored = choice.astype(bool)
  if mirrored.any():
    # Stacked, they are one tall picture, which OpenCV mirrors at once.
    size = images.shape[1]
    tall = cv2.flip(images[mirrored].reshape(-1, size, 3), 1)
    images[mirrored] = tall.reshape(-1, size, size, 3)
  return images

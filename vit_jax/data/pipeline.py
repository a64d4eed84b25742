"""Records to batches.

A training stream is a pure function of (seed, position), where a position is one count of
examples over all epochs: neither threads nor hosts nor where it was started change it.  So the
state of the data is that one integer.
"""

from typing import Callable, Iterator

import grain
import numpy as np

from vit_jax.data import in_memory
from vit_jax.data.augment import TrainTransform
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.decode import UnreadableImage, decode
from vit_jax.data.preprocess import Preprocessing
from vit_jax.data.repeats import repeated
from vit_jax.data.source import ArraySource, Record, Source
from vit_jax.errors import ConfigError

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source, *, batch_size: int, seed: int, start: int, shard: int, shards: int,
    transform: TrainTransform, threads: int, bad: BadRecords, repeats: int = 1,
) -> Iterator[Batch]:
  """Yields this shard's part of each global batch, forever.

  Each epoch is another permutation of the source and visits every example once; batches
  straddle epochs.  With R repeats every R epochs share one permutation, in which each example is
  visited R times, differently augmented.  Shard s of S holds the rows [s B / S, (s + 1) B / S) of
  a global batch.

  Args:
    batch_size: B, over all shards.
    start: how many examples of the whole stream come before the first batch; costs nothing.
    threads: that decode ahead, each a whole batch; 0 decodes when asked.
    bad: collects unreadable images, which become zeros with their label and mask 0.
    repeats: R of repeated augmentation; see `repeats` for the order.

  Returns:
    Iterator of {"image": uint8 `[B/S, size, size, 3]`, "label": int32 `[B/S]`,
    "mask": float32 `[B/S]`}; `close()` ends its threads.

  Raises:
    ConfigError: B is no multiple of the shards.
    Whatever the source raises, from the iterator's `next`.
  """
  rows = _rows(batch_size, shard, shards)
  if repeats == 1 and isinstance(source, ArraySource) and in_memory.fits(source, transform):
    return in_memory.gathered_batches(
        source, batch_size=batch_size, seed=seed, start=start, shard=shard, shards=shards,
        transform=transform,
    )

  # What is drawn from other sources depends on the epoch too.
  read = getattr(source, "record_at", lambda epoch, index: source.record(index))

  def example(place: tuple[int, int], rng: np.random.Generator) -> Batch:
    return _example(read(*place), lambda image: transform(image, rng),
                    size=(transform.image_size,) * 2, bad=bad)

  order_seed, map_seed = np.random.SeedSequence(seed % 2**64).generate_state(2)
  order = grain.MapDataset.range(len(source)).shuffle(seed=int(order_seed)).repeat()

  def place(position: int) -> tuple[int, int]:
    """Epoch and index of what stands at a position of the stream."""
    position = position if repeats == 1 else repeated(position, repeats)
    return position // len(source), order[position]

  # Generators are those of the position: each copy of an image has its own.
  places = grain.MapDataset.range(len(order)).map(place)
  # Sharding comes after batching, so that the global order does not depend on the shards.
  dataset = (
      places.random_map(example, seed=int(map_seed))[start:]
      .batch(rows, drop_remainder=True)[shard::shards]
  )
  return _iterate(dataset, threads)


def eval_batches(
    source: Source, *, batch_size: int, shard: int, shards: int, preprocessing: Preprocessing,
    threads: int, bad: BadRecords,
) -> Iterator[Batch]:
  """Yields this shard's part of ceil(N / B) global batches, in the order of the source.

  What lies behind the last example is zeros with label 0 and mask 0; so are unreadable images,
  with their label, hence an evaluator that divides by N counts them as wrong.

  Args, returns and raises: as `train_batches`; images are resized, not normalised.
  """
  rows = _rows(batch_size, shard, shards)
  size = preprocessing.size

  def resized(image: bytes | np.ndarray) -> np.ndarray:
    if isinstance(image, bytes):
      image = decode(image, exif_orientation=preprocessing.exif_orientation)
    return preprocessing.resized(image)

  def example(index: int) -> Batch:
    if index >= len(source):
      return _masked(size, label=0)
    return _example(source.record(index), resized, size=size, bad=bad)

  padded = -(-len(source) // batch_size) * batch_size
  dataset = grain.MapDataset.range(padded).map(example).batch(rows)[shard::shards]
  return _iterate(dataset, threads)


def _rows(batch_size: int, shard: int, shards: int) -> int:
  """Examples of one shard in a batch."""
  if batch_size % shards:
    raise ConfigError(f"a batch of {batch_size} cannot be divided among {shards} shards")
  if not 0 <= shard < shards:
    raise ValueError(f"shard {shard} of {shards}")
  return batch_size // shards


def _example(
    record: Record, transform: Callable[[bytes | np.ndarray], np.ndarray], *,
    size: tuple[int, int], bad: BadRecords,
) -> Batch:
  try:
    image = transform(record["image"])
  except UnreadableImage as error:
    bad.add(record["name"], error.reason)
    return _masked(size, label=record["label"])
  # A label of -1 says that there is none.
  mask = np.float32(record["label"] >= 0)
  return {"image": image, "label": np.int32(record["label"]), "mask": mask}


def _masked(size: tuple[int, int], *, label: int) -> Batch:
  """An example that does not count, of an image of (height, width)."""
  image = np.zeros((*size, 3), np.uint8)
  return {"image": image, "label": np.int32(label), "mask": np.float32(0)}


def _iterate(dataset: grain.MapDataset, threads: int) -> Iterator[Batch]:
  """Yields the elements; whatever a thread raises is raised here."""
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  iterator = iter(dataset.to_iter_dataset(options))
  try:
    yield from iterator
  finally:
    iterator.close()

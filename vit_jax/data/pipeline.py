"""Records to batches.

A training stream is a pure function of (seed, position), where a position is one count of
examples over all epochs: neither threads nor processes nor hosts nor where it was started change
it.  So the state of the data is that one integer.
"""

import json
from typing import Callable, Iterator, Sequence

import grain
import numpy as np

from vit_jax.data import in_memory
from vit_jax.data import workers as workers_lib
from vit_jax.data.augment import TrainTransform
from vit_jax.data.bad_records import BadRecords, Watch
from vit_jax.data.decode import UnreadableImage, decode
from vit_jax.data.preprocess import Preprocessing
from vit_jax.data.repeats import repeated
from vit_jax.data.source import ArraySource, Record, Source
from vit_jax.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source, *, batch_size: int, seed: int, start: int, shard: int, shards: int,
    transform: TrainTransform, threads: int, bad: BadRecords, repeats: int = 1, workers: int = 0,
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
    workers: processes that decode instead of the threads, each a whole batch; 0 for none.  A set
      that is gathered in memory has neither, as it needs neither.

  Returns:
    Iterator of {"image": uint8 `[B/S, size, size, 3]`, "label": int32 `[B/S]`,
    "mask": float32 `[B/S]`}, and "labels": int32 `[B/S, max_labels]`, padded with -1, where the
    source has several for an image; `close()` ends its threads and processes.  Once it has
    raised, it raises the same again.

  Raises:
    ConfigError: B is no multiple of the shards.
    DataError: from the iterator's `next`, too many images are unreadable, or a worker died.
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
    return _example(
        read(*place), lambda image: transform(image, rng), size=(transform.image_size,) * 2,
        max_labels=source.max_labels,
    )

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
      places.random_map(workers_lib.sendable(example), seed=int(map_seed))[start:]
      .batch(rows, drop_remainder=True, batch_fn=_stack)[shard::shards]
  )
  return _Batches(dataset, threads, workers, bad.watch(epoch=len(source) // shards))


def eval_batches(
    source: Source, *, batch_size: int, shard: int, shards: int, preprocessing: Preprocessing,
    threads: int, bad: BadRecords, workers: int = 0,
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
      return _masked(size, _padded((0,), source.max_labels))
    return _example(
        source.record(index), resized, size=size, max_labels=source.max_labels
    )

  padded = -(-len(source) // batch_size) * batch_size
  dataset = (
      grain.MapDataset.range(padded).map(workers_lib.sendable(example))
      .batch(rows, batch_fn=_stack)[shard::shards]
  )
  return _Batches(dataset, threads, workers, bad.watch(epoch=len(source) // shards))


def _rows(batch_size: int, shard: int, shards: int) -> int:
  """Examples of one shard in a batch."""
  if batch_size % shards:
    raise ConfigError(f"a batch of {batch_size} cannot be divided among {shards} shards")
  if not 0 <= shard < shards:
    raise ValueError(f"shard {shard} of {shards}")
  return batch_size // shards


def _example(
    record: Record, transform: Callable[[bytes | np.ndarray], np.ndarray], *,
    size: tuple[int, int], max_labels: int,
) -> Batch:
  """One row of a batch; "unreadable" is None, or (name, reason), and missing in pads."""
  labels = record.get("labels", (record["label"],))
  if len(labels) > max_labels:
    raise DataError(f"{record['name']} has {len(labels)} labels, more than {max_labels}")
  labels = _padded(labels, max_labels)
  try:
    image = transform(record["image"])
  except UnreadableImage as error:
    unreadable = (record["name"], error.reason)
    return _masked(size, labels) | {"unreadable": unreadable}
  # A label of -1 says that there is none.
  mask = np.float32(labels["label"] >= 0)
  return labels | {"image": image, "mask": mask, "unreadable": None}


def _padded(labels: Sequence[int], max_labels: int) -> Batch:
  """"label", the first, and "labels" where there can be several."""
  labels = np.array([*labels, *[-1] * (max_labels - len(labels))], np.int32)
  return {"label": labels[0]} | ({"labels": labels} if max_labels > 1 else {})


def _masked(size: tuple[int, int], labels: Batch) -> Batch:
  """An example that does not count, of an image of (height, width)."""
  return labels | {"image": np.zeros((*size, 3), np.uint8), "mask": np.float32(0)}


def _stack(examples: Sequence[Batch]) -> Batch:
  """Rows to a batch; "seen" is the JSON of [how many are no pads, which are unreadable], uint8.

  An array, because processes share arrays, and send all else through a pipe: messages that are
  short enough arrive whole or not at all, even where their sender is killed.
  """
  keys = [key for key in ("image", "label", "labels", "mask") if key in examples[0]]
  batch = {key: np.stack([row[key] for row in examples]) for key in keys}
  seen = [row["unreadable"] for row in examples if "unreadable" in row]
  text = json.dumps([len(seen), [unreadable for unreadable in seen if unreadable]])
  batch["seen"] = np.frombuffer(text.encode(), np.uint8)
  return batch


class _Batches:
  """Iterates over a data set of batches; what is unreadable is counted as it comes by."""

  def __init__(
      self, dataset: grain.MapDataset, threads: int, workers: int, watch: Watch
  ):
    """Starts threads or processes with the first batch.

    Args:
      dataset: of what `_stack` makes.
    """
    self._watch, self._failure = watch, None
    workers = min(workers, len(dataset))
    if workers:
      self._iterator = workers_lib.iterate(dataset, workers)
    else:
      options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
      self._iterator = iter(dataset.to_iter_dataset(options))

  def __iter__(self):
    return self

  def __next__(self) -> Batch:
    if self._failure is not None:
      raise self._failure
    try:
      batch = next(self._iterator)
      self._watch.add(*json.loads(batch.pop("seen").tobytes()))
      return batch
    except (Exception, KeyboardInterrupt) as failure:
      # Also StopIteration.  What has failed is not tried again: the next batch would be another.
      self._failure = failure
      self.close()
      raise

  def close(self) -> None:
    """Ends threads and processes."""
    if self._failure is None:
      self._failure = StopIteration()
    self._iterator.close()

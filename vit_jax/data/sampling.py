"""Sources whose epochs are drawn from others: weighted mixtures, balanced classes.

Which record stands where is a pure function of (seed, epoch, index), so a stream starts anywhere
at no cost.  What is drawn walks through each part without end, pass after pass, each in an order
of its own; an epoch continues where the one before it ended.  Hence after any number of epochs
two records of one part have been seen equally often, or differ by one.
"""

import dataclasses
import math
from typing import Protocol, Sequence

import numpy as np

from vit_jax.data.source import Derived, Record, Source
from vit_jax.errors import ConfigError, DataError

_MASK = 2**64 - 1


class EpochSource(Protocol):
  """A `Source` whose record also depends on the epoch; `record(i)` is `record_at(0, i)`."""

  def __len__(self) -> int:
    ...

  def record_at(self, epoch: int, index: int) -> Record:
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
  """Several sources, each with a share of every epoch.

  Attributes:
    sources: whose classes, by name, are among `classes`.
    counts: examples of each in an epoch; their sum is the mixture's length.
    seed: of the order of each pass.
  """

  name: str
  split: str
  classes: tuple[str, ...]
  sources: tuple[Source, ...]
  counts: tuple[int, ...]
  seed: int
  _maps: tuple[dict[int, int], ...] = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    place = {name: i for i, name in enumerate(self.classes)}
    maps = tuple(
        {i: place[name] for i, name in enumerate(source.classes)} for source in self.sources
    )
    object.__setattr__(self, "_maps", maps)

  def __len__(self) -> int:
    return sum(self.counts)

  @property
  def max_labels(self) -> int:
    return max(source.max_labels for source in self.sources)

  def locate(self, epoch: int, index: int) -> tuple[int, int]:
    """Returns (source, index in it) of example `index` of `range(len(self))` of an epoch."""
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}")
    part = 0
    while index >= self.counts[part]:
      index -= self.counts[part]
      part += 1
    size = len(self.sources[part])
    turn, place = divmod(epoch * self.counts[part] + index, size)
    return part, permuted(place, size, (self.seed, part, turn))

  def record_at(self, epoch: int, index: int) -> Record:
    part, place = self.locate(epoch, index)
    record = self.sources[part].record(place)
    labels, found = self._maps[part], dict(record)
    found["label"] = labels.get(record["label"], -1)
    if "labels" in record:
      found["labels"] = tuple(sorted(labels[label] for label in record["labels"]))
    return found

  def record(self, index: int) -> Record:
    return self.record_at(0, index)


def mix(
    sources: Sequence[Source], weights: Sequence[float], *, name: str, split: str, seed: int
) -> Mixture:
  """Returns a mixture that shows each record of source k `weights[k]` times an epoch on average.

  An epoch holds round(weights[k] * N_k) examples of source k, at least one: 1 is each record
  exactly once, 2 exactly twice, 0.5 every second epoch.  The classes are those of the first
  source, followed by what the others add.

  Raises:
    ConfigError: a weight is not a positive number.
    DataError: a source is empty.
  """
  for source, weight in zip(sources, weights, strict=True):
    if not (math.isfinite(weight) and weight > 0):
      raise ConfigError(f"the weight of {source.name} is {weight}; it must be above 0")
    if not len(source):
      raise DataError(f"{source.name}/{source.split} is empty, so it cannot be part of a mixture")
  classes = tuple(dict.fromkeys(label for source in sources for label in source.classes))
  counts = tuple(
      max(1, round(weight * len(source))) for source, weight in zip(sources, weights)
  )
  return Mixture(name, split, classes, tuple(sources), counts, seed)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassBalanced(Derived):
  """As many examples an epoch as the source has, the same number of each class (one more of
  some, where that does not divide; which ones changes with the epoch).

  Attributes:
    members: int64 `[N]`, records sorted by class; classes without records are left out.
    starts: int64 `[classes + 1]`, where each class begins in `members`.
  """

  source: Source
  seed: int
  members: np.ndarray
  starts: np.ndarray

  @property
  def split(self) -> str:
    return self.source.split

  def locate(self, epoch: int, index: int) -> int:
    """Returns the source's record that is example `index` of an epoch."""
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}")
    # Classes take turns through all epochs, so each is drawn as often as any other.
    draw, kind = divmod(epoch * len(self) + index, len(self.starts) - 1)
    start, stop = int(self.starts[kind]), int(self.starts[kind + 1])
    turn, place = divmod(draw, stop - start)
    return int(self.members[start + permuted(place, stop - start, (self.seed, kind, turn))])

  def record_at(self, epoch: int, index: int) -> Record:
    return self.source.record(self.locate(epoch, index))

  def record(self, index: int) -> Record:
    return self.record_at(0, index)


def balance(source: Source, *, seed: int) -> ClassBalanced:
  """Returns the source with every class equally often; of several labels the first counts.

  Raises:
    ConfigError: the source is a mixture, or does not know its labels without reading all records.
  """
  if hasattr(source, "record_at"):
    raise ConfigError(
        f"config.input.sampling is class_balanced, but {source.name} is a mixture: balance it by "
        "the weights in its file"
    )
  labels = getattr(source, "labels", None)
  if labels is None:
    raise ConfigError(
        f"{source.name} does not list its labels, so its classes cannot be balanced: bring it "
        "into our own shards with `vit-jax prepare`"
    )
  labels = np.asarray(labels)
  members = np.argsort(labels, kind="stable")
  _, starts = np.unique(labels[members], return_index=True)
  return ClassBalanced(source, seed, members, np.append(starts, len(labels)))


def each_once(source: Source) -> Source:
  """What a class-balanced source draws from, any other as it is: for evaluation."""
  return source.source if isinstance(source, ClassBalanced) else source


def permuted(index: int, size: int, key: tuple[int, ...]) -> int:
  """Returns the image of an index under a permutation of `range(size)` that a key chooses.

  A Feistel network of six rounds over the next power of four, walked until the result is within
  the range (Black, Rogaway 2002): constant time and no memory.
  """
  half = max(1, ((size - 1).bit_length() + 1) // 2)
  mask = (1 << half) - 1
  seed = 0
  for part in key:
    seed = _hash(seed ^ part & _MASK)
  while True:
    left, right = index >> half, index & mask
    for turn in range(6):
      left, right = right, left ^ _hash(seed + turn & _MASK ^ right << 8) >> 32 & mask
    index = left << half | right
    if index < size:
      return index


def _hash(x: int) -> int:
  """One step of SplitMix64 (Steele, Lea, Flood 2014)."""
  x = x + 0x9E3779B97F4A7C15 & _MASK
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
  x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
  return x ^ x >> 31

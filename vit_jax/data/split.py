"""Parts of a split by name: "train[:99%]", "train[10000:]"."""

import dataclasses
import re
from typing import Mapping, Sequence

import numpy as np

from vit_jax.data.source import ArraySource, Derived, Record, Source
from vit_jax.errors import ConfigError

_SPEC = re.compile(r"(\w+)(?:\[((?:-?\d+%?)?):((?:-?\d+%?)?)\])?")
# Of the order in which records that are not shuffled are divided; never to be changed.
_ORDER_SEED = 20_210_611


@dataclasses.dataclass(frozen=True, eq=False)
class Subset(Derived):
  """Some records of a source, in the order of `indices`; a split of its own."""

  source: Source
  split: str
  indices: Sequence[int]

  def __len__(self) -> int:
    return len(self.indices)

  def record(self, index: int) -> Record:
    return self.source.record(int(self.indices[index]))

  @property
  def labels(self) -> np.ndarray:
    """int32 `[N]`, each record's first label, where the source has them at hand."""
    return np.asarray(self.source.labels)[np.asarray(self.indices)]


def subset(source: Source, indices: Sequence[int], *, split: str) -> Source:
  """Returns the named records; of a source in memory again one in memory."""
  if isinstance(source, ArraySource):
    chosen = np.asarray(indices)
    return dataclasses.replace(
        source, split=split, images=source.images[chosen], labels=source.labels[chosen]
    )
  return Subset(source, split, indices)


def open_split(splits: Mapping[str, Source], spec: str, *, shuffled: bool, key: str) -> Source:
  """Returns the part of a split that a text such as "train[:99%]" names.

  Bounds are records or percents, rounded as TFDS rounds them; negative ones count from the end.

  Args:
    shuffled: the records stand in random order, so a range of them is a sample of all; else a
      fixed permutation is divided instead, for they may be sorted by class.
    key: config key of the text, for messages.

  Raises:
    ConfigError: another form, no such split, nothing in it, or a number beyond it.
  """
  match = _SPEC.fullmatch(spec.replace(" ", ""))
  if not match:
    raise ConfigError(
        f"{key} is {spec!r}: write a split, or a part of one as train[:99%] or train[10000:]"
    )
  name, low, high = match.groups()
  if name not in splits:
    raise ConfigError(f"{key} is {spec!r}, but the data has only {', '.join(splits)}")
  source = splits[name]
  if low is None:
    return source
  if hasattr(source, "record_at"):
    raise ConfigError(
        f"{key} is {spec!r}, but a mixture holds records several times, so its parts would share "
        'some: give "split" to what its file lists instead'
    )
  size = len(source)
  start, stop = _bound(low, size, 0), _bound(high, size, size)
  if not 0 <= start <= size or not 0 <= stop <= size:
    raise ConfigError(f"{key} is {spec!r}, which is more than there is: {name} has {size} records")
  if start >= stop:
    raise ConfigError(f"{key} is {spec!r}, which is empty: {name} has {size} records")
  if shuffled:
    indices = range(start, stop)
  else:
    # In their old order, so that reading them one after the other stays cheap.
    indices = np.sort(np.random.Generator(np.random.Philox(_ORDER_SEED)).permutation(size)[
        start:stop])
  return subset(source, indices, split=spec)


def shared(first: str, second: str, splits: Mapping[str, Source]) -> int:
  """How many records two texts that `open_split` takes have in common."""
  ranges = []
  for spec in (first, second):
    name, low, high = _SPEC.fullmatch(spec.replace(" ", "")).groups()
    size = len(splits[name])
    ranges.append((name, _bound(low or "", size, 0), _bound(high or "", size, size)))
  (name, start, stop), (other, low, high) = ranges
  return max(0, min(stop, high) - max(start, low)) if name == other else 0


def _bound(text: str, size: int, default: int) -> int:
  """Index that a bound means, as TFDS has it; it may lie outside [0, size]."""
  if not text:
    return default
  number = int(text.rstrip("%"))
  if text.endswith("%"):
    number = round(number * size / 100)
  return number + size if number < 0 else number

"""What a data set is to the rest of the system: records by index, and the splits they form."""

import dataclasses
from typing import NotRequired, Protocol, TypedDict

import numpy as np


class Record(TypedDict):
  """One example: an encoded file or uint8 `[H, W, 3]`, its class, and a name for messages.

  A data set in which an image may have several classes gives "labels" as well: all of them,
  ascending.  "label" is then the first, or -1 where there is none.
  """

  image: bytes | np.ndarray
  label: int
  name: str
  labels: NotRequired[tuple[int, ...]]


class Source(Protocol):
  """One split of a data set; safe to read from several threads.

  Attributes:
    max_labels: the most classes that a record has; above 1 records have "labels".
  """

  name: str
  split: str
  classes: tuple[str, ...]
  max_labels: int

  def __len__(self) -> int:
    ...

  def record(self, index: int) -> Record:
    ...


class Derived:
  """A source made from another, whose name and classes it has."""

  source: Source

  @property
  def name(self) -> str:
    return self.source.name

  @property
  def classes(self) -> tuple[str, ...]:
    return self.source.classes

  @property
  def max_labels(self) -> int:
    return self.source.max_labels

  def __len__(self) -> int:
    return len(self.source)


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
  """A split that lies decoded in memory.

  Attributes:
    images: uint8 `[N, H, W, 3]`.
    labels: int32 `[N]`, indices into `classes`.
  """

  name: str
  split: str
  classes: tuple[str, ...]
  images: np.ndarray
  labels: np.ndarray

  max_labels = 1

  def __len__(self) -> int:
    return len(self.labels)

  def record(self, index: int) -> Record:
    return {
        "image": self.images[index],
        "label": int(self.labels[index]),
        "name": f"{self.name}/{self.split}/{index}",
    }


def has_labels(source: Source) -> bool:
  """Whether records have classes, without which some test splits are published.

  Where the source does not list its labels, up to a hundred records are read, and not decoded: of
  most splits the first has one.
  """
  labels = getattr(source, "labels", None)
  if labels is None:
    labels = (source.record(index)["label"] for index in range(min(100, len(source))))
  return any(label >= 0 for label in labels)


@dataclasses.dataclass(frozen=True)
class DataSet:
  """Splits that share their classes.

  Attributes:
    classes: names in the order of the labels.
    splits: "train", and "validation" or "test" or both where there are held-out examples.
    fingerprint: sha256 of what the splits contain, the same wherever the data lies.
    notes: what a user should be told, such as a hold-out that was made here; one sentence each.
    shuffled: records stand in random order, so that a range of them is a sample of all.
  """

  name: str
  classes: tuple[str, ...]
  splits: dict[str, Source]
  fingerprint: str
  notes: tuple[str, ...] = ()
  shuffled: bool = False

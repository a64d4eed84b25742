"""A data set of our own shards: what `vit-jax prepare` writes, and how it is opened.

    DIR/dataset.json                        classes, shards and counts of each split, fingerprint
    DIR/train-00000-of-00042.arrayrecord    examples, see `record_format.py`
    DIR/train.index.npz                     labels int32 [sum of counts], counts int32 [N],
                                            hashes uint64 [N]: the start of each image's sha256
    DIR/rejected.csv                        what could not be taken in, and why
"""

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np

from vit_jax.bucket.path import BucketPath, check, is_bucket, place
from vit_jax.data.hold_out import check_fraction
from vit_jax.data.record_format import decode_record
from vit_jax.data.shards import Shards, check_listed, check_shard
from vit_jax.data.source import DataSet, Record
from vit_jax.errors import DataError

FORMAT = "vit_jax.array_record/1"
_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecordSource:
  """A split that lies in ArrayRecord shards.

  Attributes:
    shards: of the whole split.
    indices: int64 `[N]`, the records of this source among them; None for all.
    labels: int32 `[N]`, each record's first label.
    max_labels: of any record of the split.
  """

  name: str
  split: str
  classes: tuple[str, ...]
  shards: Shards
  indices: np.ndarray | None
  labels: np.ndarray
  max_labels: int

  def __len__(self) -> int:
    return len(self.shards) if self.indices is None else len(self.indices)

  def __getstate__(self) -> dict:
    # A worker reads records; labels of millions of them would only fill its memory.
    return self.__dict__ | {"labels": self.labels[:0]}

  def record(self, index: int) -> Record:
    """Reads one example, with "labels".

    Raises:
      DataError: its shard has gone or is damaged there.
    """
    if self.indices is not None:
      index = int(self.indices[index])
    record = decode_record(self.shards.read(index), where=self.shards.where(index))
    if record["labels"][-1] >= len(self.classes):
      raise DataError(
          f"{self.shards.where(index)} has label {record['labels'][-1]}, but there are only "
          f"{len(self.classes)} classes: prepare the data set again"
      )
    return record


def open_array_record(path: str | Path, *, held_out: float) -> DataSet:
  """Opens what `vit-jax prepare` wrote, after a look at every shard.

  Args:
    path: a directory, or gs://BUCKET/PATH.
    held_out: share of each class held out of train where there is neither validation nor test,
      in [0, 1), chosen by the images' hashes.

  Raises:
    DataError: no such data set, it is unfinished, or a shard is missing or truncated.
    ConfigError: held_out is out of range; a bucket cannot be read.
  """
  root = place(path)
  check(root)
  described = read_description(root)
  name, classes = described["name"], tuple(described["classes"])
  splits, notes, fingerprint = {}, [], described["fingerprint"]
  if is_bucket(root):
    notes.append(
        "each image is a request of its own to the bucket: where train/input_wait_fraction is high,"
        " mount the bucket, or copy it to a disk"
    )
  listed = root.below() if is_bucket(root) else None
  for split in (split for split in _SPLITS if split in described["splits"]):
    shards = described["splits"][split]["shards"]
    for shard in shards:
      if listed is not None:
        check_listed(str(root / shard["file"]), listed.get(shard["file"]), size=shard["bytes"])
      else:
        check_shard(str(root / shard["file"]), examples=shard["examples"], size=shard["bytes"])
    paths = [str(root / shard["file"]) for shard in shards]
    records = Shards(paths, [shard["examples"] for shard in shards])
    labels, most, hashes = _read_index(root / f"{split}.index.npz", len(records))
    splits[split] = ArrayRecordSource(name, split, classes, records, None, labels, most)
  if rejected := described.get("rejected"):
    notes.append(f"{rejected} images were rejected when it was prepared: rejected.csv")
  if list(splits) == ["train"] and held_out:
    whole = splits["train"]
    held = held_out_by_hash(hashes, whole.labels, fraction=held_out)
    for split, chosen in (("train", ~held), ("validation", held)):
      indices = np.flatnonzero(chosen)
      splits[split] = dataclasses.replace(
          whole, split=split, indices=indices, labels=whole.labels[indices]
      )
    fingerprint = hashlib.sha256(f"{fingerprint} held out {held_out}".encode()).hexdigest()
    notes.append(
        f"{100 * held_out:g} % ({held.sum()} images) held out by content hash, stratified by "
        "class"
    )
  return DataSet(name, classes, splits, fingerprint, tuple(f"{root}: {x}" for x in notes))


def read_description(root: Path | BucketPath) -> dict:
  """Reads and checks dataset.json.

  Raises:
    DataError: there is none, or it is of something else.
  """
  file = root / "dataset.json"
  if not file.is_file():
    raise DataError(
        f"{root} is no data set of ArrayRecord shards, dataset.json is missing: give the "
        "directory that `vit-jax prepare --output=DIR` wrote"
        + (", and repeat that command, which was interrupted" if _partial(root) else "")
    )
  try:
    described = json.loads(file.read_text())
    known = described["format"] == FORMAT
    complete = {"name", "classes", "splits", "fingerprint"} <= set(described)
    splits = described["splits"].values() if complete else ()
    files = [str(shard["file"]) for split in splits for shard in split["shards"]]
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise DataError(f"{file} is damaged ({error}): prepare the data set again") from error
  if not (known and complete):
    raise DataError(f"{file} is not of the format {FORMAT}: prepare the data set again")
  for name in files:
    if "/" in name or name in ("", ".", ".."):
      raise DataError(f"{file} names a shard outside of its directory, {name!r}: do not trust it")
  return described


def _partial(root: Path | BucketPath) -> bool:
  return root.name.endswith(".partial") or root.with_name(root.name + ".partial").is_dir()


def _read_index(file: Path | BucketPath, examples: int) -> tuple[np.ndarray, int, np.ndarray]:
  """First labels int32 `[N]`, the most labels of one record, and hashes uint64 `[N]`."""
  try:
    source = io.BytesIO(file.read_bytes()) if is_bucket(file) else file
    with np.load(source, allow_pickle=False) as index:
      labels, counts, hashes = (index[key] for key in ("labels", "counts", "hashes"))
    if not len(counts) == len(hashes) == examples or counts.sum() != len(labels):
      raise ValueError(f"it is not of {examples} examples")
  except Exception as error:  # a damaged zip raises nearly anything
    raise DataError(
        f"{file} cannot be read ({error}): restore it, or prepare the data set again"
    ) from error
  return labels[np.cumsum(counts) - counts], int(counts.max(initial=1)), hashes


def held_out_by_hash(hashes: np.ndarray, labels: np.ndarray, *, fraction: float) -> np.ndarray:
  """Chooses records as a pure function of their contents, in seconds for millions of them.

  Of each class with n >= 2 records those with the smallest hashes, max(1, round(fraction * n)),
  and what else has the hash of the last of them: no image is on both sides.  A class that would
  go as a whole is kept for training.

  Args:
    hashes: uint64 `[N]`.
    labels: int32 `[N]`.
    fraction: in [0, 1).

  Returns:
    bool `[N]`, True where held out.

  Raises:
    ConfigError: fraction is not in [0, 1).
  """
  check_fraction(fraction)
  if not fraction or not len(labels):
    return np.zeros(len(labels), bool)
  order = np.lexsort((hashes, labels))
  sizes = np.bincount(labels)
  starts = np.cumsum(sizes) - sizes
  wanted = np.where(sizes > 1, np.maximum(1, np.rint(fraction * sizes)), 0).astype(np.int64)
  last = np.minimum(starts + np.maximum(wanted, 1) - 1, len(order) - 1)
  held = (hashes <= hashes[order[last]][labels]) & (wanted > 0)[labels]
  whole = np.bincount(labels[held], minlength=len(sizes)) == sizes
  return held & ~whole[labels]

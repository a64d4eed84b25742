"""One shard: read, check, reduce and write its images."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from array_record.python import array_record_module
import numpy as np

from vit_jax.data.decode import UnreadableImage
from vit_jax.data.prepare import content
from vit_jax.data.prepare.items import Item, Rejected
from vit_jax.data.record_format import encode_record
from vit_jax.data.shards import check_shard
from vit_jax.errors import DataError

# Images are compressed already, and each is read alone.
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Job:
  """What one worker does at a time.

  Attributes:
    items: in the order of the records.
    labels: index of each class, of those that occur here.
    directory, stem: where the shard goes, and its name without a suffix.
  """

  items: list[Item]
  labels: dict[str, int]
  source: str
  directory: str
  stem: str
  short_side: int | None
  quality: int


def write_shard(job: Job) -> dict:
  """Writes a shard, unless it lies there whole; returns what is known of it.

  Three files appear in this order, each at once: STEM.arrayrecord (none where every image was
  rejected), STEM.npz with the index, and STEM.json, which says that the shard is finished.

  Returns:
    {"file", "examples", "bytes", "sha256", "index_sha256", "rejected": [[split, name, reason]],
    "images", "kept"}; "kept" tells that it was finished before.
  """
  stem = Path(job.directory) / job.stem
  if (found := _finished(stem)) is not None:
    return found | {"kept": True}
  try:
    return _write(job, stem) | {"kept": False}
  except (OSError, RuntimeError) as error:  # the library raises RuntimeError on a full disk
    raise DataError(
        f"cannot write {stem}.arrayrecord: {error}; make room or mend the permissions, then "
        "repeat the same command"
    ) from error


def _write(job: Job, stem: Path) -> dict:
  file, temporary = f"{stem}.arrayrecord", f"{stem}.arrayrecord.tmp"
  rejected, labels, counts, hashes = [], [], [], []
  writer = array_record_module.ArrayRecordWriter(temporary, _WRITER_OPTIONS)
  try:
    for item in job.items:
      data = content.read(item, job.source)
      try:
        image = content.stored(data, short_side=job.short_side, quality=job.quality)
      except UnreadableImage as error:
        rejected += [
            Rejected(item.split, name, content.fault_of(error))
            for name in (item.name, *item.aliases)
        ]
        continue
      own = sorted(job.labels[label] for label in item.labels)
      writer.write(encode_record(image, own, item.name))
      labels += own
      counts.append(len(own))
      # Of the original, so that reduced copies hold out the same images.
      hashes.append(int.from_bytes(content.digest(data)[:8], "little"))
  finally:
    writer.close()
  if counts:
    check_shard(temporary, examples=len(counts))
  result = {
      "file": os.path.basename(file), "examples": len(counts), "images": len(job.items),
      "bytes": os.path.getsize(temporary), "sha256": _sha256(temporary), "rejected": rejected,
  }
  if counts:
    _sync(temporary)
    os.replace(temporary, file)
  else:
    os.remove(temporary)
  with open(f"{stem}.npz.tmp", "wb") as index:
    np.savez(
        index, labels=np.asarray(labels, np.int32), counts=np.asarray(counts, np.int32),
        hashes=np.asarray(hashes, np.uint64),
    )
  os.replace(f"{stem}.npz.tmp", f"{stem}.npz")
  result["index_sha256"] = _sha256(f"{stem}.npz")
  Path(f"{stem}.json.tmp").write_text(json.dumps(result))
  os.replace(f"{stem}.json.tmp", f"{stem}.json")
  return result


def _finished(stem: Path) -> dict | None:
  """What STEM.json says, where its files are as it says."""
  try:
    result = json.loads(Path(f"{stem}.json").read_text())
    shard = f"{stem}.arrayrecord"
    whole = not result["examples"] or (
        os.path.getsize(shard) == result["bytes"] and _sha256(shard) == result["sha256"]
    )
    return result if whole and _sha256(f"{stem}.npz") == result["index_sha256"] else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _sha256(path: str) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: str) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)

"""`vit-jax prepare`: any of the usual forms of a data set into our own shards.

The records stand in the order of the input, and a shard is a function of its items alone, so the
bytes are the same for any number of workers.  All work happens in OUTPUT.partial; OUTPUT appears
complete, by one rename.  The same command again continues: shards that are finished are verified
by their hashes and kept.
"""

import contextlib
import csv
import fcntl
import hashlib
import json
import os
from pathlib import Path
import shutil
import sys
from typing import Callable, Iterator, Sequence

import numpy as np

from vit_jax.data.array_record import FORMAT
from vit_jax.data.folder import open_folder
from vit_jax.data.prepare import content
from vit_jax.data.prepare.duplicates import merge_duplicates
from vit_jax.data.prepare.imagenet import list_imagenet
from vit_jax.data.prepare.items import Item, Listing, Rejected, check_unique, read_classes
from vit_jax.data.prepare.parquet import list_parquet
from vit_jax.data.prepare.progress import Progress
from vit_jax.data.prepare.shard import Job, write_shard
from vit_jax.data.prepare.tars import list_tars
from vit_jax.data.prepare.webdataset import list_webdataset
from vit_jax.data.prepare.workers import Workers
from vit_jax.errors import ConfigError, DataError

SOURCES = ("imagefolder", "tar", "webdataset", "parquet", "imagenet", "tfds")
_SPLITS = ("train", "validation", "test")
_PLAN, _WORK = "plan.json", "work"


def prepare(
    *, source: str, input: str | os.PathLike, output: str | os.PathLike,
    short_side: int | None = None, quality: int = 90, merge: bool = False, workers: int = 1,
    shard_bytes: int = 2**30, classes: str | os.PathLike | None = None,
    val_labels: str | os.PathLike | None = None, say: Callable[[str], None] | None = None,
) -> dict:
  """Writes a data set as ArrayRecord shards with dataset.json and rejected.csv.

  Args:
    source: what the input is, one of `SOURCES`.
    short_side: larger images are stored reduced to it; None stores every file as it is.
    quality: of the reduced JPEGs, 1 to 100.
    merge: identical images of a split become one record with all their labels.
    workers: processes.
    shard_bytes: about how many bytes of input go into one shard.
    classes: file with the order of the classes, one a line; images of others are rejected.
    val_labels: of ImageNet's validation images, where the input has no development kit.
    say: takes lines of progress; None prints them to standard error.

  Returns:
    What dataset.json holds.

  Raises:
    ConfigError: arguments that make no sense, or OUTPUT is of another command.
    DataError: the input is missing or damaged, or holds no usable image.
  """
  say = say or (lambda line: print(line, file=sys.stderr, flush=True))
  input, output = Path(input).expanduser().resolve(), Path(output).expanduser().absolute()
  _check_arguments(source, short_side, quality, workers, shard_bytes)
  content.close_files()
  with Workers(workers) as pool:
    listing = _list(source, input, pool, val_labels=val_labels and Path(val_labels))
    listing = _in_order(listing, classes and Path(classes))
    for note in listing.notes:
      say(f"prepare: {note}")
    if not listing.items:
      raise DataError(f"--input={input} holds no images that --source={source} could take in")
    options = {"short_side": short_side, "quality": quality if short_side else None,
               "merge_duplicates": merge, "shard_bytes": shard_bytes}
    plan = {"source": source, "input": str(input), **options, "items": _fingerprint(listing)}
    if output.exists():
      return _existing(output, plan, say)
    with _partial_directory(output, plan) as partial:
      items = listing.items
      say(f"prepare: {len(items)} images, {len(listing.classes)} classes, into {partial}")
      if merge:
        items = merge_duplicates(
            items, source=source, directory=partial / _WORK, workers=pool,
            say=Progress("looking for duplicates", say=say),
        )
      merged = len(listing.items) - len(items)
      jobs = _jobs(items, listing.classes, partial, source, options)
      results = _write(jobs, pool, len(items), say)
      described = {
          "format": FORMAT, "name": output.name, "source": source, **options,
          "multi_label": any(len(item.labels) > 1 for item in items), "merged": merged,
          "classes": list(listing.classes), "class_names": listing.class_names,
          "plan": _digest(plan),
      }
      described = _finish(partial, jobs, results, listing.rejected, described)
      os.rename(partial, output)
      # Only now: until here it tells whose the directory is.
      (output / _PLAN).unlink()
  say(f"prepare: {output} is complete: {_summary(described)}")
  return described


def _check_arguments(source, short_side, quality, workers, shard_bytes) -> None:
  if source not in SOURCES:
    raise ConfigError(f"--source={source} is not one of {', '.join(SOURCES)}")
  for option, value, low, high in (
      ("short-side", short_side, 1, 1 << 16), ("quality", quality, 1, 100),
      ("workers", workers, 1, 1024), ("shard-size", shard_bytes, 1, 1 << 40),
  ):
    if value is not None and not low <= value <= high:
      raise ConfigError(f"--{option}={value} must be from {low} to {high}")


def _list(source: str, path: Path, pool: Workers, *, val_labels: Path | None) -> Listing:
  if val_labels is not None and source != "imagenet":
    raise ConfigError("--val-labels is for --source=imagenet")
  if source == "imagefolder":
    return _list_folder(path)
  if source == "tfds":
    return _list_tfds(path)
  if source == "imagenet":
    return list_imagenet(path, pool.ordered, val_labels=val_labels)
  listers = {"tar": list_tars, "webdataset": list_webdataset, "parquet": list_parquet}
  return listers[source](path, pool.ordered)


def _list_folder(path: Path) -> Listing:
  dataset, items = open_folder(path, held_out=0), []
  for split, files in dataset.splits.items():
    every = files.all_labels or [(label,) for label in files.labels]
    for name, labels in zip(files.paths, every):
      file = path / name
      size = file.stat().st_size
      own = tuple(dataset.classes[label] for label in labels)
      items.append(Item(split, name, own, str(file), 0, size))
  notes = tuple(note for note in dataset.notes if "held out" not in note)
  return Listing(items, [], dataset.classes, notes=notes)


def _list_tfds(path: Path) -> Listing:
  from vit_jax.data.tfds import open_tfds_directory  # imports its library

  dataset = open_tfds_directory(path, held_out=0, decode_small=False)
  items, rejected = [], []
  for split, records in dataset.splits.items():
    for index in range(len(records)):
      record = records.record(index)
      labels = record.get("labels", (record["label"],))
      name = f"{index:08d}/{record['name']}"
      if labels and min(labels) >= 0:
        names = tuple(dataset.classes[label] for label in labels)
        items.append(Item(split, name, names, str(path), index, len(record["image"])))
      else:
        rejected.append(Rejected(split, name, "without a label"))
  return Listing(items, rejected, dataset.classes)


def _in_order(listing: Listing, file: Path | None) -> Listing:
  """The listing with its classes in their final order, and its names checked."""
  used = {label for item in listing.items for label in item.labels}
  classes, names = listing.classes or tuple(sorted(used, key=os.fsencode)), listing.class_names
  items, rejected = listing.items, list(listing.rejected)
  if file is not None:
    ordered, own = read_classes(file)
    known, kept = set(ordered), []
    for item in items:
      if known.issuperset(item.labels):
        kept.append(item)
      else:
        rejected.append(Rejected(item.split, item.name, f"its class is not in {file.name}"))
    items, classes, names = kept, ordered, names | own
  check_unique(items)
  order = {split: i for i, split in enumerate(_SPLITS)}
  items = sorted(items, key=lambda item: order[item.split])  # stable
  names = {label: names[label] for label in classes if label in names}
  return Listing(items, rejected, classes, names, listing.notes)


def _fingerprint(listing: Listing) -> str:
  digest = hashlib.sha256(json.dumps([listing.classes, listing.rejected]).encode())
  for item in listing.items:
    digest.update(repr(tuple(item)).encode(errors="surrogateescape"))
  return digest.hexdigest()


def _digest(plan: dict) -> str:
  return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _existing(output: Path, plan: dict, say) -> dict:
  """What lies at OUTPUT already, if this very command wrote it."""
  try:
    described = json.loads((output / "dataset.json").read_text())
    same = described["plan"] == _digest(plan)
  except (OSError, ValueError, KeyError, TypeError):
    same = False
  if not same:
    raise ConfigError(
        f"--output={output} exists already and is not what this command writes: name another "
        "directory, or remove it"
    )
  say(f"prepare: {output} is complete: {_summary(described)}. Nothing to do")
  return described


@contextlib.contextmanager
def _partial_directory(output: Path, plan: dict) -> Iterator[Path]:
  """OUTPUT.partial, new or of the same command, which nobody else writes to."""
  partial = output.with_name(output.name + ".partial")
  partial.mkdir(parents=True, exist_ok=True)
  descriptor = os.open(partial, os.O_RDONLY)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ConfigError(f"{partial} is being written by another process: wait for it") from error
    file = partial / _PLAN
    if file.is_file():
      if json.loads(file.read_text()) != plan:
        raise ConfigError(
            f"{partial} was begun with another input or other options ({file} holds them): "
            "repeat that command, or remove the directory"
        )
    elif any(entry.name != _PLAN + ".tmp" for entry in partial.iterdir()):
      raise ConfigError(f"{partial} is not of `vit-jax prepare`: name another --output")
    else:
      (partial / (_PLAN + ".tmp")).write_text(json.dumps(plan, indent=1))
      os.replace(partial / (_PLAN + ".tmp"), file)
    yield partial
  finally:
    os.close(descriptor)


def _jobs(
    items: Sequence[Item], classes: tuple[str, ...], partial: Path, source: str, options: dict
) -> list[Job]:
  """Cuts each split where the input's bytes fill a shard."""
  place = {name: i for i, name in enumerate(classes)}
  jobs = []
  for split in _SPLITS:
    shards, filled = [], 0
    for item in (item for item in items if item.split == split):
      if not shards or filled >= options["shard_bytes"]:
        shards.append([])
        filled = 0
      shards[-1].append(item)
      filled += item.size
    for number, chosen in enumerate(shards):
      labels = {label: place[label] for item in chosen for label in item.labels}
      stem = f"{split}-{number:05d}-of-{len(shards):05d}"
      jobs.append(Job(
          chosen, labels, source, str(partial), stem, options["short_side"],
          options["quality"] or 0,
      ))
  return jobs


def _write(jobs: list[Job], pool: Workers, images: int, say) -> list[dict]:
  """Results of all shards, in order."""
  results, done, kept, shards, faults = {}, 0, 0, 0, 0
  progress = Progress("prepare", say=say)
  for result in pool.finished(write_shard, jobs):
    results[result["file"]] = result
    done, faults = done + result["images"], faults + len(result["rejected"])
    if result["kept"]:
      kept, shards = kept + result["images"], shards + 1
    more = f", {len(results)} of {len(jobs)} shards" + (f", {faults} rejected" if faults else "")
    progress(done, images, kept=kept, more=more)
  if shards:
    say(f"prepare: {shards} of {len(jobs)} shards were finished before and are unchanged")
  return [results[f"{job.stem}.arrayrecord"] for job in jobs]


def _finish(
    partial: Path, jobs: list[Job], results: list[dict], rejected: list[Rejected],
    described: dict,
) -> dict:
  """Writes the indices, rejected.csv and dataset.json, and removes what only the work needed."""
  rejected = rejected + [Rejected(*row) for result in results for row in result["rejected"]]
  splits = {}
  for split in _SPLITS:
    chosen = [
        (job, result) for job, result in zip(jobs, results) if job.items[0].split == split
    ]
    shards = [
        {key: result[key] for key in ("file", "examples", "bytes", "sha256")}
        for _, result in chosen if result["examples"]
    ]
    if shards:
      _join([partial / f"{job.stem}.npz" for job, _ in chosen], partial / f"{split}.index.npz")
      splits[split] = {
          "examples": sum(shard["examples"] for shard in shards), "shards": shards
      }
  if not splits:
    raise DataError(
        f"every image was rejected, the first, {rejected[0].name}, because: {rejected[0].reason}"
    )
  with open(partial / "rejected.csv", "w", newline="", errors="backslashreplace") as file:
    csv.writer(file).writerows([Rejected._fields, *rejected])
  identity = json.dumps([described["classes"], splits], sort_keys=True)
  described |= {
      "splits": splits, "rejected": len(rejected),
      "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
  }
  with open(partial / "dataset.json", "w") as file:
    json.dump(described, file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  for job in jobs:
    for end in (".npz", ".json"):
      (partial / (job.stem + end)).unlink()
  shutil.rmtree(partial / _WORK, ignore_errors=True)
  return described


def _join(files: list[Path], to: Path) -> None:
  """Concatenates the indices of shards into that of a split."""
  parts = []
  for file in files:
    with np.load(file, allow_pickle=False) as index:
      parts.append(dict(index))
  with open(to, "wb") as file:
    np.savez(file, **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})


def _summary(described: dict) -> str:
  parts = [
      f"{split['examples']} {name} images in {len(split['shards'])} shards"
      for name, split in described["splits"].items()
  ]
  if described["merged"]:
    parts.append(f"{described['merged']} duplicates merged")
  if described["rejected"]:
    parts.append(f"{described['rejected']} rejected (rejected.csv)")
  return ", ".join(parts) + f", {len(described['classes'])} classes"

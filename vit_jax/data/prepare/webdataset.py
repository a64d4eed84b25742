"""WebDataset tars as timm publishes ImageNet: KEY.jpg beside KEY.cls and KEY.json."""

import json
from pathlib import Path, PurePosixPath
import re

from vit_jax.data.prepare.items import Item, Listing, Rejected, input_files, is_image
from vit_jax.data.prepare.items import numbered_classes, readable_names, split_of
from vit_jax.data.prepare.tar_members import members
from vit_jax.errors import DataError

_SYNSET = re.compile(r"(?<![a-z0-9])(n\d{8})(?=_|/|$)")
_LARGEST_TEXT = 1 << 20


def list_webdataset(path: Path, each) -> Listing:
  """Lists samples; a file's name tells the split, as in imagenet1k-train-0000.tar.

  The label is an index, from KEY.cls or "label" of KEY.json.  Classes are called by their WordNet
  id where all file names of a class agree on one, else by their index.

  Args:
    path: a tar, or a directory of them.
    each: maps a function over the files, in order, on several cores.

  Raises:
    DataError: a tar is truncated or there is no label.
  """
  items, rejected, synsets = [], [], {}
  for found, bad, named in each(_list_shard, list(map(str, input_files(path, ".tar")))):
    items += found
    rejected += bad
    for label, names in named.items():
      synsets.setdefault(label, set()).update(names)
  classes = numbered_classes(items)
  count = len(classes)
  ids = {label: next(iter(names)) for label, names in synsets.items() if len(names) == 1}
  if len(ids) == count and len(set(ids.values())) == count and "" not in ids.values():
    classes = tuple(ids[i] for i in range(count))
    items = [item._replace(labels=(classes[int(item.labels[0])],)) for item in items]
  directory = path if path.is_dir() else path.parent
  return Listing(items, rejected, classes, readable_names(directory, classes))


def _list_shard(file: str):
  items, rejected, synsets = [], [], {}
  split = split_of(PurePosixPath(file).name)
  samples: dict[str, dict[str, tuple]] = {}
  with open(file, "rb") as stream:
    for member in members(file):
      if member.fault:
        rejected.append(Rejected(split, member.name, member.fault))
        continue
      directory, _, last = member.name.rpartition("/")
      stem, _, extension = last.partition(".")
      key = f"{directory}/{stem}" if directory else stem
      sample = samples.setdefault(key, {})
      if is_image(member.name):
        sample["image"] = member
      elif extension in ("cls", "json") and member.size <= _LARGEST_TEXT:
        stream.seek(member.offset)
        sample[extension] = stream.read(member.size)
      else:
        rejected.append(Rejected(split, member.name, "neither an image nor a label"))
  for key, sample in samples.items():
    if "image" not in sample:
      rejected.append(Rejected(split, key, "a label without an image"))
      continue
    image = sample["image"]
    label, name = _label(sample, image.name, f"{file}: {key}")
    if label is None:
      rejected.append(Rejected(split, image.name, "an image without a label"))
      continue
    match = _SYNSET.search(name)
    synsets.setdefault(label, set()).add(match[1] if match else "")
    items.append(Item(split, name, (str(label),), file, image.offset, image.size))
  return items, rejected, synsets


def _label(sample: dict, name: str, where: str) -> tuple[int | None, str]:
  """Index of the class, and the image's original name."""
  try:
    fields = json.loads(sample.get("json", b"{}"))
    text = sample.get("cls", fields.get("label"))
    label = None if text in (None, b"", "") else int(text)
    name = str(fields.get("filename") or name)
  except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError) as error:
    raise DataError(f"{where} has an unreadable label ({error}): download the tar again") from error
  if label is not None and label < 0:
    raise DataError(f"{where} has the label {label}; it must be an index from 0 on")
  return label, name

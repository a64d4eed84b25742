"""What is to be taken in: one item an image, found without reading the images."""

import dataclasses
import os
from pathlib import Path
import re
from typing import NamedTuple, Sequence

from vit_jax.data.folder import IMAGE_EXTENSIONS
from vit_jax.errors import ConfigError, DataError

# A shard's name in its split, as in imagenet1k-train-0042.tar or validation-00000-of-00014.parquet.
_SPLIT_WORD = re.compile(r"(?<![a-z])(train|training|val|valid|validation|test)(?![a-z])")
_MAX_CLASSES = 10_000_000
SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation",
    "validation": "validation", "test": "test",
}


class Item(NamedTuple):
  """An image and where its bytes lie.

  Attributes:
    split: "train", "validation" or "test".
    name: unique in its split, such as n01440764/n01440764_18.JPEG; kept with the record.
    labels: names of its classes.
    path: file that holds it.
    offset, size: range of bytes; of a table or a TFDS split the row, and a guess at its size.
    aliases: names of identical images that were merged into this one.
  """

  split: str
  name: str
  labels: tuple[str, ...]
  path: str
  offset: int
  size: int
  aliases: tuple[str, ...] = ()


class Rejected(NamedTuple):
  """Something that is not taken in, for rejected.csv."""

  split: str
  name: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Listing:
  """What one input holds.

  Attributes:
    items: in a fixed order, which becomes that of the records.
    rejected: members that are no images or are not safe to read.
    classes: names in the order of the labels; None to sort those that occur.
    class_names: what people call the classes, such as "tench, Tinca tinca".
    notes: what the user should be told, a sentence each.
  """

  items: list[Item]
  rejected: list[Rejected]
  classes: tuple[str, ...] | None = None
  class_names: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()


def is_image(name: str) -> bool:
  """Whether a name ends as an image's does."""
  return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def split_of(name: str) -> str:
  """The split that a file's name tells, else train."""
  words = _SPLIT_WORD.findall(name.lower())
  return SPLITS[words[-1]] if words else "train"


def input_files(path: Path, suffix: str) -> list[Path]:
  """The named file, or those below the named directory, sorted by the bytes of their paths.

  Raises:
    DataError: there are none.
  """
  if path.is_file():
    return [path]
  found = [
      file for file in path.rglob(f"*{suffix}")
      if file.is_file() and not file.name.startswith(".")
  ] if path.is_dir() else []
  if not found:
    what = f"holds no {suffix} files" if path.is_dir() else (
        "does not exist: give the file or directory that holds the data"
    )
    packed = [file.name for file in path.glob("*.tar.gz")] if path.is_dir() else []
    unpack = f"; unpack {packed[0]} with tar -xzf first" if packed else ""
    raise DataError(f"--input={path} {what}{unpack}")
  return sorted(found, key=os.fsencode)


def numbered_classes(items: Sequence[Item]) -> tuple[str, ...]:
  """Classes "0", "1", ... up to the largest label, where labels are indices.

  Raises:
    DataError: a label no data set has, which would make as many classes.
  """
  last = max(items, key=lambda item: int(item.labels[0]), default=None)
  count = int(last.labels[0]) + 1 if last else 0
  if count > _MAX_CLASSES:
    raise DataError(
        f"{last.path}: {last.name} has the label {count - 1}, and at most {_MAX_CLASSES:,} classes "
        "are taken: download the file again"
    )
  return tuple(map(str, range(count)))


def read_classes(file: Path) -> tuple[tuple[str, ...], dict[str, str]]:
  """Reads an order of classes, one a line: a name without spaces, then what people call it.

  `imagenet21k_wordnet_ids.txt`, `LOC_synset_mapping.txt` and `words.txt` are of this form.

  Returns:
    The classes in the order of the lines, and their readable names where there are some.

  Raises:
    ConfigError: the file cannot be read, is empty, or names a class twice.
  """
  try:
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"--classes={file} cannot be read: {error}") from error
  pairs = [re.split(r"[\t ]+", line, maxsplit=1) for line in lines if line]
  classes = tuple(pair[0] for pair in pairs)
  if len(set(classes)) != len(classes) or not classes:
    twice = next((x for x in classes if classes.count(x) > 1), None)
    what = f"names {twice!r} twice" if twice else "is empty"
    raise ConfigError(f"--classes={file} {what}; it needs one class a line")
  return classes, {pair[0]: pair[1] for pair in pairs if len(pair) > 1}


def readable_names(directory: Path, wanted: Sequence[str]) -> dict[str, str]:
  """What the data's own LOC_synset_mapping.txt or words.txt calls classes; {} without one."""
  for name in ("LOC_synset_mapping.txt", "words.txt"):
    if (directory / name).is_file():
      names, known = read_classes(directory / name)[1], set(wanted)
      return {key: value for key, value in names.items() if key in known}
  return {}


def check_unique(items: Sequence[Item]) -> None:
  """Raises DataError where two images of a split have one name."""
  seen = set()
  for item in items:
    if (item.split, item.name) in seen:
      raise DataError(
          f"{item.path}: {item.split} has two images called {item.name}: is an archive among "
          "the input twice?"
      )
    seen.add((item.split, item.name))

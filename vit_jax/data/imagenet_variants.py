"""Other judges of ImageNet-1k: ImageNet-ReaL's labels, and the images of ImageNet-V2."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
import re
from typing import Iterable

import numpy as np

from vit_jax.data.folder import FolderSource, IMAGE_EXTENSIONS
from vit_jax.data.source import DataSet, Derived, Record, Source
from vit_jax.errors import DataError

_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
_REAL_URL = "https://github.com/google-research/reassessed-imagenet"
_LOOKED_AT = 16  # records, where a name is known only once its record is read


@dataclasses.dataclass(frozen=True, eq=False)
class RealSource(Derived):
  """The validation images with ReaL's labels (Beyer et al. 2020): a set of classes for each.

  An image without labels has "labels" () and "label" -1, and is to count nowhere.
  """

  source: Source
  real: tuple[tuple[int, ...], ...]

  @property
  def name(self) -> str:
    return f"{self.source.name} with ReaL labels"

  @property
  def split(self) -> str:
    return f"{self.source.split}_real"

  @property
  def max_labels(self) -> int:
    return max(2, *map(len, self.real))

  def record(self, index: int) -> Record:
    """Reads one example; the number in its file's name says which labels are its own.

    Raises:
      DataError: the name is not of the validation set.
    """
    record = self.source.record(index)
    labels = self.labels_of(record["name"])
    return record | {"label": labels[0] if labels else -1, "labels": labels}

  def labels_of(self, name: str) -> tuple[int, ...]:
    """Returns the labels of the image whose file has this name.

    Raises:
      DataError: the name is not of the validation set.
    """
    match = _VALIDATION_NAME.search(name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(self.real):
      raise DataError(
          f"{name} of {self.source.name} is not named ILSVRC2012_val_NNNNNNNN with a number up to "
          f"{len(self.real)}, so it has no ReaL labels: they are those of ImageNet's validation "
          "images under their original names, --config.evaluate.split=validation"
      )
    return self.real[number - 1]


def with_real_labels(source: Source, file: str | os.PathLike) -> RealSource:
  """Puts ReaL's labels on ImageNet's validation images.

  Args:
    source: whose classes are ImageNet-1k's in their usual order (WordNet ids sorted).
    file: real.json, a list of lists of classes in the order of the file names.

  Raises:
    DataError: the file is missing or of another form, or names a class that the source lacks; or
      the source holds other images, as their names tell (of a folder all, else some).
  """
  try:
    real = json.loads(Path(file).read_text())
    ok = isinstance(real, list) and all(
        isinstance(x, list) and all(type(y) is int and 0 <= y < len(source.classes) for y in x)
        for x in real
    )
  except (OSError, ValueError) as error:
    raise DataError(f"{file} cannot be read ({error}): get real.json from {_REAL_URL}") from error
  if not ok:
    raise DataError(
        f"{file} is not a list of lists of classes below {len(source.classes)}: get real.json "
        f"from {_REAL_URL}, and use the 1000 classes of ImageNet"
    )
  labeled = RealSource(source, tuple(tuple(sorted(set(labels))) for labels in real))
  for name in _names(source):
    labeled.labels_of(name)
  return labeled


def _names(source: Source) -> Iterable[str]:
  """Names of the records: of a folder all, else of a few that are spread over the split."""
  if isinstance(source, FolderSource):
    return source.paths
  places = np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source)), dtype=int)
  return (source.record(int(place))["name"] for place in places)


def open_imagenet_v2(path: str | os.PathLike) -> DataSet:
  """Opens ImageNet-V2 (Recht et al. 2019) for evaluation: directories 0 to 999 as unpacked.

  Its only split is "test".  The directories' numbers are the classes, in numeric order, where a
  folder would sort them as text; classes.txt beside them, a name a line, names them.

  Raises:
    DataError: there are no such directories, one is empty, or classes.txt has another length.
  """
  root = Path(path)
  numbers = sorted(
      int(entry.name) for entry in (root.iterdir() if root.is_dir() else ())
      if entry.is_dir() and entry.name.isascii() and entry.name.isdigit()
  )
  if not numbers or numbers != list(range(len(numbers))):
    raise DataError(
        f"{root} does not hold the directories 0, 1, ... of ImageNet-V2: give the directory that "
        "its archive unpacks to, such as imagenetv2-matched-frequency-format-val"
    )
  paths, labels = [], []
  for number in numbers:
    found = sorted(
        entry.name for entry in (root / str(number)).iterdir()
        if entry.suffix.lower() in IMAGE_EXTENSIONS and not entry.name.startswith(".")
    )
    if not found:
      raise DataError(f"{root / str(number)} holds no images: unpack the archive again")
    paths += [f"{number}/{name}" for name in found]
    labels += [number] * len(found)
  classes = _class_names(root, len(numbers))
  digest = hashlib.sha256(json.dumps([classes, paths]).encode())
  for place in paths:
    digest.update(b"%d " % (root / place).stat().st_size)
  source = FolderSource(root.name, "test", classes, str(root), tuple(paths), tuple(labels))
  return DataSet(root.name, classes, {"test": source}, digest.hexdigest())


def _class_names(root: Path, count: int) -> tuple[str, ...]:
  file = root / "classes.txt"
  if not file.is_file():
    return tuple(map(str, range(count)))
  names = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
  if len(names) != count:
    raise DataError(f"{file} names {len(names)} classes, and there are {count} directories")
  return names

"""ImageNet's own archives: ILSVRC2012 (train, validation), and one tar a synset (21k)."""

import csv
import io
from pathlib import Path, PurePosixPath
import re
import tarfile

from vit_jax.data.prepare.items import Item, Listing, Rejected, input_files, is_image
from vit_jax.data.prepare.items import readable_names
from vit_jax.data.prepare.tar_members import members
from vit_jax.errors import ConfigError, DataError

_TRAIN, _VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_DEVKIT_FILES = ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
_SYNSET = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_LABELS = (
    f"{_DEVKIT}, LOC_val_solution.csv (Kaggle), or --val-labels=FILE with a WordNet id a line in "
    "the order of the images' numbers"
)


def list_imagenet(path: Path, each, *, val_labels: Path | None) -> Listing:
  """Lists ImageNet-1k or -21k; WordNet ids, sorted, are the classes.

  Args:
    path: directory with `ILSVRC2012_img_train.tar` and, optionally, `ILSVRC2012_img_val.tar` with
      its labels; or with nXXXXXXXX.tar files (winter-21 unpacked once, or fall-11); or one tar of
      them.
    each: maps a function over archives, in order, on several cores.
    val_labels: WordNet ids of the validation images; None to look for them in `path`.

  Raises:
    DataError: an archive is truncated, or labels of the validation images are missing.
  """
  directory = path if path.is_dir() else path.parent
  items, rejected, names = [], [], {}
  inner = _synset_tars(path, rejected)
  for found, bad in each(_list_synset, inner):
    items += found
    rejected += bad
  validation = path / _VALIDATION
  if path.is_dir() and validation.is_file():
    labels, names = _validation_labels(directory, val_labels)
    found, bad = _list_validation(str(validation), labels)
    items += found
    rejected += bad
  classes = tuple(sorted({item.labels[0] for item in items}))
  return Listing(items, rejected, classes, names or readable_names(directory, classes))


def _synset_tars(path: Path, rejected: list[Rejected]) -> list[tuple[str, str, int, int]]:
  """(synset, file, start, size) of every tar of one synset."""
  train = path / _TRAIN if path.is_dir() else path
  if train.is_file():
    found = []
    for member in members(str(train)):
      name = PurePosixPath(member.name)
      if member.fault or name.suffix != ".tar" or not _SYNSET.fullmatch(name.stem):
        rejected.append(Rejected("train", member.name, member.fault or "not a synset's tar"))
      else:
        found.append((name.stem, str(train), member.offset, member.size))
  else:
    found = [
        (file.stem, str(file), 0, file.stat().st_size)
        for file in input_files(path, ".tar") if _SYNSET.fullmatch(file.stem)
    ]
  if not found:
    raise DataError(
        f"--input={path} holds neither {_TRAIN} nor tars called nXXXXXXXX.tar; unpack "
        "winter21_whole.tar.gz once (tar -xzf), and leave the tars in it as they are"
    )
  return sorted(found)


def _list_synset(tar: tuple[str, str, int, int]):
  synset, file, start, size = tar
  items, rejected = [], []
  for member in members(file, start=start, size=size):
    name = f"{synset}/{member.name}"
    fault = member.fault or ("" if is_image(member.name) else "not an image by its name")
    if fault:
      rejected.append(Rejected("train", name, fault))
    else:
      items.append(Item("train", name, (synset,), file, member.offset, member.size))
  return items, rejected


def _list_validation(file: str, labels: list[str]):
  items, rejected = [], []
  for member in members(file):
    match = _NUMBER.search(member.name)
    fault = member.fault or ("" if match else "not named ILSVRC2012_val_NNNNNNNN")
    if fault:
      rejected.append(Rejected("validation", member.name, fault))
      continue
    if not 1 <= (number := int(match[1])) <= len(labels):
      raise DataError(f"{file}: {member.name} has no label among {len(labels)}: give {_LABELS}")
    label = (labels[number - 1],)
    items.append(Item("validation", member.name, label, file, member.offset, member.size))
  return items, rejected


def _validation_labels(directory: Path, file: Path | None) -> tuple[list[str], dict[str, str]]:
  """WordNet ids by number of the image, and what people call them where the file says so."""
  if file is not None:
    return _text_labels(file), {}
  if (directory / "LOC_val_solution.csv").is_file():
    return _kaggle_labels(directory / "LOC_val_solution.csv"), {}
  if (directory / _DEVKIT).is_file():
    return _devkit_labels(directory / _DEVKIT)
  raise DataError(f"{directory} has {_VALIDATION} without labels: put beside it {_LABELS}")


def _text_labels(file: Path) -> list[str]:
  try:
    labels = file.read_text().split()
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"--val-labels={file} cannot be read: {error}") from error
  if odd := next((x for x in labels if not _SYNSET.fullmatch(x)), None):
    raise DataError(f"--val-labels={file} has {odd!r}, which is no WordNet id such as n01440764")
  return labels


def _kaggle_labels(file: Path) -> list[str]:
  found = {}
  with open(file, newline="") as stream:
    for row in csv.reader(stream):
      match = _NUMBER.fullmatch(row[0]) if row else None
      if match:
        found[int(match[1])] = row[1].split()[0]
  if sorted(found) != list(range(1, len(found) + 1)) or not found:
    raise DataError(f"{file} does not list the images 1, 2, ...: download it again")
  return [found[number] for number in sorted(found)]


def _devkit_labels(file: Path) -> tuple[list[str], dict[str, str]]:
  from scipy.io import loadmat  # comes with scikit-learn; only this file needs it

  try:
    with tarfile.open(file, "r:*") as tar:
      parts = {
          PurePosixPath(member.name).name: tar.extractfile(member).read()
          for member in tar
          if member.isreg() and PurePosixPath(member.name).name in _DEVKIT_FILES
          and 0 <= member.size < 1 << 24
      }
    synsets = loadmat(io.BytesIO(parts[_DEVKIT_FILES[0]]), squeeze_me=True)["synsets"]
    ids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    names = {str(row["WNID"]): str(row["words"]) for row in synsets
             if not int(row["num_children"])}
    truth = parts[_DEVKIT_FILES[1]].split()
    return [ids[int(number)] for number in truth], names
  except (OSError, EOFError, tarfile.TarError, KeyError, ValueError, TypeError) as error:
    raise DataError(
        f"{file} is truncated or not the development kit ({type(error).__name__}: {error}): "
        "download it again"
    ) from error

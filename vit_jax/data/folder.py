"""A folder of one's own images as a data set."""

import collections
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Iterator, NamedTuple

from vit_jax.data.hold_out import content_hash, hold_out
from vit_jax.data.metadata import find_metadata, read_metadata
from vit_jax.data.source import DataSet, Record
from vit_jax.errors import DataError

_SPLITS = {
    "train": "train", "training": "train", "val": "validation", "validation": "validation",
    "test": "test",
}
IMAGE_EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .avif .jp2"
    .split()
)
_LAYOUTS = (
    "CLASS/*.jpg, or train/CLASS/*.jpg with validation/ or test/ beside it, or images with a "
    "metadata.csv that has the columns file_name and label, or labels with ; between them"
)


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
  """A split whose images are files below a directory.

  Attributes:
    paths: relative to `directory`, with "/" between parts.
    labels: one index into `classes` per path, the first of its labels.
    all_labels: ascending indices per path; None where each has one.
  """

  name: str
  split: str
  classes: tuple[str, ...]
  directory: str
  paths: tuple[str, ...]
  labels: tuple[int, ...]
  all_labels: tuple[tuple[int, ...], ...] | None = None

  @property
  def max_labels(self) -> int:
    return 1 if self.all_labels is None else max(map(len, self.all_labels))

  def __len__(self) -> int:
    return len(self.paths)

  def record(self, index: int) -> Record:
    """Reads one file.

    Raises:
      DataError: it has gone, or may not be read.
    """
    path = self.paths[index]
    record = {"image": _read(self.directory, path), "label": self.labels[index], "name": path}
    return record if self.all_labels is None else record | {"labels": self.all_labels[index]}


def open_folder(path: str | os.PathLike, *, held_out: float = 0.1) -> DataSet:
  """Opens a folder: its class directories or metadata name the labels.

  Layouts: `CLASS/*`; `{train|training|val|validation|test}/CLASS/*`; images with `metadata.csv`
  or `metadata.jsonl` (file_name, label or labels and, at the root, optionally split), at the root
  or in each split's directory.  Hidden files are skipped.  Classes are sorted by the bytes of their
  names.  Where there is neither validation nor test, a share of train is held out as
  "validation".

  Args:
    held_out: share of each class held out where no split is, in [0, 1).  Choosing it reads
      every file once.

  Raises:
    DataError: there is no such folder, no images, fewer than two classes, or faulty metadata.
    ConfigError: held_out is out of range.
  """
  root = Path(path).expanduser()
  if not root.is_dir():
    what = "is a file, not a folder" if root.exists() else "does not exist"
    raise DataError(f"{root} {what}: give the folder that holds the images, as {_LAYOUTS}")
  ignored = collections.defaultdict(list)
  images = _scan(root, ignored)
  classes = _classes(root, images)
  empty = set(ignored.pop("empty", ())) - set(classes)
  ignored["folders without images, so no classes"] = sorted(empty)
  notes = [f"{len(names)} {kind}: {_some(names)}" for kind, names in ignored.items() if names]
  if {image.split for image in images} == {"train"}:
    images, note = _hold_out(root, images, held_out)
    notes.append(note)
  return DataSet(
      name=root.resolve().name,
      classes=classes,
      splits={
          split: _source(root, split, classes, images)
          for split in ("train", "validation", "test")
          if any(image.split == split for image in images)
      },
      fingerprint=_fingerprint(images),
      notes=tuple(f"{root}: {note}" for note in notes),
  )


class _Image(NamedTuple):
  split: str
  path: str  # relative to the root
  size: int
  labels: tuple[str, ...]


# What a scan leaves out: kind -> names.
_Ignored = dict[str, list[str]]


def _scan(root: Path, ignored: _Ignored) -> list[_Image]:
  """Every image of every split, in the order of the paths' bytes."""
  if find_metadata(root):
    images = list(_scan_metadata(root, root, None, ignored))
  elif directories := _split_directories(root):
    images = []
    for split, name in directories.items():
      scan = _scan_metadata if find_metadata(root / name) else _scan_classes
      images += scan(root, root / name, split, ignored)
    ignored["folders beside the splits, ignored"] = [
        name for name in _subdirectories(root) if name not in directories.values()
    ]
  else:
    images = list(_scan_classes(root, root, "train", ignored))
  return sorted(images, key=lambda image: os.fsencode(image.path))


def _split_directories(root: Path) -> dict[str, str]:
  """Directory of each split; empty where `root` holds classes instead.

  A directory called train is a split only where directories or metadata lie in it; else it may
  be a class, as in a set of vehicles.
  """
  found = {}
  for name in _subdirectories(root):
    split = _SPLITS.get(name)
    if split is None or not (_subdirectories(root / name) or find_metadata(root / name)):
      continue
    if split in found:
      raise DataError(
          f"{root} has both {found[split]}/ and {name}/ for the {split} split: keep one"
      )
    found[split] = name
  return found


def _scan_classes(
    root: Path, directory: Path, split: str, ignored: _Ignored
) -> Iterator[_Image]:
  """Images of `directory/CLASS/*`."""
  for entry in _entries(directory):
    if not entry.is_dir():
      kind = "images outside any class folder" if _is_image(entry.name) else "files, not images"
      ignored[f"{kind}, ignored"].append(_below(root, directory, entry.name))
  for label in _subdirectories(directory):
    images = 0
    for entry in _entries(directory / label):
      path = _below(root, directory, f"{label}/{entry.name}")
      if entry.is_dir():
        ignored["folders inside class folders, ignored"].append(path)
      elif not _is_image(entry.name):
        ignored["files, not images, ignored"].append(path)
      else:
        images += 1
        yield _Image(split, path, _size(root / path), (label,))
    if not images:
      ignored["empty"].append(label)


def _scan_metadata(
    root: Path, directory: Path, split: str | None, ignored: _Ignored
) -> Iterator[_Image]:
  """Images that the directory's metadata lists; with `split` None their own column says which
  split is meant, or all are for training."""
  metadata = find_metadata(directory)
  listed = set()
  for row in read_metadata(metadata):
    own = split or row.split or "train"
    if own not in _SPLITS:
      raise DataError(
          f"{row.where}: the split is {own!r}; it must be one of {', '.join(_SPLITS)}"
      )
    path = _below(root, directory, row.file_name)
    listed.add(os.path.normpath(path))
    yield _Image(_SPLITS[own], path, _size(root / path, f"{row.where}: "), row.labels)
  ignored[f"images that {metadata.name} does not list, ignored"] += [
      path for path in _image_files(root, directory) if path not in listed
  ]


def _classes(root: Path, images: list[_Image]) -> tuple[str, ...]:
  """Names of the classes: those of the training images."""
  if not images:
    raise DataError(f"{root} holds no images in a layout that is known: {_LAYOUTS}")
  for label in {label for image in images for label in image.labels}:
    try:
      label.encode()
    except UnicodeEncodeError as error:
      raise DataError(
          f"{root}: the class name {label!r} is not valid UTF-8, so it can be neither shown nor"
          " stored: rename the class's folder"
      ) from error
  splits = {image.split for image in images}
  # Without images to train on, the folder is for evaluation, and every label counts.
  of_classes = "train" if "train" in splits else None
  trained = {
      label for image in images if of_classes in (None, image.split) for label in image.labels
  }
  for image in images:
    if unknown := set(image.labels) - trained:
      raise DataError(
          f"{root}: the class {min(unknown)!r} of {image.path} has no training images, so that "
          "no model could predict it: correct its name, or add or remove images"
      )
  if len(trained) < 2:
    raise DataError(
        f"{root} has only one class, {trained.pop()!r}, and a classifier needs two. A folder "
        f"is read as {_LAYOUTS}"
    )
  return tuple(sorted(trained, key=os.fsencode))


def _hold_out(
    root: Path, images: list[_Image], fraction: float
) -> tuple[list[_Image], str]:
  """Moves a share of train to validation; also returns what to say about it."""
  hashes = [content_hash(_read(root, image.path)) for image in images] if fraction else images
  labels = [image.labels[0] for image in images]
  held = hold_out(hashes, labels, [image.path for image in images], fraction=fraction)
  if fraction and not held.any():
    raise DataError(
        f"{root}: nothing can be held out for evaluation, each class has a single image: add "
        "images"
    )
  images = [
      image._replace(split="validation") if out else image for image, out in zip(images, held)
  ]
  note = (
      f"{100 * fraction:g} % ({held.sum()} images) held out by content hash, stratified by "
      "class"
  )
  single = [label for label, count in collections.Counter(labels).items() if count == 1]
  if single:
    note += f"; {len(single)} classes have a single image, kept for training: {_some(single)}"
  return images, note


def _source(root: Path, split: str, classes, images: list[_Image]) -> FolderSource:
  index = {name: i for i, name in enumerate(classes)}
  chosen = [image for image in images if image.split == split]
  every = tuple(tuple(sorted(index[name] for name in image.labels)) for image in chosen)
  return FolderSource(
      name=root.resolve().name,
      split=split,
      classes=classes,
      directory=str(root),
      paths=tuple(image.path for image in chosen),
      labels=tuple(labels[0] for labels in every),
      all_labels=every if any(len(labels) > 1 for labels in every) else None,
  )


def _fingerprint(images: list[_Image]) -> str:
  digest = hashlib.sha256()
  for image in sorted(images):
    labels = image.labels if len(image.labels) > 1 else image.labels[0]
    digest.update(json.dumps([*image[:-1], labels]).encode())
  return digest.hexdigest()


def _read(directory: str | Path, path: str) -> bytes:
  try:
    with open(os.path.join(directory, path), "rb") as file:
      return file.read()
  except OSError as error:
    raise DataError(
        f"cannot read {os.path.join(directory, path)}: {error.strerror}; restore the file or "
        "its permissions, or remove it from the data set"
    ) from error


def _size(path: Path, where: str = "") -> int:
  try:
    return path.stat().st_size
  except OSError as error:
    raise DataError(
        f"{where}cannot find {path}: {error.strerror}; restore the file, or remove what names "
        "it"
    ) from error


def _entries(directory: Path) -> list[os.DirEntry]:
  """What lies in a directory, sorted by name, without hidden files."""
  try:
    with os.scandir(directory) as found:
      visible = [entry for entry in found if not entry.name.startswith(".")]
  except OSError as error:
    raise DataError(
        f"cannot list {directory}: {error.strerror}; check its permissions"
    ) from error
  return sorted(visible, key=lambda entry: os.fsencode(entry.name))


def _subdirectories(directory: Path) -> list[str]:
  return [entry.name for entry in _entries(directory) if entry.is_dir()]


def _image_files(root: Path, directory: Path) -> list[str]:
  """Images anywhere below a directory, relative to the root."""
  return sorted(
      os.path.relpath(os.path.join(place, name), root)
      for place, _, names in os.walk(directory)
      for name in names
      if _is_image(name) and not name.startswith(".")
  )


def _is_image(name: str) -> bool:
  return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _below(root: Path, directory: Path, path: str) -> str:
  return path if directory == root else f"{directory.name}/{path}"


def _some(names: list[str]) -> str:
  """The first few names; bytes that are not UTF-8 are escaped, so that it can be printed."""
  text = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
  return text.encode(errors="backslashreplace").decode()

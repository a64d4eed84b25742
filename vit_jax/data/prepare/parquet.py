"""Parquet files of the Hugging Face Hub: a column of image files and one of labels."""

import contextlib
import functools
import json
from pathlib import Path

from vit_jax.data.prepare.items import Item, Listing, input_files, numbered_classes, split_of
from vit_jax.errors import ConfigError, DataError

_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label", "cls")


def list_parquet(path: Path, each) -> Listing:
  """Lists rows; the columns' features, which lie in the files, name the classes.

  Args:
    path: a file, or a directory of them; a name such as train-00000-of-00294 tells the split.
    each: maps a function over the files, in order, on several cores.

  Raises:
    ConfigError: pyarrow is not installed.
    DataError: a file is truncated, or has no column of images or labels.
  """
  library()
  items, classes = [], None
  files = input_files(path, ".parquet")
  names = [file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files]
  for found, own in each(_list_file, list(zip(map(str, files), names))):
    items += found
    if classes is None:
      classes = own
    elif own != classes:
      raise DataError(f"{path}: its files do not name the same classes; give those of one set")
  if classes is None:
    classes = numbered_classes(items)
  items = [item._replace(labels=(_class(classes, item),)) for item in items]
  return Listing(items, [], classes)


def read_row(path: str, row: int) -> bytes:
  """Returns the image file in a row; b"" where there is none."""
  _, starts, _, _ = _kept_open(path)
  group = next(i for i in reversed(range(len(starts))) if starts[i] <= row)
  return _group(path, group)[row - starts[group]]


def close_files() -> None:
  """Forgets what `read_row` keeps at hand."""
  _kept_open.cache_clear()
  _group.cache_clear()


def library():
  """Returns pyarrow.parquet, or raises ConfigError."""
  try:
    import pyarrow.parquet  # only this source needs it
  except ImportError as error:
    raise ConfigError(
        "--source=parquet needs pyarrow: pip install pyarrow"
    ) from error
  return pyarrow.parquet


def _class(classes, item: Item) -> str:
  index = int(item.labels[0])
  if not 0 <= index < len(classes):
    raise DataError(f"{item.path}: {item.name} has label {index} of {len(classes)} classes")
  return classes[index]


def _list_file(file_and_name: tuple[str, str]):
  path, name = file_and_name
  file, _, _, label = _open(path)
  with _readable(path):
    labels = file.read(columns=[label]).column(0).to_pylist()
  guess = max(1, Path(path).stat().st_size // max(1, len(labels)))
  if any(type(x) is not int for x in labels):
    raise DataError(f"{path}: the column {label} does not hold whole numbers in every row")
  split = split_of(name)
  return [
      Item(split, f"{name}/{row}", (str(x),), path, row, guess) for row, x in enumerate(labels)
  ], _class_names(file, label)


def _class_names(file, label: str) -> tuple[str, ...] | None:
  metadata = (file.schema_arrow.metadata or {}).get(b"huggingface")
  try:
    features = json.loads(metadata)["info"]["features"] if metadata else {}
    names = features.get(label, {}).get("names")
  except (ValueError, KeyError, AttributeError, TypeError):
    return None
  return tuple(map(str, names)) if names else None


@contextlib.contextmanager
def _readable(path: str):
  """Turns what pyarrow raises into a DataError."""
  try:
    yield
  except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
    raise DataError(
        f"{path} cannot be read as parquet ({error}): it is truncated or damaged; download it "
        "again"
    ) from error


def _open(path: str):
  """(file, first row of each group, column of images, column of labels)."""
  with _readable(path):
    file = library().ParquetFile(path)
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) > (size := Path(path).stat().st_size):
      raise ValueError(f"it claims {sum(counts):,} rows in {size:,} bytes")
  names = file.schema_arrow.names
  image, label = (next((n for n in want if n in names), None) for want in (_IMAGES, _LABELS))
  if image is None or label is None:
    raise DataError(
        f"{path} has the columns {', '.join(names)}; it needs one of {', '.join(_IMAGES)} and "
        f"one of {', '.join(_LABELS)}"
    )
  return file, [sum(counts[:i]) for i in range(len(counts))], image, label


@functools.lru_cache(maxsize=1)
def _kept_open(path: str):
  return _open(path)


@functools.lru_cache(maxsize=1)
def _group(path: str, group: int) -> list[bytes]:
  """The image files of one group of rows; neighbours are read together."""
  file, _, column, _ = _kept_open(path)
  with _readable(path):
    rows = file.read_row_group(group, columns=[column]).column(0).to_pylist()
  return [(row.get("bytes") if isinstance(row, dict) else row) or b"" for row in rows]

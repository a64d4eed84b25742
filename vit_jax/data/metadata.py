"""metadata.csv and metadata.jsonl: which image has which labels."""

import csv
import json
import os
from pathlib import Path
from typing import Iterator, NamedTuple

from vit_jax.errors import DataError

_NAMES = ("metadata.csv", "metadata.jsonl")


class Row(NamedTuple):
  """One listed image.

  Attributes:
    where: file and line, for messages.
    file_name: relative to the directory of the metadata.
    labels: of the column label, or of labels, which are several: a list in JSON, in CSV separated
      by semicolons; without repetitions.
    split: as written; None where there is no such column.
  """

  where: str
  file_name: str
  labels: tuple[str, ...]
  split: str | None


def find_metadata(directory: Path) -> Path | None:
  """Returns the metadata file of a directory, or None.

  Raises:
    DataError: there are two.
  """
  found = [directory / name for name in _NAMES if (directory / name).is_file()]
  if len(found) > 1:
    raise DataError(f"{directory} has both {' and '.join(_NAMES)}: keep one")
  return found[0] if found else None


def read_metadata(metadata: Path) -> Iterator[Row]:
  """Yields the rows of a metadata file.

  Raises:
    DataError: unreadable, a missing column or value, or an image that is listed twice.
  """
  seen = {}
  for line, fields in _lines(metadata):
    where = f"{metadata}, line {line}"
    row = Row(
        where, _field(fields, "file_name", where), _labels(fields, where),
        _field(fields, "split", where) if "split" in fields else None,
    )
    name = os.path.normpath(row.file_name)
    if os.path.isabs(name) or name.partition(os.sep)[0] == os.pardir:
      raise DataError(
          f"{where}: {row.file_name} leads out of {metadata.parent}: name files in it"
      )
    if name in seen:
      raise DataError(
          f"{where}: {name} is listed in line {seen[name]} already; keep one of them"
      )
    seen[name] = line
    yield row


def _lines(metadata: Path) -> Iterator[tuple[int, dict]]:
  read = _csv_lines if metadata.suffix == ".csv" else _json_lines
  try:
    # utf-8-sig: spreadsheets put a byte order mark in front.
    with open(metadata, encoding="utf-8-sig", newline="") as file:
      yield from read(file, metadata)
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise DataError(f"{metadata} cannot be read as UTF-8 text: {error}") from error


def _csv_lines(file, metadata: Path) -> Iterator[tuple[int, dict]]:
  reader = csv.DictReader(file)
  names = set(reader.fieldnames or ())
  missing = {"file_name", "label"} - names - ({"label"} if "labels" in names else set())
  if missing:
    raise DataError(
        f"{metadata}, line 1: no column {' and no column '.join(sorted(missing))}; the first "
        "line must name the columns file_name and label, or labels"
    )
  for row in reader:
    yield reader.line_num, row


def _json_lines(file, metadata: Path) -> Iterator[tuple[int, dict]]:
  for line, text in enumerate(file, start=1):
    if not text.strip():
      continue
    try:
      row = json.loads(text)
    except (ValueError, RecursionError) as error:
      raise DataError(f"{metadata}, line {line} is not JSON: {error}") from error
    if not isinstance(row, dict):
      raise DataError(
          f"{metadata}, line {line} is not an object such as "
          '{"file_name": "a.jpg", "label": "cat"}'
      )
    yield line, row


def _labels(row: dict, where: str) -> tuple[str, ...]:
  if "label" in row and "labels" in row:
    raise DataError(f"{where}: there are both label and labels: keep one of the columns")
  if "labels" not in row:
    return (_field(row, "label", where),)
  labels = row["labels"]
  if not isinstance(labels, list):
    labels = _field(row, "labels", where).split(";")
  labels = tuple(dict.fromkeys(text for label in labels if (text := str(label).strip())))
  if not labels:
    raise DataError(f"{where}: labels is empty; fill it in, or remove the line")
  return labels


def _field(row: dict, key: str, where: str) -> str:
  value = row.get(key)
  if value is None or not str(value).strip():
    raise DataError(f"{where}: {key} is missing or empty; fill it in, or remove the line")
  return str(value).strip()

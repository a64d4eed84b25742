"""TFDS data sets that were prepared as ArrayRecord, read without TensorFlow."""

import dataclasses
import difflib
import hashlib
import json
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from vit_jax.data.decode import UnreadableImage, decode
from vit_jax.data.shards import allow_open_files, check_shard
from vit_jax.data.source import ArraySource, DataSet, Record, Source
from vit_jax.data.split import subset
from vit_jax.errors import ConfigError, DataError

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_LABELS = ("label", "labels", "real_label")
# Fifty thousand images of 32 pixels are 154 MB.
_MAX_DECODED_BYTES = 512 * 1024**2
# How many classes one image may have is known only once all are read; ReaL's have up to 11.
_MAX_LABELS = 32
# Where a features.json names classes; "type" is of older ones.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_NAMES = ("file_name", "filename", "id", "tfds_id")


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
  """A split of a TFDS data set, its images as the raw bytes of their files.

  Attributes:
    data: TFDS's own random-access source.
    label_key: feature with the label; a sequence makes records with "labels".
    max_labels: 1, or the limit of a sequence.
    name_key: feature with the file's name; None where there is none.
  """

  name: str
  split: str
  classes: tuple[str, ...]
  data: Any
  label_key: str
  name_key: str | None
  max_labels: int

  def __len__(self) -> int:
    return len(self.data)

  def record(self, index: int) -> Record:
    """Reads one example.

    Raises:
      DataError: its shard has gone or is damaged there.
    """
    try:
      fields = self.data[int(index)]
    except Exception as error:  # ArrayRecord raises nearly anything
      raise DataError(
          f"{self.name}/{self.split}, record {index}, cannot be read: {error}; prepare the data "
          "set again"
      ) from error
    name = fields[self.name_key] if self.name_key else f"{self.name}/{self.split}/{index}"
    name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    label = fields[self.label_key]
    if np.ndim(label):
      labels = tuple(sorted(map(int, label)))
      # An example without a label, as some of ReaL's are, has the class -1: it counts nowhere.
      first = labels[0] if labels else -1
      return {"image": fields["image"], "label": first, "labels": labels, "name": name}
    return {"image": fields["image"], "label": int(label), "name": name}


def open_tfds(spec: str, *, path: str | None, held_out: float) -> DataSet:
  """Opens `NAME[/CONFIG][:VERSION]` as it was prepared below a directory of TFDS.

  Args:
    spec: as TFDS writes it; without a version, the newest that lies there.
    path: TFDS's directory; None for $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    held_out: share at the end of train that becomes validation where the data has neither
      validation nor test, in [0, 1).  TFDS shuffles when it prepares, so it is a fair sample.

  Raises:
    ConfigError: the name has another form, or tensorflow-datasets is not installed.
    DataError: not prepared there, not as ArrayRecord, a shard is missing or truncated, or there
      is no image or label.
  """
  data_dir = path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  directory = _find(spec, Path(data_dir).expanduser())
  return open_tfds_directory(directory, held_out=held_out, decode_small=True)


def open_tfds_directory(directory: Path, *, held_out: float, decode_small: bool) -> DataSet:
  """Opens the directory of one prepared version, `DATA_DIR/NAME[/CONFIG]/VERSION`.

  Args:
    decode_small: whether a set that is small once decoded is held in memory.
  """
  tfds = _library()
  info = _read_info(directory)
  _check_features(directory / "features.json")
  builder = tfds.builder_from_directory(str(directory))
  features = builder.info.features
  if "image" not in features or not (label_keys := [k for k in _LABELS if k in features]):
    raise DataError(
        f"{directory} has the features {', '.join(features)}; a classifier needs image and label"
    )
  label = features[label_keys[0]]
  classes = tuple(getattr(getattr(label, "feature", label), "names", ()))
  if not classes:
    raise DataError(f"{directory}: {label_keys[0]} does not name classes, which a classifier needs")
  name_key = next((key for key in _NAMES if key in features), None)
  name = f"tfds:{info['name']}"
  sources = {}
  allow_open_files(sum(len(x.filepaths) for x in builder.info.splits.values()))
  for split, ours in _SPLITS.items():
    if split in builder.info.splits:
      info_of = builder.info.splits[split]
      for file, examples in zip(info_of.filepaths, info_of.shard_lengths):
        check_shard(str(file), examples=examples)
      data = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
      source = TfdsSource(
          name, ours, classes, data, label_keys[0], name_key,
          max_labels=_MAX_LABELS if hasattr(label, "feature") else 1,
      )
      sources[ours] = _in_memory(source, features["image"].shape) if decode_small else source
  if not sources:
    raise DataError(f"{directory} has none of the splits {', '.join(_SPLITS)}")
  notes = ()
  if list(sources) == ["train"] and held_out:
    whole, count = sources["train"], round((1 - held_out) * len(sources["train"]))
    sources["train"] = subset(whole, range(count), split="train")
    sources["validation"] = subset(whole, range(count, len(whole)), split="validation")
    notes = (f"{name}: the last {100 * held_out:g} % of train held out",)
  described = [info, classes, held_out if notes else None]
  fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
  return DataSet(name, classes, sources, fingerprint, notes, shuffled=True)


def _in_memory(source: TfdsSource, shape: tuple[int | None, ...]) -> Source:
  """A small set, such as CIFAR-10, decoded; others as they are."""
  known = all(shape[:2]) and source.max_labels == 1
  if not known or len(source) * shape[0] * shape[1] * 3 > _MAX_DECODED_BYTES:
    return source
  images = np.empty((len(source), *shape[:2], 3), np.uint8)
  labels = np.empty(len(source), np.int32)
  for index in range(len(source)):
    record = source.record(index)
    try:
      images[index] = decode(record["image"], exif_orientation=False)
    except UnreadableImage as error:
      raise DataError(f"{source.name}/{source.split}, record {index}: {error.reason}") from error
    labels[index] = record["label"]
  return ArraySource(source.name, source.split, source.classes, images, labels)


def _library():
  try:
    import tensorflow_datasets  # half a second, and only these data sets need it
  except ImportError as error:
    raise ConfigError(
        "reading tfds: data sets needs tensorflow-datasets, though not TensorFlow: "
        "pip install tensorflow-datasets"
    ) from error
  return tensorflow_datasets


def _find(spec: str, data_dir: Path) -> Path:
  """Directory of the version that is meant."""
  match = re.fullmatch(r"(\w+)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?", spec)
  if not match:
    raise ConfigError(
        f"config.input.dataset is 'tfds:{spec}'; write tfds:NAME[/CONFIG][:VERSION], as in "
        "tfds:imagenet2012:5.1.0"
    )
  name, config, version = match.groups()
  parent = data_dir / name / config if config else data_dir / name
  if not parent.is_dir():
    there = sorted(p.name for p in data_dir.iterdir()) if data_dir.is_dir() else []
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"; did you mean {near[0]}?" if near and near[0] != name else "."
    raise DataError(
        f"{parent} does not exist{hint} Prepare the data set as ArrayRecord (tfds build {name} "
        "--file_format=array_record), and give TFDS's directory as config.input.path"
    )
  versions = sorted(
      (tuple(map(int, p.name.split("."))), p)
      for p in parent.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", p.name)
  )
  chosen = [p for _, p in versions if version in (None, p.name)]
  if not chosen:
    have = ", ".join(p.name for _, p in versions) or "none"
    configs = sorted(p.name for p in parent.iterdir() if p.is_dir())
    raise DataError(
        f"{parent} has no version {version or 'that is prepared'}: versions {have}; directories "
        f"{', '.join(configs) or 'none'}. Name one as tfds:NAME/CONFIG:VERSION"
    )
  return chosen[-1]


def _check_features(file: Path) -> None:
  """Holds that features are of TFDS's own classes: it would import whatever module is named."""
  try:
    classes = _class_names(json.loads(file.read_text()) if file.is_file() else {})
  except (OSError, ValueError, RecursionError) as error:
    raise DataError(f"{file} cannot be read: {error}; prepare the data set again") from error
  if foreign := sorted({name for name in classes if not name.startswith("tensorflow_datasets.")}):
    raise DataError(
        f"{file} names code that would be run, {', '.join(foreign)}: only features of "
        "tensorflow_datasets are read"
    )


def _class_names(value) -> list[str]:
  """Every class that a features.json names, at any depth."""
  inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  found = [name for each in inside for name in _class_names(each)]
  if isinstance(value, dict):
    found += [value[key] for key in _CLASS_KEYS if isinstance(value.get(key), str)]
  return found


def _read_info(directory: Path) -> dict:
  """What dataset_info.json says that makes the data what it is."""
  try:
    info = json.loads((directory / "dataset_info.json").read_text())
    keys = ("name", "configName", "version", "fileFormat")
    splits = [
        {k: split[k] for k in ("name", "shardLengths", "numBytes") if k in split}
        for split in info["splits"]
    ]
    found = {key: info[key] for key in keys if key in info} | {"splits": splits}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DataError(f"{directory} is no prepared TFDS data set: {error}") from error
  if found.get("fileFormat") != "array_record":
    raise DataError(
        f"{directory} is stored as {found.get('fileFormat', 'tfrecord')}, which cannot be read "
        "by index: prepare it again as ArrayRecord (tfds build --file_format=array_record)"
    )
  return found

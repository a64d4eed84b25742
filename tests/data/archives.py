"""Tiny images and archives for the tests of sources and of prepare."""

import io
import tarfile

import numpy as np
from PIL import Image


def jpeg(seed: int, size=(12, 10), **options) -> bytes:
  """A JPEG unlike those of other seeds."""
  pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", **options)
  return file.getvalue()


def tar(path, members):
  """Writes (name, bytes or TarInfo) pairs, or bytes by name, as a tar; returns its bytes."""
  data = tar_bytes(members)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return data


def tar_bytes(members) -> bytes:
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as archive:
    for name, data in members.items() if isinstance(members, dict) else members:
      if isinstance(data, tarfile.TarInfo):
        archive.addfile(data)
      else:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
  return file.getvalue()


def link(name: str, target: str, kind=tarfile.SYMTYPE) -> tarfile.TarInfo:
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, target
  return info


def contents(source):
  """{name: (image, class names)} of all records."""
  found = {}
  for i in range(len(source)):
    record = source.record(i)
    labels = record.get("labels", (record["label"],))
    found[record["name"]] = (record["image"], tuple(source.classes[x] for x in labels))
  assert len(found) == len(source)
  return found

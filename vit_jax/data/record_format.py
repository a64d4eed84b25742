"""How an example lies in a shard: a small header, then the image file's own bytes.

    uint32  length of the name in bytes, little-endian as all of it
    uint32  number of labels
    int32   labels, ascending
    utf-8   name
    ...     the image file
"""

import struct
from typing import Sequence

import numpy as np

from vit_jax.data.source import Record
from vit_jax.errors import DataError

_HEAD = struct.Struct("<II")


def encode_record(image: bytes, labels: Sequence[int], name: str) -> bytes:
  """Returns the bytes of one example."""
  # Names of files may hold bytes that are not UTF-8.
  text = name.encode(errors="backslashreplace")
  head = _HEAD.pack(len(text), len(labels))
  return b"".join((head, np.asarray(labels, "<i4").tobytes(), text, image))


def decode_record(data: bytes, *, where: str) -> Record:
  """The inverse of `encode_record`; "label" is the first of "labels".

  Raises:
    DataError: the bytes are not such an example; it names `where`.
  """
  try:
    name_length, count = _HEAD.unpack_from(data)
    name_start = _HEAD.size + 4 * count
    start = name_start + name_length
    if not count or start > len(data):
      raise ValueError("the header does not fit its record")
    labels = struct.unpack_from(f"<{count}i", data, _HEAD.size)
    name = data[name_start:start].decode()
  except (struct.error, ValueError) as error:
    raise DataError(
        f"{where} is not a record of vit_jax ({error}): prepare the data set again"
    ) from error
  return {"image": data[start:], "label": labels[0], "labels": labels, "name": name}

"""Identical images become one record with the labels of all."""

import functools
import hashlib
import os
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np

from vit_jax.data.prepare import content
from vit_jax.data.prepare.items import Item
from vit_jax.data.prepare.workers import Workers

_CHUNK = 2000
_DIGEST = 32


def merge_duplicates(
    items: Sequence[Item], *, source: str, directory: Path, workers: Workers, say
) -> list[Item]:
  """Returns the items with those of equal bytes merged, within a split, into the first.

  Reads every image once.  Digests are kept in `directory`, so that a repeated command does not
  read them again.

  Args:
    say: function of (images done, images in all) that is called now and then.
  """
  directory.mkdir(exist_ok=True)
  chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
  jobs = [(chunk, str(directory / f"{i:06d}.sha256")) for i, chunk in enumerate(chunks)]
  digests, done = [], 0
  for part in workers.ordered(functools.partial(_digests, source=source), jobs):
    digests += [part[i : i + _DIGEST] for i in range(0, len(part), _DIGEST)]
    done += len(part) // _DIGEST
    say(done, len(items))
  return list(_merged(items, digests))


def _merged(items: Sequence[Item], digests: list[bytes]) -> Iterator[Item]:
  groups: dict[tuple[str, bytes], list[int]] = {}
  for index, (item, digest) in enumerate(zip(items, digests, strict=True)):
    groups.setdefault((item.split, digest), []).append(index)
  for members in groups.values():
    first = items[members[0]]
    if len(members) > 1:
      labels = tuple(sorted({label for i in members for label in items[i].labels}))
      aliases = tuple(items[i].name for i in members[1:])
      first = first._replace(labels=labels, aliases=aliases)
    yield first


def _digests(job: tuple[Sequence[Item], str], *, source: str) -> bytes:
  """sha256 of each item, one after the other; kept in a file that ends with their own sha256."""
  items, path = job
  if os.path.exists(path):
    with open(path, "rb") as file:
      kept = file.read()
    data, check = kept[:-_DIGEST], kept[-_DIGEST:]
    if len(data) == len(items) * _DIGEST and hashlib.sha256(data).digest() == check:
      return data
  data = b"".join(content.digest(content.read(item, source)) for item in items)
  with open(path + ".tmp", "wb") as file:
    file.write(data + hashlib.sha256(data).digest())
  os.replace(path + ".tmp", path)
  return data

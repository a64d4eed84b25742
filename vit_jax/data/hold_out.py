"""A held-out split for data that comes without one."""

import collections
import hashlib
from typing import Sequence

import numpy as np

from vit_jax.errors import ConfigError


def content_hash(content: bytes) -> str:
  """Returns the sha256 of an image's bytes, in hexadecimal."""
  return hashlib.sha256(content).hexdigest()


def hold_out(
    hashes: Sequence[str], labels: Sequence[int], names: Sequence[str], *, fraction: float
) -> np.ndarray:
  """Chooses the records that are held out, as a pure function of their contents.

  Of each class with n >= 2 records, max(1, round(fraction * n)) with the smallest hashes; at
  least one stays on each side, so a class with a single record keeps it for training.  Where
  equal contents would be parted, the cut moves to the nearest place between different contents,
  so that no image of a class is both trained on and held out; only a class of one content alone
  is cut by name.

  Args:
    hashes: `content_hash` of each record.
    labels: class of each record.
    names: unique names, which break ties.
    fraction: share of each class, in [0, 1); 0 holds nothing out.

  Returns:
    bool `[N]`, True where held out.

  Raises:
    ConfigError: fraction is not in [0, 1).
  """
  check_fraction(fraction)
  held = np.zeros(len(hashes), bool)
  members = collections.defaultdict(list)
  for index, label in enumerate(labels):
    members[label].append(index)
  for indices in members.values():
    if fraction > 0 and len(indices) > 1:
      indices.sort(key=lambda i: (hashes[i], names[i]))
      held[indices[: _cut([hashes[i] for i in indices], fraction)]] = True
  return held


def check_fraction(fraction: float) -> None:
  """Raises ConfigError unless a share to be held out is in [0, 1)."""
  if not 0 <= fraction < 1:
    raise ConfigError(
        f"the share held out for evaluation is {fraction}; give one from 0 up to, but below, 1"
    )


def _cut(hashes: list[str], fraction: float) -> int:
  """How many of a class's sorted hashes are held out: the place between different contents that
  is nearest to the wanted number, the smaller of two."""
  size = len(hashes)
  wanted = min(max(1, round(fraction * size)), size - 1)
  places = [i for i in range(1, size) if hashes[i - 1] != hashes[i]]
  return min(places, key=lambda place: (abs(place - wanted), place), default=wanted)

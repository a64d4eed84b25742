"""Damage to the files of a checkpoint, and its repair."""

import contextlib
import pathlib
import random
from typing import Iterator


def files_of(directory: pathlib.Path) -> list[pathlib.Path]:
  """Every file below a directory, sorted."""
  return sorted(path for path in pathlib.Path(directory).rglob("*") if path.is_file())


def positions(
    directory: pathlib.Path, count: int, *, seed: int
) -> list[tuple[pathlib.Path, int, int]]:
  """(file, position, mask other than 0) of at least `count` bytes: a few of each file, then any."""
  dice, files = random.Random(seed), [path for path in files_of(directory) if path.stat().st_size]
  sizes = [path.stat().st_size for path in files]
  chosen = files + dice.choices(files, sizes, k=max(0, count - len(files)))
  return [
      (path, dice.randrange(path.stat().st_size), dice.randrange(1, 256)) for path in chosen
  ]


def flip(path: pathlib.Path, position: int, mask: int = 1) -> None:
  """Inverts the bits of a mask in one byte; twice is not at all."""
  with path.open("r+b") as file:
    file.seek(position)
    byte = file.read(1)[0]
    file.seek(position)
    file.write(bytes([byte ^ mask]))


@contextlib.contextmanager
def flipped(path: pathlib.Path, position: int, mask: int) -> Iterator[None]:
  """A context in which one byte is another."""
  flip(path, position, mask)
  try:
    yield
  finally:
    flip(path, position, mask)

"""Images that could not be read: counted over a run, listed in its directory, and limited."""

import json
import os
import threading
from typing import Sequence

from vit_jax.bucket.path import is_bucket, place
from vit_jax.bucket.segments import Segments, segments
from vit_jax.errors import DataError, warn

# A share of fewer examples than these says little, unless they are a whole epoch.
_ENOUGH = 1000


class BadRecords:
  """Lists unreadable records, each once; safe to share between threads."""

  def __init__(self, file: str | os.PathLike | None = None, *, max_fraction: float = 1.0):
    """Reads the file, where it exists: what it lists is known already.

    Args:
      file: a JSON object {"name", "reason"} a line is appended for each record; None for none.  In
        a bucket they go into the directory of that name without its ending (`bucket.segments`).
      max_fraction: share of the examples seen above which a `Watch` raises.
    """
    self.max_fraction = max_fraction
    self._lock = threading.Lock()
    self._file = None if file is None else place(file)
    self._segments: Segments | None = None
    self._unwritten, self._failed = "", False
    self._names: set[str] = set()
    if self._file is not None and is_bucket(self._file):
      directory = self._file.with_suffix("")
      for segment in segments(directory):
        self._names.update(_read(segment))
      self._segments = Segments(directory)
    elif self._file is not None and self._file.exists():
      self._names.update(_read(self._file))

  def add(self, name: str, reason: str) -> None:
    """Counts and lists a record once, and says so once on stderr."""
    with self._lock:
      if name in self._names:
        return
      self._names.add(name)
      self._unwritten += json.dumps({"name": name, "reason": reason}) + "\n"
      warn(f"unreadable image: {name}: {reason}")
      self._write()

  def close(self) -> None:
    """Writes what a bucket has not been given yet, or what a disk did not take."""
    with self._lock:
      self._write(last=True)

  def _write(self, *, last: bool = False) -> None:
    """Lists what waits; what cannot be written is said, once, and waits for the next time."""
    try:
      if self._segments is not None:
        text, self._unwritten = self._unwritten, ""  # it keeps what it cannot give away
        if text:
          self._segments.write(text)
        if last:
          self._segments.close()
      elif self._file is not None and self._unwritten:
        _append(self._file, self._unwritten)
    except OSError as error:
      if not self._failed:
        warn(
            f"the list of unreadable images, {self._file}, cannot be written:"
            f" {error.strerror or error}. It waits in memory."
        )
      self._failed = True
      return
    self._unwritten, self._failed = "", False

  @property
  def count(self) -> int:
    """How many different records were unreadable."""
    return len(self._names)

  def watch(self, *, epoch: int) -> "Watch":
    """Returns a watch over one stream, of so many examples an epoch."""
    return Watch(self, after=min(_ENOUGH, epoch))


class Watch:
  """Counts what comes by in one stream, and ends it when too much of it is unreadable."""

  def __init__(self, bad: BadRecords, *, after: int):
    """Raises for nothing until `after` examples have been seen."""
    self._bad, self._after = bad, after
    self._seen, self._unreadable, self._first = 0, 0, []

  def add(self, examples: int, unreadable: Sequence[tuple[str, str]]) -> None:
    """Takes note of a batch and of the (name, reason) of what is unreadable in it.

    Raises:
      DataError: more than `max_fraction` of all examples seen are unreadable.
    """
    self._seen += examples
    for name, reason in unreadable:
      self._bad.add(name, reason)
      self._unreadable += 1
      if len(self._first) < 3 and (name, reason) not in self._first:
        self._first.append((name, reason))
    limit = self._bad.max_fraction
    if self._seen >= self._after and self._unreadable > limit * self._seen:
      first = "; ".join(f"{name}: {reason}" for name, reason in self._first)
      raise DataError(
          f"{self._unreadable} of {self._seen} images were unreadable, more than "
          f"config.input.max_bad_fraction={limit:g} allows; the first: {first}. Repair or remove "
          "them, or raise that limit"
      )


def _append(file, text: str) -> None:
  """All of a text or, where the disk has no room for it, nothing."""
  with open(file, "ab", buffering=0) as stream:
    before = stream.seek(0, os.SEEK_END)
    content = text.encode()
    try:
      while content:
        content = content[stream.write(content):]
    except OSError:
      stream.truncate(before)
      raise


def _read(file) -> list[str]:
  """Names in the list of an earlier run; a line that was torn by its end is cut off."""
  text = file.read_text()
  whole = text[: text.rfind("\n") + 1]
  if whole != text:
    file.write_text(whole)
  try:
    return [json.loads(line)["name"] for line in whole.splitlines()]
  except (ValueError, KeyError, TypeError) as error:
    raise DataError(
        f"{file} is damaged ({error}): move it away; what is unreadable is listed again"
    ) from error

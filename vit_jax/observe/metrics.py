"""A run's metrics: `metrics.jsonl`, which is the record, and TensorBoard events beside it.

In a bucket the record is `metrics/00000.jsonl`, ... (`bucket.segments`), and there are no events.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import time
from typing import Iterator

from vit_jax.bucket import atomic
from vit_jax.bucket.path import BucketPath, is_bucket, place
from vit_jax.bucket.segments import Segments, segments
from vit_jax.errors import ConfigError, warn, WriteFailed
from vit_jax.observe.events import EventFile
from vit_jax.observe.patient_lines import PatientLines

NAME = "metrics.jsonl"
SEGMENTS = "metrics"
EVENTS = "tensorboard"


class MetricsWriter:
  """Appends a run's metrics; after a restart each step's metrics are there once.

  A context that closes the files at its end.  Several processes: only process 0 makes one.
  """

  def __init__(self, directory: str | os.PathLike, *, resume_step: int):
    """Drops what lies after the step that the run goes on from.

    Args:
      directory: of the run; made where it is missing.
      resume_step: the step that was restored, 0 for a new run; later lines are written again.

    Raises:
      WriteFailed: the disk is full or not writable; so do `flush` and `close`.
    """
    self._directory = place(directory)
    self._events: EventFile | None = None
    self._first_event = resume_step + 1
    self._refused = False  # by the disk, which was said
    with self._disk():
      self._directory.mkdir(parents=True, exist_ok=True)
      for path in reversed(_records(self._directory)):
        _drop_after(path, resume_step)
      if is_bucket(directory):
        print(f"metrics: in {self._directory / SEGMENTS}; TensorBoard's events are left out there")
        self._lines = Segments(self._directory / SEGMENTS)
      else:
        self._lines = PatientLines(self._directory / NAME)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    if is_bucket(self._directory) and kind is not None and issubclass(kind, ConfigError):
      return  # the run is another process's now, and so is the object with the last lines
    try:
      self.close()
    except WriteFailed:
      if kind is None:  # else what ended the context is the cause, or says more
        raise

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes one line, `{"step", "time" (seconds since the epoch), **values}`, and flushes it.

    A value that is not finite becomes null, as JSON has no NaN, and no TensorBoard point.  A bucket
    may have the line only with a later one, or after `flush`; so may a disk that takes nothing now,
    which is said.
    """
    now = time.time()
    numbers = {name: float(value) for name, value in values.items()}
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    line = {"step": step, "time": round(now, 3)} | {name: finite.get(name) for name in numbers}
    try:
      self._lines.write(json.dumps(line, allow_nan=False) + "\n")
      self._refused = False
    except OSError as error:
      self._say_once(error)
    if not is_bucket(self._directory):
      self._write_events(step, finite, when=now)

  def flush(self) -> None:
    """Returns when all that was written would survive this machine; to be called before a step is
    saved, because what comes before that step is not written again."""
    with self._disk():
      self._lines.sync()
      if self._events is not None:
        self._events.flush()

  def close(self) -> None:
    """Flushes the events and closes both files."""
    with self._disk(), contextlib.ExitStack() as stack:
      stack.callback(self._lines.close)
      if self._events is not None:
        stack.callback(self._events.close)

  def _write_events(self, step: int, values: dict[str, float], *, when: float) -> None:
    """Adds points; where the disk takes none, these are left out, and a new file follows."""
    try:
      if self._events is None:
        self._events = EventFile(self._directory / EVENTS, first_step=self._first_event)
      self._events.write(step, values, when=when)
    except OSError as error:
      self._say_once(error)
      self._events, self._first_event = None, step

  def _say_once(self, error: OSError) -> None:
    """Until a line is written again."""
    if not self._refused:
      warn(
          f"The metrics in {self._directory} cannot be written: {error.strerror or error}. They"
          " wait in memory until a later line can."
      )
    self._refused = True

  @contextlib.contextmanager
  def _disk(self) -> Iterator[None]:
    """Turns an OSError into a WriteFailed."""
    try:
      yield
    except OSError as error:
      code = errno.errorcode.get(error.errno, "error")
      raise WriteFailed(
          f"The metrics in {self._directory} cannot be written: {error.strerror or error} ({code})."
          " Make room or restore access there"
      ) from error


def read_metrics(directory: str | os.PathLike) -> list[dict]:
  """The lines of a run's metrics, oldest first; those that are torn are left out.

  Raises:
    OSError: they cannot be read.
  """
  found = [line for path in _records(place(directory)) for _, line in _parsed(path)]
  # A run that was moved to a bucket or from one has both kinds of files.
  return sorted(found, key=lambda line: line["step"])


def _records(directory: pathlib.Path | BucketPath) -> list[pathlib.Path | BucketPath]:
  """The files with a run's metrics."""
  whole = directory / NAME
  return ([whole] if whole.exists() else []) + segments(directory / SEGMENTS)


def _parsed(path: pathlib.Path | BucketPath) -> list[tuple[str, dict]]:
  """Text and content of each whole line; empty where the file has gone meanwhile."""
  found = []
  try:
    whole = path.read_text(encoding="utf-8", errors="replace")
  except FileNotFoundError:
    return found
  for text in whole.splitlines():
    try:
      line = json.loads(text)
    except ValueError:
      continue
    if isinstance(line, dict) and isinstance(line.get("step"), int):
      found.append((text, line))
  return found


def _drop_after(path: pathlib.Path | BucketPath, step: int) -> None:
  """Rewrites the file without torn lines and without those after `step`, at once."""
  kept = [text + "\n" for text, line in _parsed(path) if line["step"] <= step]
  if is_bucket(path) and not kept:
    path.unlink()
  elif not is_bucket(path) or path.read_text() != "".join(kept):
    atomic.write_text(path, "".join(kept))

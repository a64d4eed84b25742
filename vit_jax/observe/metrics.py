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
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.observe.events import EventFile

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
      CheckpointError: the disk is full or not writable; so do all methods.
    """
    self._directory = place(directory)
    self._resume_step = resume_step
    self._events: EventFile | None = None
    with self._disk():
      self._directory.mkdir(parents=True, exist_ok=True)
      for path in reversed(_records(self._directory)):
        _drop_after(path, resume_step)
      if is_bucket(directory):
        print(f"metrics: in {self._directory / SEGMENTS}; TensorBoard's events are left out there")
        self._lines = Segments(self._directory / SEGMENTS)
      else:
        self._lines = (self._directory / NAME).open("a", encoding="utf-8")

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    if is_bucket(self._directory) and kind is not None and issubclass(kind, ConfigError):
      return  # the run is another process's now, and so is the object with the last lines
    try:
      self.close()
    except CheckpointError:
      if kind is None:  # else what ended the context is the cause, or says more
        raise

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes one line, `{"step", "time" (seconds since the epoch), **values}`, and flushes it.

    A value that is not finite becomes null, as JSON has no NaN, and no TensorBoard point.  A bucket
    may have the line only with a later one, or after `flush`.
    """
    now = time.time()
    numbers = {name: float(value) for name, value in values.items()}
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    line = {"step": step, "time": round(now, 3)} | {name: finite.get(name) for name in numbers}
    with self._disk():
      self._lines.write(json.dumps(line, allow_nan=False) + "\n")
      if is_bucket(self._directory):
        return
      self._lines.flush()
      if self._events is None:
        self._events = EventFile(self._directory / EVENTS, first_step=self._resume_step + 1)
      self._events.write(step, finite, when=now)

  def flush(self) -> None:
    """Returns when all that was written would survive this process; to be called before a step is
    saved, because what comes before that step is not written again."""
    with self._disk():
      self._lines.flush()
      if self._events is not None:
        self._events.flush()

  def close(self) -> None:
    """Flushes the events and closes both files."""
    with self._disk(), contextlib.ExitStack() as stack:
      stack.callback(self._lines.close)
      if self._events is not None:
        stack.callback(self._events.close)

  @contextlib.contextmanager
  def _disk(self) -> Iterator[None]:
    """Turns an OSError into a CheckpointError."""
    try:
      yield
    except OSError as error:
      code = errno.errorcode.get(error.errno, "error")
      raise CheckpointError(
          f"The metrics in {self._directory} cannot be written: {error.strerror or error} ({code})."
          " Make room or restore access there, then repeat the command"
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

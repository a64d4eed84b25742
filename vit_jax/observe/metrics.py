"""Metrics on disk: `metrics.jsonl`, which is the record, and TensorBoard events beside it."""

import contextlib
import errno
import json
import math
import os
import pathlib
import time
from typing import Iterator

from vit_jax.errors import CheckpointError
from vit_jax.observe.events import EventFile

NAME = "metrics.jsonl"
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
    self._directory = pathlib.Path(directory)
    self._resume_step = resume_step
    self._events: EventFile | None = None
    with self._disk():
      self._directory.mkdir(parents=True, exist_ok=True)
      path = self._directory / NAME
      _drop_after(path, resume_step)
      self._lines = path.open("a", encoding="utf-8")

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      self.close()
    except CheckpointError:
      if kind is None:  # else what ended the context is the cause, or says more
        raise

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes one line, `{"step", "time" (seconds since the epoch), **values}`, and flushes it.

    A value that is not finite becomes null, as JSON has no NaN, and no TensorBoard point.
    """
    now = time.time()
    numbers = {name: float(value) for name, value in values.items()}
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    line = {"step": step, "time": round(now, 3)} | {name: finite.get(name) for name in numbers}
    with self._disk():
      self._lines.write(json.dumps(line, allow_nan=False) + "\n")
      self._lines.flush()
      if self._events is None:
        self._events = EventFile(self._directory / EVENTS, first_step=self._resume_step + 1)
      self._events.write(step, finite, when=now)

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
  """The lines of a run's `metrics.jsonl`, oldest first; those that are torn are left out."""
  return [line for _, line in _parsed(pathlib.Path(directory) / NAME)]


def _parsed(path: pathlib.Path) -> list[tuple[str, dict]]:
  """Text and content of each whole line; empty where there is no file."""
  if not path.exists():
    return []
  found = []
  for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
    try:
      line = json.loads(text)
    except ValueError:
      continue
    if isinstance(line, dict) and isinstance(line.get("step"), int):
      found.append((text, line))
  return found


def _drop_after(path: pathlib.Path, step: int) -> None:
  """Rewrites the file without torn lines and without those after `step`, in one rename."""
  if not path.exists():
    return
  kept = [text + "\n" for text, line in _parsed(path) if line["step"] <= step]
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("w", encoding="utf-8") as file:
    file.writelines(kept)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)

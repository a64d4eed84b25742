"""TensorBoard's event files, written in the calling thread.

tensorboardX's `SummaryWriter` writes in a thread of its own: when the disk is full that thread
dies, and ten points later the training would wait for it forever.  Its records are used here.
"""

import os
import pathlib
import socket
import sys
import time

_FLUSH_SECONDS = 10.0  # between flushes, each of which waits for the disk


class EventFile:
  """One new event file; a restart makes another beside it."""

  def __init__(self, directory: pathlib.Path, *, first_step: int):
    """Makes the file.

    Args:
      directory: of the event files; made where it is missing.
      first_step: from here on TensorBoard hides what older files have.

    Raises:
      OSError: the disk is full or not writable; so do all methods.
    """
    record_writer, event_pb2 = _tensorboard()
    now = time.time()
    directory.mkdir(parents=True, exist_ok=True)
    # The process and nanoseconds: else a quick restart overwrites.
    name = (
        f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
    )
    self._event = event_pb2.Event
    self._records = record_writer.RecordWriter(str(directory / name))
    self._flushed = 0.0
    self._write(wall_time=now, file_version="brain.Event:2")
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(wall_time=now, step=first_step, session_log=start)

  def write(self, step: int, values: dict[str, float], *, when: float) -> None:
    """Adds one point for each of `values`; `when` is in seconds since the epoch."""
    points = [{"tag": name, "simple_value": value} for name, value in values.items()]
    self._write(wall_time=when, step=step, summary={"value": points})
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Returns when what was written would survive this process."""
    self._records.flush()
    self._flushed = time.monotonic()

  def close(self) -> None:
    """Flushes and closes the file."""
    self._records.close()

  def _write(self, **fields) -> None:
    self._records.write(self._event(**fields).SerializeToString())


def _tensorboard():
  """The modules of tensorboardX that are used, without PyTorch, whose import takes seconds."""
  hidden = "torch" not in sys.modules
  if hidden:
    sys.modules["torch"] = None  # To import it is an ImportError, which tensorboardX ignores.
  try:
    from tensorboardX import record_writer  # pylint: disable=g-import-not-at-top  # slow
    from tensorboardX.proto import event_pb2  # pylint: disable=g-import-not-at-top
  finally:
    if hidden:
      del sys.modules["torch"]
  return record_writer, event_pb2

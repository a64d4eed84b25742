"""Messages for which there is no room, or nobody left to read them, end nothing."""

import contextlib
import os
import sys
from typing import Iterator


class _Forgiving:
  """A text stream, but for what it cannot take: that is dropped."""

  def __init__(self, stream):
    self._stream = stream

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    with contextlib.suppress(OSError):
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    with contextlib.suppress(OSError):
      self._stream.flush()


@contextlib.contextmanager
def forgiving_stderr() -> Iterator[None]:
  """A context, and a decorator, in which writing to `sys.stderr` raises no OSError.

  Where it is a file, as under nohup, its disk may be full; where it is a pipe, its reader may have
  left.  Neither is a reason to end a run, or to end it with another exit code.
  """
  with contextlib.redirect_stderr(sys.stderr and _Forgiving(sys.stderr)):
    yield


@contextlib.contextmanager
def forgiving_stdout() -> Iterator[None]:
  """The same for `sys.stdout`, for verbs that do more than to print.

  What it could not take is dropped at the end, for else Python would try once more when it leaves,
  and leave with 120.
  """
  stream = sys.stdout  # None where it was closed
  with contextlib.redirect_stdout(stream and _Forgiving(stream)):
    try:
      yield
    finally:
      try:
        if stream is not None:
          stream.flush()
      except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

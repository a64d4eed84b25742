"""Memory that a save has freed, and the C library would keep.

TensorStore's buffers come from the arenas of many threads.  glibc gives back of an arena what is
free at its end only: without this a process grew by a third over 60 saves of 240 MB
(`benchmarks/checkpoints.py`).
"""

import ctypes
import functools


def give_back() -> None:
  """Has the C library return to the system what it holds and nobody uses; other threads go on."""
  trim = _malloc_trim()
  if trim is not None:
    trim(0)


@functools.cache
def _malloc_trim():
  """glibc's; None elsewhere."""
  try:
    return ctypes.CDLL(None).malloc_trim
  except (AttributeError, OSError):
    return None

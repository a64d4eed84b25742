"""Memory that a save has freed, and the C library would keep.

Buffers come from the arenas of many threads.  Of an arena glibc gives back by itself what is free
at its end only, so that a process grows over many saves.
"""

import ctypes
import functools


def give_back() -> None:
  """Has the C library return to the system what it holds and nobody uses.

  Whoever allocates meanwhile may wait for an arena: all of them took 15 to 25 ms after 240 MB.
  """
  trim = _malloc_trim()
  if trim is not None:
    trim(0)


@functools.cache
def _malloc_trim():
  """glibc's; None elsewhere."""
  try:
    trim = ctypes.CDLL(None).malloc_trim
  except (AttributeError, OSError):
    return None
  trim.argtypes = [ctypes.c_size_t]
  return trim

"""Images that could not be read, counted over a run."""

import sys
import threading


class BadRecords:
  """Collects the names of unreadable records; safe to share between threads."""

  def __init__(self):
    self._lock = threading.Lock()
    self._reasons: dict[str, str] = {}

  def add(self, name: str, reason: str) -> None:
    """Counts a record once, and says so once on stderr."""
    with self._lock:
      if name in self._reasons:
        return
      self._reasons[name] = reason
      print(f"warning: unreadable image: {name}: {reason}", file=sys.stderr, flush=True)

  @property
  def count(self) -> int:
    """How many different records were unreadable."""
    return len(self._reasons)

  @property
  def names(self) -> tuple[str, ...]:
    """Their names, in the order in which they were met."""
    with self._lock:
      return tuple(self._reasons)

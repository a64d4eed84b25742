"""Images that could not be read, counted over a run."""

import sys
import threading


class BadRecords:
  """Counts unreadable records; safe to share between threads."""

  def __init__(self):
    self._lock = threading.Lock()
    self._names: set[str] = set()

  def add(self, name: str, reason: str) -> None:
    """Counts a record once, and says so once on stderr."""
    with self._lock:
      if name in self._names:
        return
      self._names.add(name)
      print(f"warning: unreadable image: {name}: {reason}", file=sys.stderr, flush=True)

  @property
  def count(self) -> int:
    """How many different records were unreadable."""
    return len(self._names)

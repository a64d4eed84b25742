"""A line now and then that says how far it is and when it will be done."""

import time
from typing import Callable


class Progress:
  """Counts images and says so, at most every few seconds."""

  def __init__(self, what: str, *, say: Callable[[str], None], every: float = 5.0):
    self._what, self._say, self._every = what, say, every
    self._began = self._last = time.monotonic()

  def __call__(self, done: int, total: int, *, kept: int = 0, more: str = "") -> None:
    """Tells of `done` of `total` images; those `kept` from before do not count for the speed."""
    now = time.monotonic()
    if now - self._last < self._every and done < total:
      return
    self._last = now
    rate = (done - kept) / max(now - self._began, 1e-9)
    line = f"{self._what}: {done} of {total} images ({100 * done / max(total, 1):.1f} %){more}"
    if rate:
      minutes, seconds = divmod(round((total - done) / rate), 60)
      line += f", {rate:.0f} images/s, ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    self._say(line)

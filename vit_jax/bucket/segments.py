"""Lines in a bucket, where nothing can be appended to: as numbered objects.

    DIR/00000.jsonl, DIR/00001.jsonl, ...     the last one is rewritten until it is large enough
"""

import pathlib
import time

from vit_jax.bucket.path import BucketPath

_LARGE = 1 << 18  # bytes
# An object may be replaced about once a second.
_SECONDS_BETWEEN = 2.0


def segments(directory: "pathlib.Path | BucketPath") -> list["pathlib.Path | BucketPath"]:
  """The segments in a directory, oldest first; also in a local copy of one."""
  if not directory.is_dir():
    return []
  numbered = (path for path in directory.iterdir() if path.stem.isdigit())
  return sorted((path for path in numbered if path.suffix == ".jsonl"), key=lambda p: int(p.stem))


class Segments:
  """Adds whole lines behind those that are there; to be used as an open file.

  The bucket has a line at once, or after the next `write` or `flush`.
  """

  def __init__(self, directory: BucketPath):
    """Reads the last segment.

    Raises:
      OSError: the bucket cannot be read; so do all methods, where it cannot be written.
    """
    self._directory = directory
    last = max(segments(directory), key=lambda path: int(path.stem), default=None)
    self._number = int(last.stem) if last else 0
    self._text = last.read_text() if last else ""
    self._dirty = False
    self._written = 0.0
    self._begin_another()

  def write(self, text: str) -> None:
    """Adds whole lines."""
    self._text += text
    self._dirty = True
    if time.monotonic() - self._written >= _SECONDS_BETWEEN or len(self._text) >= _LARGE:
      self.flush()

  def flush(self) -> None:
    """Returns when the bucket has every line."""
    if not self._dirty:
      return
    (self._directory / f"{self._number:05d}.jsonl").write_text(self._text)
    self._dirty, self._written = False, time.monotonic()
    self._begin_another()

  def sync(self) -> None:
    """As `flush`: a bucket survives this machine."""
    self.flush()

  def close(self) -> None:
    self.flush()

  def _begin_another(self) -> None:
    """Where the current segment is large enough."""
    if len(self._text) >= _LARGE:
      self._number, self._text = self._number + 1, ""

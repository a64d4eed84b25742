"""Lines at the end of a file, which wait in memory while the disk takes none."""

import os
import pathlib


class PatientLines:
  """Adds whole lines to a file; to be used as an open file.

  What could not be written is written with a later line, or by `flush`, from the very byte on where
  the disk refused: no line is torn, or there twice.
  """

  def __init__(self, path: pathlib.Path):
    """Opens the file, which is made where it is missing; raises OSError."""
    self._file = path.open("ab", buffering=0)
    self._waiting = b""

  def write(self, text: str) -> None:
    """Adds whole lines; raises OSError where they have to wait."""
    self._waiting += text.encode("utf-8")
    self.flush()

  def flush(self) -> None:
    """Returns when every line would survive this process; raises OSError where one has to wait."""
    while self._waiting:
      self._waiting = self._waiting[self._file.write(self._waiting):]

  def sync(self) -> None:
    """As `flush`, and they would survive this machine, too."""
    self.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Tries a last time; raises OSError where lines are lost."""
    try:
      if not self._file.closed:
        self.flush()
    finally:
      self._file.close()

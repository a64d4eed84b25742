"""Files that are either the old one or the new one, never half of either."""

import io
import os

from etils import epath


def write_text(path: epath.Path, text: str) -> None:
  """Writes a temporary file beside `path`, flushes it to the disk and renames it over `path`.

  Raises:
    OSError: the disk is full or the directory cannot be written.
  """
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("w") as file:
    file.write(text)
    file.flush()
    try:
      os.fsync(file.fileno())
    except (AttributeError, io.UnsupportedOperation):
      pass  # An object of a bucket is durable once it is closed.
  temporary.replace(path)

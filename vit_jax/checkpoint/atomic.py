"""Files that are either the old one or the new one, never half of either."""

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
    os.fsync(file.fileno())
  temporary.replace(path)

"""Files that are either the old one or the new one, never half of either."""

import os

from etils import epath

from vit_jax.bucket.path import is_bucket


def write_text(path: epath.Path, text: str) -> None:
  """Writes UTF-8 to a file beside `path`, flushes it to the disk and renames it over `path`.

  In a bucket an object is replaced as a whole anyway.

  Raises:
    OSError: the disk is full or the directory cannot be written.
  """
  if is_bucket(path):
    path.write_text(text)
    return
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)
  sync_directory(path.parent)


def sync_directory(path: epath.Path) -> None:
  """Returns when the names in a local directory would survive this machine."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError:
    pass  # Some network file systems know no such thing.
  finally:
    os.close(descriptor)

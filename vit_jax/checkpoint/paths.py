"""Paths that stay what they are: when the working directory changes, or a disk is unmounted."""

import errno
import os

from etils import epath

from vit_jax.bucket.path import is_bucket, place


def absolute(path: epath.PathLike) -> epath.Path:
  """`path` from the root, `~` expanded, without `..`; a gs:// path as a `BucketPath`.

  Raises:
    ConfigError: it is in a bucket, and gcsfs is missing; or it is a URL of another kind.
  """
  text = os.fspath(path)
  if "://" in text:
    return place(text)
  return epath.Path(os.path.abspath(epath.Path(path).expanduser()))


class Home:
  """A run's directory, told from one that takes its place, as where a disk is mounted no more.

  What is written there would be no part of the run, and Orbax makes each directory that it misses.
  """

  def __init__(self, directory: epath.Path):
    """Takes the directory that is there for the run's."""
    self._directory = directory
    self._known = self._identity()

  def check(self) -> None:
    """Raises FileNotFoundError where the directory is gone, or is another."""
    if (now := self._identity()) != self._known:
      said = "another directory has taken its place" if now else os.strerror(errno.ENOENT)
      raise FileNotFoundError(errno.ENOENT, said)

  def _identity(self) -> tuple[int, int] | None:
    if is_bucket(self._directory):
      return None
    try:
      found = os.stat(self._directory)
    except OSError:
      return None
    return found.st_dev, found.st_ino

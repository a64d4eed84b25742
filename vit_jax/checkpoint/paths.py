"""Paths that stay what they are: when the working directory changes, or a disk is unmounted."""

import contextlib
import errno
import os
import stat

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
    """Takes the directory that is there, or the first to be seen, for the run's."""
    self._directory = directory
    self._known = None
    with contextlib.suppress(OSError):  # `check` says so
      self.check()

  def check(self) -> None:
    """Raises the OSError of a directory that is gone, or is another, or cannot be seen."""
    if is_bucket(self._directory):
      return
    now = _identity(self._directory)
    if self._known and not now:
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    # A disk that was mounted anew may have other numbers.
    if self._known and now != self._known and not (self._directory / "run.json").exists():
      raise FileNotFoundError(errno.ENOENT, "another directory has taken its place")
    self._known = now


def _identity(directory: epath.Path) -> tuple[int, int] | None:
  """What tells a local directory from others; None where there is none."""
  try:
    found = os.stat(directory)
  except (FileNotFoundError, NotADirectoryError):
    return None
  return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None

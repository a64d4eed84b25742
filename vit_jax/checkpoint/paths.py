"""Paths that stay what they are when the working directory changes."""

import os

from etils import epath


def absolute(path: epath.PathLike) -> epath.Path:
  """`path` from the root, `~` expanded, without `..`."""
  return epath.Path(os.path.abspath(epath.Path(path).expanduser()))

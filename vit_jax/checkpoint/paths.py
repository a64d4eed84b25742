"""Paths that stay what they are when the working directory changes."""

import os

from etils import epath


def absolute(path: epath.PathLike) -> epath.Path:
  """`path` from the root, `~` expanded; a URL such as gs://... as it is."""
  path = epath.Path(path).expanduser()
  # Not path.absolute(), which takes gs://bucket for a local name.
  return path if "://" in os.fspath(path) else epath.Path(os.path.abspath(path))

"""Versions of what computes: stored with runs and checkpoints."""

import functools
from importlib import metadata
import platform

_PACKAGES = ("vit_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@functools.cache  # every checkpoint names them, and they do not change while we run
def versions() -> dict[str, str | None]:
  """Package name to version, None where it is not installed; "python" besides."""
  found = {"python": platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = None
  return found

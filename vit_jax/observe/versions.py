"""Versions of what computes: stored with runs and checkpoints."""

import functools
from importlib import metadata
import pathlib
import platform
import subprocess

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


@functools.cache
def commit() -> str | None:
  """The git commit of this package, " with changes" after it; None outside a checkout of it."""
  package = pathlib.Path(__file__).parent.parent

  def git(*arguments: str) -> str:
    command = ("git", "-C", str(package), *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()

  try:
    # An installed package may lie in an environment inside somebody else's checkout.
    git("ls-files", "--error-unmatch", "__init__.py")
    changed = git("status", "--porcelain", "--untracked-files=no", ".")
    return git("rev-parse", "HEAD") + (" with changes" if changed else "")
  except (OSError, subprocess.SubprocessError):
    return None

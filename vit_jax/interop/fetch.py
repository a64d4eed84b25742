"""References to checkpoints that lie elsewhere, fetched into a cache of this machine."""

import hashlib
import json
import os
from pathlib import Path

from vit_jax.errors import CheckpointError, redacted
from vit_jax.interop import hub


def is_remote(ref: str) -> bool:
  """Whether a reference names something that must be fetched."""
  return ref.startswith(("hf:", "timm:")) or "://" in ref


def fetch(ref: str) -> Path:
  """The local path of `hf:USER/NAME[@REV]`, `timm:NAME` or a URL such as `gs://BUCKET/PATH`.

  Raises:
    CheckpointError: not there, no access, no network, or a library for the URL is missing.
  """
  if ref.startswith("hf:"):
    name, _, revision = ref.removeprefix("hf:").partition("@")
    return hub.download(name, revision=revision or None)
  if ref.startswith("timm:"):
    return hub.download_timm(ref.removeprefix("timm:"))
  if redacted(ref) != ref:
    raise CheckpointError(
        f"{ref} holds a secret, and a reference is on record in what is made of it: fetch the "
        "file, and give its path"
    )
  return _from_bucket(ref)


def _from_bucket(url: str) -> Path:
  """Copies a file or a directory that fsspec can reach; what has not changed is not copied again.

  It lies in `$XDG_CACHE_HOME/vit_jax` (~/.cache), by the hash of its URL.
  """
  try:
    import fsspec

    files, root = fsspec.core.url_to_fs(url.rstrip("/"))
    whole = files.isdir(root)
    names = files.find(root) if whole else [root]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit_jax"
    place = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    index_file = place / ".fetched.json"
    index = json.loads(index_file.read_text()) if index_file.is_file() else {}
    if not names:
      raise FileNotFoundError(url)
    for name in names:
      local = place / (os.path.relpath(name, root) if whole else Path(root).name)
      if not local.resolve().is_relative_to(place.resolve()):
        raise CheckpointError(f"{url} names a file outside of itself: {name}")
      version = files.ukey(name)
      if local.is_file() and index.get(name) == version:
        continue
      local.parent.mkdir(parents=True, exist_ok=True)
      partial = local.with_name(local.name + ".partial")
      files.get_file(name, str(partial))
      os.replace(partial, local)
      index[name] = version
      index_file.write_text(json.dumps(index))
  except (ImportError, ValueError) as error:  # fsspec names the package that it lacks
    raise CheckpointError(
        f"{url} cannot be reached: {error}. gs:// needs gcsfs and s3:// s3fs (pip install)"
    ) from error
  except OSError as error:
    raise CheckpointError(f"{url} cannot be fetched: {error or type(error).__name__}") from error
  return place if whole else place / Path(root).name

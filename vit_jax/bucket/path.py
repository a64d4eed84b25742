"""gs:// paths beside local ones."""

import functools
import logging
import os
import pathlib
from typing import Iterator, NamedTuple

from etils.epath import gpath, stat_utils

from vit_jax.bucket.failures import BucketError, as_os_errors
from vit_jax.errors import ConfigError

_SCHEME = "gs://"
_BLOCK = 16 << 20  # bytes of an object that are read at once
# gcsfs would ask another service what kind of bucket it is, before the first request.
_KIND_OF_BUCKET = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"

# TensorFlow, which may be installed for something else, is never what reaches a bucket.  epath asks
# once, at the first path that anybody uses.
os.environ["EPATH_USE_TF"] = "0"


def is_bucket(path: str | os.PathLike) -> bool:
  """Whether a path names something in a bucket."""
  return os.fspath(path).startswith(_SCHEME)


def place(path: str | os.PathLike) -> "pathlib.Path | BucketPath":
  """A path as it is: in a bucket, or local.

  Raises:
    ConfigError: gcsfs is missing, or it is a URL of another kind.
  """
  text = os.fspath(path)
  if "://" not in text:
    return pathlib.Path(text)
  if not is_bucket(text):
    raise ConfigError(
        f"{text}: of URLs only {_SCHEME}BUCKET/PATH can be reached. Copy it there, or to a disk"
    )
  files(text)
  return BucketPath(text.rstrip("/"))


@functools.cache
def _files():
  os.environ.setdefault(_KIND_OF_BUCKET, "false")
  import fsspec
  import gcsfs

  # Others write to the bucket, too; this is also for the instance that epath makes for Orbax.
  fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
  for library in ("gcsfs", "google.auth"):  # they log the tracebacks of what they then raise
    logging.getLogger(library).setLevel(logging.CRITICAL)
  return gcsfs.GCSFileSystem()


def files(path: str | os.PathLike):
  """The `gcsfs.GCSFileSystem` of this process, which remembers no listings.

  Raises:
    ConfigError: gcsfs is missing; says so of `path`.
  """
  try:
    return _files()
  except ImportError as error:
    raise ConfigError(
        f"{os.fspath(path)} is in a bucket, and gcsfs is missing, which reaches it: "
        'pip install "vit_jax[gcs]"'
    ) from error


def check(path: str | os.PathLike) -> None:
  """Holds that a bucket is there and may be read; nothing for a local path.

  Raises:
    ConfigError: it is not, and what to do about it.
  """
  if is_bucket(path):
    bucket, _, name = os.fspath(path).removeprefix(_SCHEME).partition("/")
    if not name.strip("/"):
      raise ConfigError(f"{os.fspath(path)} is a whole bucket: name a directory in it")
    _check(bucket)


@functools.cache
def _check(bucket: str) -> None:
  url = _SCHEME + bucket
  try:
    with as_os_errors(url):
      files(url).call("GET", "b/{}/o", bucket, maxResults=1)
      files(url).call("GET", "b/{}", bucket)  # which Orbax asks for
  except FileNotFoundError as error:
    raise ConfigError(
        f"There is no bucket {url} (404): correct its name, or make it with `gcloud storage buckets"
        f" create {url}`"
    ) from error
  except BucketError as error:
    raise ConfigError(str(error)) from error


class BucketPath(gpath.PosixGPath):
  """An epath whose methods below ask the bucket each time and raise nothing but OSErrors.

  Writing replaces the whole object, at once.  Directories are only beginnings of names: they are
  there when something is in them.
  """

  def resolve(self, strict: bool = False) -> "BucketPath":
    """Itself; `absolute` is this, too."""
    return self

  def exists(self) -> bool:
    return self._kind() is not None

  def is_dir(self) -> bool:
    return self._kind() == "directory"

  def is_file(self) -> bool:
    return self._kind() == "file"

  def _kind(self) -> str | None:
    try:
      with as_os_errors(self):
        return files(self).info(os.fspath(self))["type"]
    except FileNotFoundError:
      return None

  def iterdir(self) -> Iterator["BucketPath"]:
    with as_os_errors(self):
      names = files(self).ls(os.fspath(self), detail=False)
    found = {os.path.basename(name.rstrip("/")) for name in names}
    return (self / name for name in sorted(found - {self.name}))

  def below(self) -> dict[str, "Listed"]:
    """Every object below this directory by its relative name, in one listing."""
    with as_os_errors(self):
      found = files(self).find(os.fspath(self), detail=True)
    root = os.fspath(self).removeprefix(_SCHEME) + "/"
    names = {name: name.removeprefix(root) for name in found if not name.endswith("/")}
    return {short: Listed(self / short, found[name]["size"]) for name, short in names.items()}

  def stat(self) -> stat_utils.StatResult:
    """Length in bytes, and `mtime`: seconds since the epoch, by the bucket's clock."""
    with as_os_errors(self):
      info = files(self).info(os.fspath(self))
    changed = info.get("mtime")
    return stat_utils.StatResult(
        is_directory=info["type"] == "directory", length=info["size"],
        mtime=int(changed.timestamp()) if changed else 0,
    )

  def read_bytes(self) -> bytes:
    with as_os_errors(self):
      return files(self).cat_file(os.fspath(self))

  def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
    return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

  def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
    with as_os_errors(self):
      files(self).pipe_file(os.fspath(self), data.encode(encoding or "utf-8", errors or "strict"))
    return len(data)

  def unlink(self, missing_ok: bool = False) -> None:
    try:
      with as_os_errors(self):
        files(self).rm_file(os.fspath(self))
    except FileNotFoundError:
      if not missing_ok:
        raise

  def rmtree(self, missing_ok: bool = False) -> None:
    try:
      with as_os_errors(self):
        files(self).rm(os.fspath(self), recursive=True)
    except FileNotFoundError:
      if not missing_ok:
        raise

  def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
    """Nothing: a bucket has no directories."""

  def upload(self, source: str | os.PathLike) -> None:
    """Replaces the object by the content of a local file."""
    with as_os_errors(self):
      files(self).put_file(os.fspath(source), os.fspath(self))

  def copy_to(self, target: "BucketPath") -> None:
    """Copies the object within the storage service."""
    with as_os_errors(self):
      files(self).cp_file(os.fspath(self), os.fspath(target))


class Listed(NamedTuple):
  """An object of a listing.

  Attributes:
    path: its name.
    size: in bytes.
  """

  path: BucketPath
  size: int

  def blocks(self) -> Iterator[bytes]:
    """The content, piece by piece; a small object in one request."""
    if self.size <= _BLOCK:
      yield self.path.read_bytes()
      return
    for start in range(0, self.size, _BLOCK):
      with as_os_errors(self.path):
        yield files(self.path).cat_file(
            os.fspath(self.path), start=start, end=min(self.size, start + _BLOCK)
        )

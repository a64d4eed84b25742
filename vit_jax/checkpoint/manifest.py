"""The manifest: what vouches for a checkpoint's content.

Orbax restores a flipped bit without a word, so `STEP/manifest.json`, written last, holds the
size and SHA-256 of every other file of the step.  A step that never had one is not committed
(`commit.py`).  The text is canonical and holds its own hash, so damage to the manifest shows too.

    step, time                    of the save: seconds since the epoch, by process 0's clock
    examples_seen, fingerprint    the position in the data, and which data
    config, metrics               resolved; what was measured at this step
    versions, commit              of the packages, and of ours where it is a git checkout
    trees                         {"params"|"training": {path: [shape, dtype]}}
    files                         {relative path: {"bytes", "hash"}}
    manifest_sha256               of all the above

A reader takes the absence of any but `step`, `files` and the last for an older writer's.
"""

from concurrent import futures
import errno
import hashlib
import json
import os
from typing import Callable, Iterator

from etils import epath

from vit_jax.bucket import atomic
from vit_jax.bucket.failures import BucketError
from vit_jax.bucket.path import Listed, is_bucket
from vit_jax.errors import CheckpointError

NAME = "manifest.json"
_OWN_HASH = "manifest_sha256"
# Bytes read at once: they are still in the processor's own cache when they are hashed.  Measured
# per second of a core: 1.22 GB into one buffer of this size, 1.03 as new objects of 1 MiB.
_BLOCK = 1 << 18
_AT_ONCE = 4  # files
# What a system says of a file that is gone, or whose content is.  All else, such as a permission
# or a server that is away, says nothing of the file, which may be as it was.
_DAMAGE = {
    getattr(errno, name, None)  # macOS has not all
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "EIO", "ELOOP", "ENODATA", "EUCLEAN")
}


def exists(directory: epath.Path) -> bool:
  """Whether the step in `directory` has a manifest.

  Raises:
    OSError: that cannot be seen now.
  """
  return is_there(directory / NAME)


def is_there(path: epath.Path) -> bool:
  """Whether there is such a file, though it may be damaged; raises as `exists`."""
  if is_bucket(path):
    return path.exists()
  try:
    os.stat(path)
  except (FileNotFoundError, NotADirectoryError):
    return False
  except OSError as error:
    if not _is_damage(error):
      raise
  return True


def _is_damage(error: OSError) -> bool:
  """Whether it tells of a file that is not as it was, and not of one that cannot be had now."""
  if isinstance(error, FileNotFoundError):  # a bucket's has no number
    return True
  return not isinstance(error, BucketError) and error.errno in _DAMAGE


def write(
    directory: epath.Path, content: dict, *, copy_of: dict | None = None,
    confirm_owner: Callable[[], None] | None = None,
) -> None:
  """Hashes all files of `directory`, as they are read back from there, and commits it.

  On a disk they are flushed and read past the system's cache, so that what is hashed is what would
  survive this machine; the manifest, too, is read back.

  Args:
    directory: a finished step of Orbax.
    content: JSON-able; stored beside "files", {relative path: {"bytes": int, "hash": hex}}.
    copy_of: the "files" that it must have, or None.
    confirm_owner: is called when all is hashed, which takes long; what it raises commits nothing.

  Raises:
    OSError: a file cannot be read, or the manifest not written, or not read back as written; or a
      file is not as in `copy_of`.
  """
  found = _files(directory)
  if not is_bucket(directory):
    for path in found.values():
      _leave_cache(path)
    for path in {path.parent for path in found.values()} | {directory.parent}:
      atomic.sync_directory(path)
  # A disk is left to the training.
  with futures.ThreadPoolExecutor(_AT_ONCE if is_bucket(directory) else 1) as pool:
    files = dict(zip(found, pool.map(_measured, found.values())))
  if copy_of is not None and files != copy_of:
    wrong = sorted(name for name in files.keys() | copy_of.keys()
                   if files.get(name) != copy_of.get(name))
    raise OSError(errno.EIO, f"{wrong[0]} is not as in the original", str(directory))
  if confirm_owner is not None:
    confirm_owner()
  text = _text({**content, "files": files})
  atomic.write_text(directory / NAME, text)
  if (directory / NAME).read_bytes() != text.encode("ascii"):
    (directory / NAME).unlink()
    raise OSError(errno.EIO, "what was written is not what is read", str(directory / NAME))


def read(directory: epath.Path) -> dict:
  """The manifest of `directory`.

  Raises:
    CheckpointError: it is missing or damaged.
    OSError: it may be well, but cannot be had now.
  """
  path = directory / NAME
  try:
    text = path.read_bytes().decode("ascii")
    content = json.loads(text)
    del content[_OWN_HASH]
    intact = text == _text(content) and all(
        _is_inside(name) and set(file) == {"bytes", "hash"}
        for name, file in content["files"].items()
    )
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    if isinstance(error, OSError) and not _is_damage(error):
      raise
    raise CheckpointError(f"{path} cannot be read: {error}") from error
  if not intact:
    raise CheckpointError(f"{path} is damaged: it does not match its own hash")
  return content


def _is_inside(name: str) -> bool:
  """Whether a relative path leads to nothing outside of the step."""
  return not name.startswith("/") and ".." not in name.split("/")


def problems(directory: epath.Path) -> list[str]:
  """What is wrong with the step in `directory`, one line a file; empty when all is well.

  Reads every byte, several files at a time.

  Raises:
    OSError: something cannot be read now, which is no fault of the step's.
  """
  try:
    expected = read(directory)["files"]
  except CheckpointError as error:
    return [str(error)]
  try:
    found = _files(directory)
  except OSError as error:
    if not _is_damage(error):
      raise
    return [f"{directory} cannot be listed: {error.strerror or error}"]
  lines = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
  lines += [f"{name}: not in the manifest" for name in sorted(found.keys() - expected.keys())]
  common = sorted(expected.keys() & found.keys())
  with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
    differences = pool.map(lambda name: _difference(found[name], expected[name]), common)
    lines += [f"{name}: {text}" for name, text in zip(common, differences) if text]
  return lines


def _difference(file: epath.Path | Listed, expected: dict) -> str | None:
  try:
    measured = _measured(file)
  except OSError as error:
    if not _is_damage(error):
      raise
    return f"cannot be read ({error.strerror or error})"
  if measured["bytes"] != expected["bytes"]:
    return f"{measured['bytes']} bytes instead of {expected['bytes']}"
  if measured["hash"] != expected["hash"]:
    return "its content has changed"
  return None


def _files(directory: epath.Path, prefix: str = "") -> dict[str, epath.Path | Listed]:
  """Every file below `directory` but the manifest, by its relative path."""
  if is_bucket(directory):
    return {name: listed for name, listed in directory.below().items() if name != NAME}
  files = {}
  for own in os.listdir(directory):  # epath leaves out names that end with ~
    path, name = directory / own, prefix + own
    if path.is_dir():
      files.update(_files(path, name + "/"))
    elif name not in (NAME, NAME + ".tmp"):
      files[name] = path
  return files


def _leave_cache(path: epath.Path) -> None:
  """Flushes a file to the disk, and has the system forget what it holds of it in memory."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):  # not on macOS
      os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
  finally:
    os.close(descriptor)


def _measured(file: epath.Path | Listed) -> dict:
  size, digest = 0, hashlib.sha256()
  for block in file.blocks() if isinstance(file, Listed) else _blocks(file):
    size += len(block)
    digest.update(block)
  return {"bytes": size, "hash": digest.hexdigest()}


def _blocks(path: epath.Path) -> Iterator[memoryview]:
  """A file's content, piece by piece; each is overwritten by the next."""
  buffer = memoryview(bytearray(_BLOCK))
  with open(path, "rb", buffering=0) as file:
    while count := file.readinto(buffer):
      yield buffer[:count]


def _text(content: dict) -> str:
  body = json.dumps(content, sort_keys=True, allow_nan=False)
  own = hashlib.sha256(body.encode("ascii")).hexdigest()
  signed = {**content, _OWN_HASH: own}
  return json.dumps(signed, sort_keys=True, allow_nan=False, indent=1) + "\n"

"""The lock of a run in a bucket, which knows no locks: an object that its owner renews.

Every write of it names the generation that it replaces, so that of two who want it one gets it.
"""

import contextlib
from email import utils
import json
import os
import pathlib
import socket
import sys
import threading
import time
from typing import NamedTuple
import uuid

from vit_jax.bucket.failures import as_os_errors
from vit_jax.bucket.path import BucketPath, files
from vit_jax.errors import ConfigError, warn

_SECONDS = 60.0  # without a renewal, after which a lease is anybody's
_RENEWED = 15.0  # seconds between renewals
_POLL = 2.0


class _Found(NamedTuple):
  """A lease in the bucket: what it says, its generation (0: there is none), seconds since then."""

  content: dict
  generation: int
  age: float

  @property
  def owner(self) -> str:
    return f"{self.content.get('pid', 'unknown')} on {self.content.get('host', 'unknown')}"


class Lease:
  """A context that holds an object; a thread renews it."""

  def __init__(self, path: BucketPath, *, seconds: float = _SECONDS, renewed: float = _RENEWED):
    """Nothing is read or written yet."""
    self._path, self._seconds, self._renewed = path, seconds, renewed
    self._content = {
        "owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(),
        "process": _identity(os.getpid()), "seconds": seconds,
    }
    self._generation = 0
    self._last = 0.0  # renewed then; of the clock that goes on while a machine is suspended
    self._lost: str | None = None  # to whom
    self._turn = threading.Lock()
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

  def __enter__(self):
    """Takes the lease; where its owner may have died on another machine, waits until it runs out.

    Raises:
      ConfigError: another process holds it.
      OSError: the bucket cannot be written.
    """
    self._take()
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._end.set()
    self._thread.join()
    if self._lost is None:
      try:
        self._delete()
      except OSError as error:  # it runs out by itself
        warn(f"{self._path} is left over: {error}")

  def check(self) -> None:
    """Raises ConfigError once another process has the lease; asks only after a long silence."""
    if self._lost is None and time.time() - self._last > self._seconds / 2:
      with contextlib.suppress(OSError):  # where it cannot be asked nothing can be written, either
        self._renew()
    if self._lost is not None:
      raise ConfigError(
          f"{self._path} could not be renewed for {self._seconds:.0f} s, and {self._lost} trains"
          " here now: nothing more is written by this process. Let one of the two go on"
      )

  def confirm(self) -> None:
    """Renews the lease now; raises as `check`, and OSError where the bucket cannot be written."""
    self._renew()
    self.check()

  def _renew(self) -> None:
    with self._turn:
      if self._lost is None:
        try:
          self._generation = self._write(self._generation)
          self._last = time.time()
        except FileExistsError:
          self._lost = self._read().owner

  def _take(self) -> None:
    found, waited = self._read(), False
    while found.generation:
      alive = _is_alive(found.content)
      if alive:
        raise self._refused(found)
      left = float(found.content.get("seconds", self._seconds)) - found.age
      if alive is False or left <= 0:
        break
      if not waited:
        waited = True
        print(
            f"{self._path} is held by {found.owner}, heard of {found.age:.0f} s ago: waiting up to"
            f" {left:.0f} s for a sign of life", file=sys.stderr, flush=True,
        )
      time.sleep(min(_POLL, left))
      later = self._read()
      if later.generation not in (0, found.generation):
        raise self._refused(later)
      found = later
    try:
      self._generation = self._write(found.generation)
      self._last = time.time()
    except FileExistsError as error:  # somebody was faster
      raise self._refused(self._read()) from error

  def _refused(self, found: _Found) -> ConfigError:
    return ConfigError(
        f"{self._path.parent} is being trained by another process, {found.owner} (it renews"
        f" {self._path}): wait for it or stop it, or choose another --workdir"
    )

  def _keep(self) -> None:
    """In a thread: renews."""
    while self._lost is None and not self._end.wait(self._renewed):
      try:
        self._renew()
      except OSError as error:  # the next turn may succeed
        warn(f"{self._path} was not renewed: {error}")

  def _read(self) -> _Found:
    storage, bucket, name = self._object()
    try:
      with as_os_errors(self._path):
        headers, text = storage.call("GET", "b/{}/o/{}", bucket, name, alt="media")
    except FileNotFoundError:
      return _Found({}, 0, 0.0)
    try:
      content = dict(json.loads(text))
    except (ValueError, TypeError):
      content = {}
    # By the bucket's clock alone.
    now, then = map(utils.parsedate_to_datetime, (headers["Date"], headers["Last-Modified"]))
    return _Found(content, int(headers["x-goog-generation"]), (now - then).total_seconds())

  def _write(self, generation: int) -> int:
    """Replaces the lease of a generation; returns the new one's.

    Raises:
      FileExistsError: it is of another generation.
    """
    storage, bucket, name = self._object()
    url = storage.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o"
    content = json.dumps(self._content | {"time": time.time()}).encode()
    try:
      with as_os_errors(self._path):
        answer = storage.call(
            "POST", url, bucket, uploadType="media", name=name, ifGenerationMatch=str(generation),
            data=content, headers={"Content-Type": "application/json"}, json_out=True,
        )
    except FileExistsError:
      # A write whose answer is lost is repeated, and then fails on its own generation.
      found = self._read()
      if found.content.get("owner") != self._content["owner"] or found.generation == generation:
        raise
      return found.generation
    return int(answer["generation"])

  def _delete(self) -> None:
    storage, bucket, name = self._object()
    with as_os_errors(self._path):
      storage.call("DELETE", "b/{}/o/{}", bucket, name, ifGenerationMatch=str(self._generation))

  def _object(self):
    """gcsfs, and the bucket and name of the object."""
    bucket, _, name = os.fspath(self._path).removeprefix("gs://").partition("/")
    return files(self._path), bucket, name


def _is_alive(content: dict) -> bool | None:
  """Whether the owner still runs; None where it may run on another machine."""
  known, own = content.get("process"), _identity(os.getpid())
  if not known or not own or known.split()[:2] != own.split()[:2]:
    return None
  return _identity(content.get("pid")) == known


def _identity(pid: int) -> str | None:
  """The boot, the container, the number and the start of a process; None where Linux does not
  tell, "" for a process that does not run."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    container = os.stat("/proc/self/ns/pid").st_ino
  except OSError:
    return None
  try:
    # The name, in brackets, may hold anything; a zombie has ended.
    state, *fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return ""
  return "" if state in "ZX" else f"{boot} {container} {pid} {fields[18]}"

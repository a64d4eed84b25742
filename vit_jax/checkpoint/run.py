"""What a run owns: the files of its directory."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from typing import Iterator

from etils import epath

from vit_jax.bucket import atomic
from vit_jax.bucket import path as bucket
from vit_jax.checkpoint import commit, recovery
from vit_jax.checkpoint.lease import Lease
from vit_jax.checkpoint.paths import absolute
from vit_jax.errors import CheckpointError, ConfigError, warn

# What may lie in a directory before run.json does: what observers, launchers and an interrupted
# start leave behind.
_HARMLESS = {
    "tensorboard", "metrics.jsonl", "metrics.jsonl.tmp", "metrics", "checkpoints", "logs", ".lock",
    "run.json.tmp",
}
# What going on with a run needs; a run.json without one was not written by a whole `train`.
_REQUIRED = ("requested", "classes", "fingerprint", "total_steps", "environment", "best_metric")


def canonical_json(value) -> str:
  """One text for equal values: sorted keys, no spaces, no NaN.

  Raises:
    ValueError, TypeError: `value` is not JSON-able.
  """
  return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


class RunDirectory:
  """The directory of one run, on a disk or in a bucket.

  Attributes:
    path: the directory itself; an `epath.Path`, in a bucket a `bucket.path.BucketPath`.
    config_path: config.json, the resolved config.
    info_path: run.json, what else was decided at the start.
    history_path: config_history.jsonl, one line for each change of the config.
    lock_path: .lock, held by the process that trains.
    checkpoints: directory of the checkpoints.
    evaluations: directory of what `vit-jax evaluate` wrote.
  """

  def __init__(self, path: epath.PathLike):
    """Nothing is read or written yet.

    Raises:
      ConfigError: the path is in a bucket, and gcsfs is missing; or it is a URL of another kind.
    """
    self.path = absolute(path)
    self.config_path = self.path / "config.json"
    self.info_path = self.path / "run.json"
    self.history_path = self.path / "config_history.jsonl"
    self.lock_path = self.path / ".lock"
    self.checkpoints = self.path / "checkpoints"
    self.evaluations = self.path / "evaluations"
    self._lease: Lease | None = None

  def bad_records_path(self, process: int) -> epath.Path:
    """bad_records.jsonl, what a process could not read; process 1 has bad_records.1.jsonl."""
    return self.path / (f"bad_records.{process}.jsonl" if process else "bad_records.jsonl")

  def exists(self) -> bool:
    """Whether a run was begun here.

    Raises:
      ConfigError: a bucket that is not there or may not be read.
    """
    bucket.check(self.path)
    return self.info_path.exists()

  def check_writable(self) -> None:
    """Makes the directory and a trial file in it.

    Raises:
      ConfigError: it cannot be written, naming the operating system's reason; or it is no run and
        holds what was not written by one.
    """
    trial = self.path / f".writable.{os.getpid()}"
    with self._writing():
      self.path.mkdir(parents=True, exist_ok=True)
      begun = self.exists()
      foreign = [] if begun else self._foreign()
      orphans = [] if begun else self._committed()
      if not foreign and not orphans:
        trial.write_text("")
        trial.unlink(missing_ok=True)  # one of another host may have its name
    if foreign:
      more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
      raise ConfigError(
          f"{self.path} is no run's directory (it has no run.json) and holds other files:"
          f" {', '.join(foreign[:3])}{more}. Choose another --workdir, one that does not exist or"
          " is empty"
      )
    if orphans:
      raise ConfigError(
          f"{self.path} has checkpoints ({', '.join(map(str, orphans[:3]))}) but no run.json, which"
          " says what they are of: copy it back from where the run came, or choose another"
          " --workdir"
      )

  def _committed(self) -> list[int]:
    found = recovery.step_directories(self.checkpoints)
    return [step for step, path in found.items() if commit.is_committed(path)]

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """Keeps every other process from training here; of a run's own processes one calls it.

    The operating system ends the lock with the process, however that ends; the file stays.  Where
    the file system knows no locks, a warning says so and nothing is locked.  In a bucket it is a
    `checkpoint.lease.Lease`.

    Raises:
      ConfigError: another process holds the lock, or the directory cannot be written.
    """
    if bucket.is_bucket(self.path):
      with contextlib.ExitStack() as stack:
        with self._writing():
          self._lease = stack.enter_context(Lease(self.lock_path))
        yield
      return
    with self._writing():
      self.path.mkdir(parents=True, exist_ok=True)
      descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      self._take(descriptor)
      yield
    finally:
      os.close(descriptor)

  def check_lock(self) -> None:
    """Raises ConfigError where another process has taken over a run in a bucket."""
    if self._lease is not None:
      self._lease.check()

  def confirm_lock(self) -> None:
    """As `check_lock`, after asking the bucket; OSError where that does not answer."""
    if self._lease is not None:
      self._lease.confirm()

  def write_config(self, config: dict) -> None:
    """Replaces config.json."""
    _write(self.config_path, config)

  def read_info(self) -> dict:
    """The content of run.json; CheckpointError where it is missing, damaged or incomplete."""
    info = _read(self.info_path)
    if missing := [key for key in _REQUIRED if key not in info]:
      raise CheckpointError(
          f"{self.info_path} lacks {', '.join(missing)}. Copy it from where the run came, or begin"
          " another run"
      )
    return info

  def write_info(self, info: dict) -> None:
    """Replaces run.json."""
    _write(self.info_path, info)

  def append_history(self, entry: dict) -> None:
    """Adds a line to config_history.jsonl; the file is rewritten, so that no line is torn."""
    before = self.history_path.read_text() if self.history_path.exists() else ""
    atomic.write_text(self.history_path, before + canonical_json(entry) + "\n")

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns an OSError into a ConfigError."""
    try:
      yield
    except OSError as error:
      code = errno.errorcode.get(error.errno, "error")
      raise ConfigError(
          f"The run's directory {self.path} cannot be written: {error.strerror or error}"
          f" ({code}). Choose another --workdir, or make it writable for this user"
      ) from error

  def _foreign(self) -> list[str]:
    """Names of what no run leaves in a directory without run.json, sorted."""
    if not self.path.exists():  # in a bucket it is there only with something in it
      return []
    return sorted(
        path.name
        for path in self.path.iterdir()
        if path.name not in _HARMLESS and not path.name.startswith(".writable.")
        and not path.name.endswith(".log")
    )

  def _take(self, descriptor: int) -> None:
    """Locks the open lock file and notes in it who we are."""
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      holder = os.pread(descriptor, 400, 0).decode(errors="replace").strip()
      raise ConfigError(
          f"{self.path} is being trained by another process, {holder or 'unknown'} (it holds"
          f" {self.lock_path}): wait for it or stop it, or choose another --workdir"
      ) from error
    except OSError as error:
      warn(
          f"{self.lock_path} cannot be locked ({error.strerror}): make sure that no other process"
          " trains here"
      )
      return
    with self._writing():
      os.ftruncate(descriptor, 0)
      os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _read(path: epath.Path) -> dict:
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise CheckpointError(
        f"{path} cannot be read: {error}. Copy it from where the run came, or begin another run"
    ) from error
  if not isinstance(content, dict):
    raise CheckpointError(f"{path} is damaged: it holds no JSON object")
  return content


def _write(path: epath.Path, content: dict) -> None:
  atomic.write_text(path, json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n")

"""Checkpoints in two places: saved to a fast local directory, copied from there to the run's own.

A save is committed as soon as it is safe in the local tier, so that training waits for a near disk
or for memory, not for a bucket.  A thread of process 0 copies it, verifies the copy, and then
commits that.  What others read, and what outlives this machine, is the copy.

    LOCAL/RUN-HASH/STEP/   as `manager.py` has it
    LOCAL/RUN-HASH/tokens  drawn at the last start; the newest stands in the run's run.json, too

A local tier whose tokens lack that of run.json is of another run, or this run was continued
elsewhere since: it is deleted, because its steps are not this run's past.
"""

from concurrent import futures
import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
import threading
from typing import Iterator

from etils import epath
import jax

from vit_jax.bucket import atomic
from vit_jax.bucket.path import is_bucket
from vit_jax.checkpoint import manifest, recovery, retention
from vit_jax.checkpoint.manager import Checkpoints, reason
from vit_jax.checkpoint.paths import absolute
from vit_jax.checkpoint.processes import decided_by_first, meet
from vit_jax.checkpoint.retry import pause
from vit_jax.errors import CheckpointError, ConfigError, WriteFailed

_TOKENS = "tokens"
_AT_ONCE = 4  # files


class Tiers:
  """What a run needs of `Checkpoints`, over two of them; every process calls every method.

  Attributes:
    local, remote: the `Checkpoints` of the two places.
    directory: where saves go: the local one's.
    policy: which steps stay in the remote; in the local the newest and what is not copied yet.
    token: of this start, for run.json.
  """

  def __init__(
      self, remote: Checkpoints, place: str, *, token: int | None, retries: int, confirm_owner
  ):
    """Makes the local directory, or finds that of this run.

    Args:
      remote: the run's own; nobody else saves there.
      place: config.checkpoint.local, a directory that all processes see.
      token: which run.json has from the last start, None where it has none.
      retries: attempts after the first copy that failed; past them the run ends.
      confirm_owner: as of `Checkpoints`.

    Raises:
      ConfigError: it cannot be written, or a process does not see it.
    """
    self.remote, self.policy, self._retries = remote, remote.policy, retries
    self._confirm_owner = confirm_owner
    self.directory = _directory(place, remote.directory)
    self._notes: list[str] = []
    self.token = decided_by_first(lambda: self._begin(token), "the local tier")
    if self.token not in _tokens(self.directory):
      raise ConfigError(
          f"config.checkpoint.local: process {jax.process_index()} does not see in {self.directory}"
          " what process 0 wrote there. Name a directory that all processes share, or leave the key"
          " out"
      )
    meet("the local tier")
    self.local = Checkpoints(
        self.directory, confirm_owner=confirm_owner, on_commit=self._wake
    )
    self._changed = threading.Condition()
    self._wanted = self._served = 0  # how often there was something to copy, and how often it was
    self._closed = False
    self._error: Exception | None = None
    self._copier: threading.Thread | None = None

  def __enter__(self):
    if jax.process_index() == 0:
      self._copier = threading.Thread(target=self._copy_what_comes, name="copier")
      self._copier.start()
    return self

  def __exit__(self, *_):
    self.close()

  @property
  def saving(self) -> bool:
    """As `Checkpoints.saving`, of the local one."""
    return self.local.saving

  def latest(self) -> int | None:
    """The newest committed step of both."""
    return max(self.local.steps() + self.remote.steps(), default=None)

  def save(self, step: int, **state) -> bool:
    """As `Checkpoints.save`, to the local one."""
    return self.local.save(step, **state)

  def check(self) -> None:
    """As `Checkpoints.check`; CheckpointError where copying has failed for good."""
    self.local.check()
    if self._error is not None:
      raise self._error

  def wait(self) -> None:
    """Waits until the last save is committed in the local tier."""
    self.local.wait()

  def finish(self, *, complete: bool) -> None:
    """As `Checkpoints.finish`: waits until all is copied that is to stay.

    Args:
      complete: whether the run needs its local tier no more, which is then deleted.

    Raises:
      CheckpointError: copying has failed for good.
    """
    self.local.finish(complete=complete)
    if self._copier is None:
      return
    with self._changed:
      self._changed.wait_for(lambda: self._served == self._wanted or self._error)
    self.check()
    if complete:
      shutil.rmtree(self.directory, ignore_errors=True)

  def close(self) -> None:
    """Ends what is in the background, after the last save is committed and copied."""
    try:
      self.finish(complete=False)
    finally:
      self.local.close()
      with self._changed:
        self._closed = True
        self._changed.notify_all()
      if self._copier is not None:
        self._copier.join()

  def recover(self, *, strict: bool = False) -> recovery.Recovery:
    """As `Checkpoints.recover`, of both: the newest good step of either.

    The remote's steps are verified where they are newer than the local tier's newest good one.
    """
    notes, near = self.local.recover(strict=strict)
    more, far = self.remote.recover(strict=strict, beyond=-1 if near is None else near)
    self._wake()  # what a kill has left uncopied
    return recovery.Recovery(self._notes + notes + more, near if far is None else far)

  def has(self, step: int, name: str) -> bool:
    """As `Checkpoints.has`."""
    return self._holder(step).has(step, name)

  def restore(self, step: int, *, params, training):
    """As `Checkpoints.restore`, from the local tier where it has the step."""
    return self._holder(step).restore(step, params=params, training=training)

  def _holder(self, step: int) -> Checkpoints:
    return self.local if step in self.local.steps() else self.remote

  def _begin(self, token: int | None) -> int:
    """On process 0: deletes a tier that is not of this run's last start; returns a new token."""
    new = secrets.randbits(30)
    try:
      if self.directory.exists() and token not in _tokens(self.directory):
        self.directory.rmtree()
        self._notes.append(
            f"Deleted {self.directory}: the run was continued elsewhere since, or was another."
        )
      self.directory.mkdir(parents=True, exist_ok=True)
      tokens = [new] if token is None else [token, new]  # run.json will have the new one soon
      atomic.write_text(self.directory / _TOKENS, json.dumps(tokens))
    except OSError as error:
      raise ConfigError(
          f"config.checkpoint.local: {self.directory} cannot be written: {error.strerror or error}."
          " Name another directory, or make it writable for this user"
      ) from error
    return new

  def _wake(self) -> None:
    with self._changed:
      self._wanted += 1
      self._changed.notify_all()

  def _copy_what_comes(self) -> None:
    """In a thread of process 0."""
    failures = 0
    while True:
      with self._changed:
        if failures:
          self._changed.wait_for(lambda: self._closed, timeout=pause(failures))
        self._changed.wait_for(lambda: self._served < self._wanted or self._closed)
        if self._closed:
          return
        wanted = self._wanted
      try:
        while (step := self._next()) is not None:
          self._copy(step)
        self._delete_copied()
      except WriteFailed as error:
        failures += 1
        if failures <= self._retries:
          _say(f"{error}. Training goes on; it is tried again in {pause(failures):.0f} s (retry"
               f" {failures} of {self._retries})")
          continue
        self._end(
            CheckpointError(f"{error}, then repeat the command. It was tried {failures} times")
        )
        return
      except Exception as error:  # pylint: disable=broad-exception-caught
        self._end(error)
        return
      if failures:
        _say(f"Copying succeeded again, after {failures} failures")
      failures = 0
      with self._changed:
        self._served = wanted
        self._changed.notify_all()

  def _end(self, error: Exception) -> None:
    with self._changed:
      self._error = error
      self._changed.notify_all()

  def _superfluous(self, local: dict, remote: dict) -> set[int]:
    return set(self.policy.superfluous(remote | local))

  def _next(self) -> int | None:
    """The newest step to copy: what has to leave this machine first."""
    with self._failing(f"Listing {self.remote.directory}"):
      local, remote = self.local.saved(), self.remote.saved()
    missing = local.keys() - remote.keys() - self._superfluous(local, remote)
    return max(missing, default=None)

  def _copy(self, step: int) -> None:
    """Copies one step, verified; then deletes what the policy does not keep of the remote ones."""
    source, target = (tier.directory / str(step) for tier in (self.local, self.remote))
    with self._failing(f"Copying {source} to {target}"):
      if not is_bucket(target) and not self.remote.directory.parent.is_dir():
        # Where a disk is no longer mounted nothing is to be written.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
      if target.exists():
        target.rmtree()
      try:
        content = manifest.read(source)
        files = content.pop("files")
        with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
          list(pool.map(lambda name: _copy_file(source / name, target / name), files))
        self._confirm_owner()
        manifest.write(target, content, copy_of=files)
      except (OSError, CheckpointError):
        if not (problems := manifest.problems(source)):
          raise
        aside = recovery.set_aside(source)
        _say(f"{source} is damaged ({recovery.summary(problems)}) and was not copied: it is {aside}"
             " now, and training goes on")
    self.remote.retain()

  def _delete_copied(self) -> None:
    """Leaves in the local tier its newest step, and what is to stay but is not copied."""
    with self._failing(f"Deleting what is copied from {self.directory}"):
      local, remote = self.local.saved(), self.remote.saved()
      needed = local.keys() - remote.keys() - self._superfluous(local, remote)
      for step in sorted(local)[:-1]:
        if step not in needed:
          retention.delete(self.local.directory / str(step))

  @contextlib.contextmanager
  def _failing(self, what: str) -> Iterator[None]:
    """Makes what a disk or a bucket raises a WriteFailed."""
    try:
      yield
    except (OSError, CheckpointError) as error:
      raise WriteFailed(
          f"{what} failed: {reason(error)}. Make room or restore access there"
      ) from error


def _directory(place: str, checkpoints: epath.Path) -> epath.Path:
  """Of this run alone: runs share a `place`."""
  if is_bucket(place):
    raise ConfigError(
        f"config.checkpoint.local is {place!r}: name a directory on a near disk; the run's own may"
        " be a bucket"
    )
  run = checkpoints.parent
  return absolute(place) / f"{run.name}-{hashlib.sha256(os.fspath(run).encode()).hexdigest()[:12]}"


def _tokens(directory: epath.Path) -> list[int]:
  """Those of the local tier's last start; none where they cannot be read."""
  try:
    return list(json.loads((directory / _TOKENS).read_text()))
  except (OSError, ValueError, TypeError):
    return []


def _copy_file(source: epath.Path, target: epath.Path) -> None:
  if is_bucket(target):
    target.upload(source)
    return
  target.parent.mkdir(parents=True, exist_ok=True)
  shutil.copyfile(source, target)


def _say(text: str) -> None:
  print(f"warning: {text}.", file=sys.stderr, flush=True)

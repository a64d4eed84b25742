"""Checkpoints in two places: saved to a fast local directory, copied from there to the run's own.

A save is committed as soon as it is safe in the local tier, so that training waits for a near disk
or for memory, not for a bucket.  A thread of process 0, the `copier`, does the rest.  What others
read, and what outlives this machine, is the copy.

    LOCAL/RUN-HASH/STEP/   as `manager.py` has it
    LOCAL/RUN-HASH/tokens  of the last two starts; run.json has that of the last

A local tier whose tokens lack that of run.json is of another run, or this run was continued
elsewhere since: its steps are not this run's past, and it is deleted.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from typing import Callable

from etils import epath
import jax

from vit_jax.bucket import atomic
from vit_jax.bucket.path import is_bucket
from vit_jax.checkpoint import recovery, retention
from vit_jax.checkpoint.copier import Copier
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.paths import absolute
from vit_jax.checkpoint.processes import decided_by_first, meet
from vit_jax.errors import CheckpointError, ConfigError, NonFiniteError

_TOKENS = "tokens"


class Tiers:
  """What a run needs of `Checkpoints`, over two of them; every process calls every method.

  Attributes:
    local, remote: the `Checkpoints` of the two places.
    directory: where saves go: the local one's.
    policy: which steps stay in the remote; in the local the newest and what is not copied yet.
    token: of this start, for run.json.
  """

  def __init__(
      self, remote: Checkpoints, place: str, *, token: int | None, retries: int,
      confirm_owner: Callable[[], None],
  ):
    """Makes the local directory, or finds that of this run.

    Args:
      remote: the run's own; nobody else saves there.
      place: config.checkpoint.local, a directory that all processes see.
      token: which run.json has from the last start, None where it has none.
      retries, confirm_owner: as of `Copier`.

    Raises:
      ConfigError: it cannot be written, or a process does not see it.
    """
    self.remote, self.policy = remote, remote.policy
    self._retries, self._confirm_owner = retries, confirm_owner
    self.directory = directory_of(place, remote.directory)
    self._notes: list[str] = []
    self.token = decided_by_first(lambda: self._begin(token), "the local tier")
    if self.token not in (_tokens(self.directory) or ()):
      raise ConfigError(
          f"config.checkpoint.local: process {jax.process_index()} does not see in {self.directory}"
          " what process 0 wrote there. Name a directory that all processes share, or leave the key"
          " out"
      )
    meet("the local tier")
    self.local = Checkpoints(self.directory, on_commit=self._wake)
    self._copier: Copier | None = None
    self._last: int | None = None  # the step that was saved last

  def __enter__(self):
    if jax.process_index() == 0:
      self._copier = Copier(
          self.local, self.remote, retries=self._retries, confirm_owner=self._confirm_owner
      )
    return self

  def __exit__(self, kind, *_):
    # A start after an error copies what is left; but of training that broke there may be none.
    waits = kind is None or issubclass(kind, NonFiniteError)
    try:
      try:
        if waits:
          self.finish(complete=False)
      finally:
        if self._copier is not None:
          self._copier.stop()
        self.local.close()
    except CheckpointError:
      if kind is None:  # else what ended the run says more
        raise

  @property
  def saving(self) -> bool:
    """As `Checkpoints.saving`, of the local one."""
    return self.local.saving

  def latest(self) -> int | None:
    """The newest step that others can read, and that outlives this machine."""
    return self.remote.latest()

  def save(self, step: int, **state) -> bool:
    """As `Checkpoints.save`, to the local one."""
    self._last = step
    return self.local.save(step, **state)

  def check(self) -> None:
    """As `Checkpoints.check`; CheckpointError where copying has failed for good."""
    self.local.check()
    if self._copier is not None:
      self._copier.check()

  def wait(self) -> None:
    """Waits until the last save is committed in the local tier."""
    self.local.wait()

  def finish(self, *, complete: bool, alive: Callable[[], None] = lambda: None) -> None:
    """As `Checkpoints.finish`: waits until all is copied that is to stay.

    Args:
      complete: whether the run needs its local tier no more, which is then deleted.
      alive: is called again and again while files are being copied.

    Raises:
      CheckpointError: copying has failed for good; or the last step was damaged before it was
        copied.
    """
    self.local.finish(complete=complete)
    if self._copier is None:
      return
    self._copier.finish(alive)
    if self._last is not None and self._last not in self.remote.steps():
      raise CheckpointError(
          f"Step {self._last}, the last, was damaged in {self.directory} before it was copied to"
          f" {self.remote.directory}: repeat the command, which goes on from the newest good one"
      )
    if complete:
      with contextlib.suppress(OSError, CheckpointError):
        for step in self.local.steps():  # one by one, so that a kill leaves no half of a step
          retention.delete(self.directory / str(step))
      shutil.rmtree(self.directory, ignore_errors=True)

  def recover(self, *, strict: bool = False) -> recovery.Recovery:
    """As `Checkpoints.recover`, of both: the newest good step of either.

    The remote's steps are verified as far as they are not older than the local tier's newest good
    one: that one may be the only copy.
    """
    notes, near = self.local.recover(strict=strict)
    more, far = self.remote.recover(strict=strict, beyond=-1 if near is None else near - 1)
    self._wake()  # what a kill has left uncopied
    found = [step for step in (near, far) if step is not None]
    return recovery.Recovery(self._notes + notes + more, max(found, default=None))

  def forget_gone(self) -> None:
    """As `Checkpoints.forget_gone`, of both."""
    self.local.forget_gone()
    self.remote.forget_gone()

  def is_lost(self) -> bool:
    """As `Checkpoints.is_lost`, of either."""
    return self.local.is_lost() or self.remote.is_lost()

  def has(self, step: int, name: str) -> bool:
    """As `Checkpoints.has`."""
    return self._holder(step).has(step, name)

  def restore(self, step: int, *, params, training):
    """As `Checkpoints.restore`, from the local tier where it has the step."""
    return self._holder(step).restore(step, params=params, training=training)

  def _holder(self, step: int) -> Checkpoints:
    return self.local if step in self.local.steps() else self.remote

  def _wake(self) -> None:
    if self._copier is not None:
      self._copier.wake()

  def _begin(self, token: int | None) -> int:
    """On process 0: removes a tier that is not of this run's last start; returns a new token."""
    new = secrets.randbits(30)
    try:
      if self.directory.exists():
        self._remove_strange(token)
      elif token is not None:
        self._notes.append(
            f"There is no {self.directory} any more: what was not copied from there is lost."
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

  def _remove_strange(self, token: int | None) -> None:
    tokens = _tokens(self.directory)
    if tokens is None:
      aside = self.directory.with_name(self.directory.name + ".unknown")
      shutil.rmtree(aside, ignore_errors=True)
      self.directory.rename(aside)
      self._notes.append(
          f"Moved {self.directory} to {aside}: without a readable file {_TOKENS!r} nobody knows"
          " whose it is."
      )
    elif token not in tokens:
      self.directory.rmtree()
      self._notes.append(
          f"Deleted {self.directory}: the run was continued elsewhere since, or was another."
      )


def directory_of(place: str, checkpoints: epath.Path) -> epath.Path:
  """The local tier of a run, given config.checkpoint.local and the run's directory of checkpoints.

  Raises:
    ConfigError: the place is in a bucket.
  """
  if is_bucket(place):
    raise ConfigError(
        f"config.checkpoint.local is {place!r}: name a directory on a near disk; the run's own may"
        " be a bucket"
    )
  run = checkpoints.parent
  return absolute(place) / f"{run.name}-{hashlib.sha256(os.fspath(run).encode()).hexdigest()[:12]}"


def _tokens(directory: epath.Path) -> list[int] | None:
  """Those of the local tier's last start; None where they cannot be read."""
  try:
    return list(json.loads((directory / _TOKENS).read_text()))
  except (OSError, ValueError, TypeError):
    return None

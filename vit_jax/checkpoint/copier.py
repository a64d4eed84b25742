"""A thread that copies checkpoints from a near directory to the run's own, and verifies them.

What the run's policy keeps is copied, the newest step first; a copy counts when its manifest is
there, which is written last, after every file was read back and is like the original.  What is
copied, or would not be kept, is deleted from the near directory, but for its newest step; what
would not be kept after each save, so that one slow copy does not fill it.
"""

from concurrent import futures
import contextlib
import shutil
import threading
from typing import Callable, Iterator

from etils import epath

from vit_jax.bucket.path import is_bucket
from vit_jax.checkpoint import commit, manifest, recovery, retention
from vit_jax.checkpoint.manager import Checkpoints, reason
from vit_jax.checkpoint.paths import Home
from vit_jax.checkpoint.retry import Attempts
from vit_jax.errors import CheckpointError, warn, WriteFailed

_AT_ONCE = 4  # files


class Copier:
  """Copies in the background from `wake` to `stop`; one of several processes has one."""

  def __init__(
      self, local: Checkpoints, remote: Checkpoints, *, retries: int,
      confirm_owner: Callable[[], None],
  ):
    """Nothing is copied yet.

    Args:
      local, remote: from where and to where; of the remote's nobody else writes.
      retries: attempts after one that failed, in a row; past them `check` raises.
      confirm_owner: is called before anything is written to the remote; see `Checkpoints`.
    """
    self._local, self._remote = local, remote
    self._confirm_owner = confirm_owner
    self._home = Home(remote.directory.parent)
    self._attempts = Attempts("copy", "Copying", retries=retries, where=remote.directory)
    self._changed = threading.Condition()
    self._wanted = self._served = 0  # how often there was something to copy, and how often it was
    self._stopped = False
    self._error: Exception | None = None
    self._far: dict[int, retention.Saved] = {}  # what the remote had when it was last asked
    self._copying: int | None = None  # the step that is read just now
    self._choosing = threading.Lock()  # while steps are deleted here, and which to read is chosen
    self._moved = 0  # files
    # A daemon, because a process that has failed does not wait for it.
    self._thread = threading.Thread(target=self._run, name="copier", daemon=True)
    self._thread.start()

  def wake(self) -> None:
    """There may be something to copy, and something to delete from the near directory."""
    with contextlib.suppress(OSError, CheckpointError), self._choosing:  # the copy will say so
      local = self._local.saved()
      superfluous = self._remote.policy.superfluous(self._far | local)
      self._delete(set(sorted(local)[:-1]) & set(superfluous))
    with self._changed:
      self._wanted += 1
      self._changed.notify_all()

  def check(self) -> None:
    """Says where a copy takes long; never waits.

    Raises:
      CheckpointError: copying has failed too often.
      ConfigError: of `confirm_owner`.
    """
    if self._error is not None:
      raise self._error
    self._attempts.say_slow()

  def finish(self, alive: Callable[[], None]) -> None:
    """Returns when all is copied; raises as `check`.

    Args:
      alive: is called again and again while files are being copied.
    """
    moved, done = self._moved, False
    while not done:
      with self._changed:
        done = self._changed.wait_for(self._settled, timeout=1.0)
      if self._moved != moved:
        alive()
        moved = self._moved
      self.check()

  def stop(self) -> None:
    """Ends the thread, after the file that it copies."""
    with self._changed:
      self._stopped = True
      self._changed.notify_all()
    self._thread.join(5.0)

  def _settled(self) -> bool:
    ended = self._error is not None or not self._thread.is_alive()
    return ended or self._served == self._wanted

  def _run(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._stopped, timeout=self._attempts.pause)
        self._changed.wait_for(lambda: self._served < self._wanted or self._stopped)
        if self._stopped:
          return
        wanted = self._wanted
      try:
        self._copy_all()
      except WriteFailed as error:  # of another kind: `Saves` would try the save again
        self._error = CheckpointError(*error.args)
      except Exception as error:  # pylint: disable=broad-exception-caught
        self._error = error
      with self._changed:
        if not self._attempts.failures:
          self._served = wanted
        self._changed.notify_all()
        if self._error is not None:
          return

  def _copy_all(self) -> None:
    """Raises WriteFailed where copying has failed too often."""
    try:
      while (step := self._next()) is not None and not self._stopped:
        self._attempts.begun()
        self._copy(step)
        self._attempts.succeeded()
      self._attempts.succeeded()
    except WriteFailed as error:
      self._attempts.failed(error)
    finally:
      self._copying = None

  def _next(self) -> int | None:
    """The newest step to copy: what has to leave this machine first."""
    with contextlib.suppress(OSError, CheckpointError):  # the copy will say so
      self._far = self._remote.saved()
    with self._choosing:
      with _failing(f"Listing {self._local.directory}"):
        local = self._local.saved()
      superfluous = self._remote.policy.superfluous(self._far | local)
      missing = local.keys() - self._far.keys() - set(superfluous)
      self._copying = max(missing, default=None)
      self._delete(set(sorted(local)[:-1]) - missing)
      return self._copying

  def _delete(self, steps: set[int]) -> None:
    """Deletes steps from the near directory, but for the one that is read."""
    for step in sorted(steps - {self._copying}):
      try:
        retention.delete(self._local.directory / str(step))
      except OSError as error:
        warn(f"an old checkpoint was not deleted: {error}")

  def _copy(self, step: int) -> None:
    """Copies one step; then deletes what the policy does not keep of the remote ones."""
    source, target = (tier.directory / str(step) for tier in (self._local, self._remote))
    with _failing(f"Copying {source} to {target}"):
      self._home.check()
      self._confirm_owner()
      if manifest.exists(target):
        return  # there when it could not be listed
      commit.unmark(target)
      if target.exists():
        target.rmtree()
      try:
        self._copy_files(source, target)
      except (OSError, CheckpointError):
        if not (problems := manifest.problems(source)):
          raise
        aside = recovery.set_aside(source)
        warn(
            f"{source} is damaged ({recovery.summary(problems)}) and was not copied: it is {aside}"
            " now, and training goes on."
        )
        if target.exists():
          target.rmtree()
    self._remote.retain()

  def _copy_files(self, source: epath.Path, target: epath.Path) -> None:
    content = manifest.read(source)
    files = content.pop("files")

    def copy(name: str) -> None:
      _copy_file(source / name, target / name)
      self._moved += 1

    with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
      list(pool.map(copy, files))
    manifest.write(target, content, copy_of=files, confirm_owner=self._confirm_owner)
    commit.mark(target)


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
  """Makes what a disk or a bucket raises a WriteFailed."""
  try:
    yield
  except (OSError, CheckpointError) as error:
    raise WriteFailed(
        f"{what} failed: {reason(error)}. Make room or restore access there"
    ) from error


def _copy_file(source: epath.Path, target: epath.Path) -> None:
  if is_bucket(target):
    target.upload(source)
    return
  target.parent.mkdir(parents=True, exist_ok=True)
  shutil.copyfile(source, target)

"""Checkpoints of one run: saved in the background, verified before use.

Orbax writes and reads the arrays; what a step contains, when it counts and when it goes is
decided here.  A step is

    STEP/params/, STEP/training/   two Orbax items, so that parameters can be read alone
    STEP/manifest.json             config, position, metrics, a hash of every file: the commit
    STEP.committed                 says so even if the manifest is lost, see `commit.py`
"""

import contextlib
import errno
import json
import math
import os
import re
import threading
import time
from typing import Callable

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.bucket import failures
from vit_jax.bucket.path import is_bucket
from vit_jax.checkpoint import commit, freed_memory, late_callbacks, late_writes, manifest
from vit_jax.checkpoint import recovery, retention, tree
from vit_jax.checkpoint.paths import Home, absolute
from vit_jax.checkpoint.processes import PATIENCE, barrier, decided_by_first, meet
from vit_jax.errors import CheckpointError, ConfigError, PeerLost, warn, WriteFailed

_ITEMS = ("params", "training")
_OURS = ("step", "time", "trees", "files")  # in a manifest beside what `save` was given


class Checkpoints:
  """The checkpoints in one directory; the writer of a directory is one run.

  Every process of a run calls every method, in the same order, from one thread; process 0
  writes manifests and deletes.

  Attributes:
    directory: of the STEP directories.
    policy: which of them stay.
  """

  def __init__(
      self,
      directory: epath.PathLike,
      *,
      keep_latest: int = 1,
      best_metric: str | None = None,
      keep_every: retention.Every = retention.Every(),
      read_only: bool = False,
      confirm_owner: Callable[[], None] | None = None,
      on_commit: Callable[[], None] | None = None,
  ):
    """Nothing is read or written yet.

    Args:
      directory: of the STEP directories; made by the first save.
      keep_latest: how many of the newest steps stay; the best stays besides.
      keep_every: interval of which the first step stays, too.
      best_metric: key of `meta["metrics"]`, see `retention.less_is_better`; or None.
      read_only: for whoever does not own the run.
      confirm_owner: is called by process 0 just before a step is committed; raises a ConfigError,
        which `save`, `check` and `wait` then raise, where this process may no longer write.
      on_commit: is called by process 0 once a step is committed, in the thread that did it, in
        place of `retain`.
    """
    self.directory = absolute(directory)
    self.policy = retention.Policy(keep_latest, best_metric, keep_every)
    self._saved: dict[int, retention.Saved] = {}  # of the manifests that were read
    self._read_only = read_only
    self._confirm_owner = confirm_owner
    self._on_commit = on_commit or self.retain
    self._orbax = None
    self._gate = late_writes.Gate()
    self._home = Home(self.directory.parent)
    self._commit_thread: threading.Thread | None = None
    self._saving: int | None = None  # the step that the thread commits
    self._known: set[int] = set()  # steps on disk or handed to Orbax, the same on all processes
    self._error: WriteFailed | ConfigError | PeerLost | None = None
    self._left_over: set[int] = set()  # steps whose save failed, after which writes may go on
    self._fetched: set[int] = set()  # steps whose every byte came from a bucket and was right

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      self.close()
    except WriteFailed as error:
      if kind is None:
        raise
      # What has ended the run is what its exit code tells of.
      warn(f"{error}.")

  def steps(self) -> list[int]:
    """Committed steps, ascending; CheckpointError where the directory cannot be listed."""
    try:
      found = recovery.step_directories(self.directory)
      return [step for step, path in found.items() if manifest.exists(path)]
    except OSError as error:
      raise CheckpointError(f"{self.directory} cannot be read: {reason(error)}") from error

  def latest(self) -> int | None:
    """The newest committed step."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """The committed step with the best metric, the earliest of equals; None if none has it."""
    return self.policy.best(self.saved()) if self.policy.best_metric else None

  def saved(self) -> dict[int, retention.Saved]:
    """What the manifests of the committed steps say, each read once."""
    steps = self.steps()
    for step in [step for step in steps if step not in self._saved]:
      try:
        self._saved[step] = retention.Saved.of(manifest.read(self._path(step)))
      except CheckpointError:
        self._saved[step] = retention.Saved()  # It cannot win; whoever restores the step is told.
      except OSError as error:
        raise self._failed_to_read(step, error) from error
    return {step: self._saved[step] for step in steps}

  def retain(self) -> None:
    """Deletes what the policy does not keep.

    What cannot be deleted is said, and tried again after the next save: this one is committed.
    """
    before = set(self._saved)
    try:
      saved = self.saved()
      if lost := sorted(before - set(saved)):
        warn(
            f"Step {', '.join(map(str, lost))} has disappeared from {self.directory}, and not by"
            " this run's doing."
        )
      self._saved = saved
    except (OSError, CheckpointError) as error:
      warn(f"no old checkpoint was deleted: {error}")
      return
    for step in self.policy.superfluous(saved):
      del self._saved[step]  # what stays is read again
      try:
        retention.delete(self._path(step))
      except OSError as error:
        warn(f"an old checkpoint was not deleted: {error}")

  def save(self, step: int, *, params, training, meta: dict) -> bool:
    """Begins to save a step; returns once the arrays are copied to the host.

    Waits for the previous save first, if that is still being written.

    Args:
      step: larger than any step on disk, or one that is there already.
      params: pytree of arrays, nested dicts.
      training: pytree of arrays, everything else that a run needs to go on.
      meta: JSON-able, see `checkpoint.manifest`: "config", "examples_seen", "metrics" {name:
        float}, "versions", ...

    Returns:
      Whether a save was begun; False when the step is committed already.

    Raises:
      WriteFailed: this save could not begin, or the previous one failed; a later one may succeed.
      CheckpointError: there is a later step, and Orbax saves none below it.
      PeerLost: not all processes came to save; who did not is named.
    """
    self._check_owner()
    self.wait()
    manager = self._manager_to_save(step)
    if step in self._known:
      return False
    # Process 0 may still be hashing; Orbax's own first barrier would wait for it forever.
    meet(f"the save of step {step}")
    self._confirm(step)
    self._sweep()
    self._left_over.clear()
    trees = {"params": tree.recorded(params), "training": tree.recorded(training)}
    content = {"step": step, "time": time.time(), "trees": trees, **_json_copy(meta)}
    items = ocp.args.Composite(
        params=ocp.args.PyTreeSave(params), training=ocp.args.PyTreeSave(training)
    )
    try:
      with self._gate:
        begun = manager.save(step, args=items)
    except PeerLost:
      raise
    except Exception as error:  # pylint: disable=broad-exception-caught
      failure = self._failed_to_save(step, error)
      self._discard(step)
      raise failure from error
    if not begun:
      raise CheckpointError(
          f"Orbax refused to save step {step} in {self.directory}, which holds a later step,"
          f" {manager.latest_step()}: move that one away, or train in another directory"
      )
    self._known.add(step)
    self._saving = step
    self._commit_thread = threading.Thread(
        target=self._commit, args=(step, content), name=f"commit-{step}"
    )
    self._commit_thread.start()
    return True

  @property
  def saving(self) -> bool:
    """Whether a save was begun of which neither `check` nor `wait` has told the end."""
    return self._commit_thread is not None

  def check(self) -> None:
    """Raises the WriteFailed of a save that failed in the background; never waits."""
    if self._commit_thread is not None and not self._commit_thread.is_alive():
      self.wait()

  def wait(self) -> None:
    """Waits until the last save is committed; raises its WriteFailed if it failed."""
    if self._commit_thread is None:
      return
    self._commit_thread.join()
    self._commit_thread = None
    error, self._error = self._error, None
    if error is None:
      return
    self._known.discard(self._saving)
    try:
      self._orbax.wait_until_finished()  # Orbax raises the error once in each thread.
    except Exception:  # pylint: disable=broad-exception-caught
      pass  # It is the one raised next.
    if isinstance(error, WriteFailed):  # else it may be another's by now
      self._discard(self._saving)
    raise error

  def finish(self, *, complete: bool, alive: Callable[[], None] = lambda: None) -> None:
    """Waits until everything is where it is to stay, which it is once it is committed.

    Args:
      complete: whether the run is.
      alive: is called while that goes on.
    """
    del complete, alive  # `Tiers` needs them.
    self.wait()

  def close(self) -> None:
    """Waits for the last save and frees Orbax's threads.

    Raises:
      WriteFailed: the last save failed.
    """
    try:
      self.wait()
    finally:
      self._sweep()
      if self._orbax is not None:
        try:
          self._orbax.close()
        except (OSError, ValueError) as error:  # again that of a save which has failed, and was told
          warn(f"{self.directory}: {reason(error)}.")
        self._orbax = None

  def recover(self, *, strict: bool = False, beyond: int = -1) -> recovery.Recovery:
    """Puts the directory in order before training: `(notes, newest good step or None)`.

    Removes left-over temporary directories and steps that were never committed; moves steps
    that fail verification, newest first, to STEP.corrupt until one is good; says which committed
    ones are gone.  The notes, one sentence a change, are process 0's.

    Args:
      strict: whether to raise where the newest step is damaged or gone, rather than go on.
      beyond: a step up to which none is verified, or returned, because a good one is at hand.

    Raises:
      CheckpointError: something cannot be removed or renamed; or, if `strict`, the newest step is
        damaged, which then stays where it is, or gone.
    """
    self._check_owner()
    self.wait()
    notes = []

    def put_in_order() -> int:
      try:
        found, step = recovery.recover(self.directory, strict=strict, beyond=beyond)
      except OSError as error:
        raise CheckpointError(
            f"{self.directory} cannot be put in order: {error}. Make it writable for this user,"
            " or train in another directory"
        ) from error
      notes.extend(found)
      return -1 if step is None else step

    newest = decided_by_first(put_in_order, "the order of the checkpoints")
    self._fetched.clear()
    self._saved.clear()
    if self._orbax is not None:
      self._orbax.reload()
      self._known = set(self._orbax.all_steps())
    return recovery.Recovery(notes, None if newest < 0 else newest)

  def forget_gone(self) -> None:
    """What was committed and is gone has been said; training goes on, and may save it anew."""
    if jax.process_index() == 0:
      with contextlib.suppress(OSError):  # the next start does it
        recovery.forget_gone(self.directory)

  def is_lost(self) -> bool:
    """Whether all steps were set aside or are gone; CheckpointError if that cannot be seen."""
    try:
      return recovery.is_lost(self.directory)
    except OSError as error:
      raise CheckpointError(f"{self.directory} cannot be read: {reason(error)}") from error

  def verify(self, step: int) -> list[str]:
    """What is wrong with a step's files, one line each; empty when every byte is as written."""
    return manifest.problems(self._path(step))

  def meta(self, step: int) -> dict:
    """What `save` was given as `meta`; raises as `restore`."""
    return self._verified(step)

  def restore(self, step: int, *, params, training):
    """Reads a whole step, onto whatever devices the abstract trees ask for.

    Args:
      params: pytree of `jax.ShapeDtypeStruct` with shardings, of the structure that was saved.
      training: likewise.

    Returns:
      (params, training, meta): trees of `jax.Array`, and what `save` was given as `meta`.

    Raises:
      CheckpointError: a file is not as it was written, or the trees do not fit; named each.
    """
    meta = self._verified(step)
    wanted = dict(zip(_ITEMS, (params, training)))
    stored = self._stored_trees(step)
    lines = []
    for name in _ITEMS:
      lines += tree.differences(wanted[name], stored[name], prefix=name)
    if lines:
      raise CheckpointError(
          f"Step {step} in {self.directory} holds another model or optimizer than this run's:"
          f" {recovery.summary(lines, listed=20)}"
      )
    restored = self._read(step, {
        name: ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
        )
        for name, item in wanted.items()
    })
    return restored["params"], restored["training"], meta

  def restore_params(self, step: int) -> tuple[dict, dict]:
    """Reads the parameters alone, without a model or a mesh.

    Returns:
      (params, meta): nested dict of NumPy arrays as saved, and what `save` was given as `meta`.

    Raises:
      CheckpointError: a file is not as it was written.
    """
    meta = self._verified(step)
    as_numpy = _as_numpy(self._stored_trees(step)["params"])
    restored = self._read(step, {"params": ocp.args.PyTreeRestore(restore_args=as_numpy)})
    return restored["params"], meta

  def has(self, step: int, name: str) -> bool:
    """Whether a step holds something as `training[name]`, such as "ema"."""
    return bool(self._stored_trees(step)["training"].get(name))

  def restore_ema(self, step: int) -> tuple[dict | None, dict]:
    """Reads the average of the parameters alone: `training["ema"]`, as `restore_params`.

    Returns:
      (average, meta), the average None where the run keeps none.

    Raises:
      CheckpointError: a file is not as it was written.
    """
    meta = self._verified(step)
    stored = self._stored_trees(step)["training"].get("ema")
    if not stored:
      return None, meta
    wanted = ocp.args.PyTreeRestore(
        item={"ema": stored}, restore_args={"ema": _as_numpy(stored)}, partial_restore=True
    )
    return self._read(step, {"training": wanted})["training"]["ema"], meta

  def _path(self, step: int) -> epath.Path:
    return self.directory / str(step)

  def _manager(self) -> ocp.CheckpointManager:
    """Orbax's manager, which keeps everything: what goes is decided in `retain`."""
    if self._orbax is None:
      late_callbacks.silence()
      policies = ocp.checkpoint_managers
      try:
        self._orbax = ocp.CheckpointManager(
            os.fspath(self.directory),
            item_handlers={name: late_writes.make_handler(self._gate) for name in _ITEMS},
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=policies.FixedIntervalPolicy(1),
                preservation_policy=policies.LatestN(n=None),
                create=not self._read_only,
                save_root_metadata=False,
                # Else Orbax waits for minutes for a directory that could not be made.
                async_options=ocp.AsyncOptions(
                    create_directories_asynchronously=False, timeout_secs=PATIENCE,
                    barrier_sync_fn=barrier,
                ),
                lightweight_initialize=True,  # else a damaged step could stop us here
            ),
        )
      except Exception as error:  # of a bucket it may be any type
        if not isinstance(error, OSError) and failures.reason(error) is None:
          raise
        said = failures.reason(error) or error
        raise CheckpointError(f"{self.directory} cannot be opened: {said}") from error
      self._known = set(self._orbax.all_steps())
    return self._orbax

  def _manager_to_save(self, step: int) -> ocp.CheckpointManager:
    """`_manager`, where a step can be saved; raises WriteFailed where it cannot."""
    try:
      self._home.check()  # before Orbax makes it anew
      manager = self._manager()
      self._home.check()  # now that it is there
      return manager
    except (CheckpointError, OSError) as error:
      raise self._failed_to_save(step, error) from error

  def _confirm(self, step: int) -> None:
    """Before anything is written: raises as `confirm_owner`, WriteFailed where that cannot tell."""
    if self._confirm_owner is not None and jax.process_index() == 0:
      try:
        self._confirm_owner()
      except OSError as error:
        raise self._failed_to_save(step, error) from error

  def _check_owner(self) -> None:
    if self._read_only:
      raise ValueError(f"{self.directory} was opened for reading only")

  def _commit(self, step: int, content: dict) -> None:
    """In a thread: after Orbax's last file writes the manifest, then deletes old steps."""
    try:
      self._orbax.wait_until_finished()
      if jax.process_index() == 0:
        self._check_trees(step, content["trees"])
        manifest.write(self._path(step), content, confirm_owner=self._confirm_owner)
        commit.mark(self._path(step))
        self._on_commit()
    except (ConfigError, PeerLost) as error:  # of `confirm_owner`, of a barrier
      self._error = error
    except Exception as error:  # pylint: disable=broad-exception-caught
      self._error = self._failed_to_save(step, error)
      self._error.__cause__ = error
    finally:
      freed_memory.give_back()

  def _discard(self, step: int) -> None:
    """Removes what a failed save has left, which may be what fills the disk.

    Of several processes none knows whether the others still write: the next start does it.
    """
    if jax.process_count() > 1:
      return
    self._left_over.add(step)
    self._sweep()
    with contextlib.suppress(Exception):
      self._orbax.reload()
      self._known = set(self._orbax.all_steps())

  def _sweep(self) -> None:
    """Removes what failed saves have left, as far as nothing is still being written there."""
    for step in self._left_over:
      with contextlib.suppress(OSError):
        recovery.discard(self.directory, step)

  def _failed_to_save(self, step: int, error: BaseException) -> WriteFailed:
    try:
      earlier = [done for done in self.steps() if done != step]
    except CheckpointError:
      earlier = []
    last = f"Step {earlier[-1]} is there still" if earlier else "There is no earlier one"
    return WriteFailed(
        f"Saving step {step} to {self._path(step)} failed: {reason(error)}. {last}. Make room"
        " or restore access there"
    )

  def _verified(self, step: int) -> dict:
    """The meta data of a step whose files are all as they were written."""
    self.wait()
    path = self._path(step)

    def check() -> int:
      if step in self._fetched:
        return 0
      try:
        committed = commit.is_committed(path)
        problems = self.verify(step) if committed else []
      except OSError as error:
        raise self._failed_to_read(step, error) from error
      if not committed:
        have = ", ".join(map(str, self.steps())) or "none"
        raise CheckpointError(f"{path} is no committed checkpoint; committed steps: {have}")
      if problems:
        raise CheckpointError(
            f"{path} is damaged: {recovery.summary(problems)}. Restore an earlier step of"
            f" {self.steps()}, or copy the checkpoint again from where it came"
        )
      if is_bucket(path):
        self._fetched.add(step)
      return 0

    decided_by_first(check, f"the check of step {step}")
    content = manifest.read(path)
    return {name: content[name] for name in content if name not in _OURS}

  def _stored_trees(self, step: int) -> dict:
    """Trees of what is stored, leaves with shape and dtype, by item.

    Raises:
      CheckpointError: they cannot be read, or are not those that were handed to `save`.
    """
    # An older manifest has none.
    return self._check_trees(step, manifest.read(self._path(step)).get("trees", {}))

  def _check_trees(self, step: int, wanted: dict) -> dict:
    """As `_stored_trees`, given what was handed to `save`."""
    try:
      items = self._manager().item_metadata(step)
      stored = {name: items[name].tree for name in _ITEMS}
    except Exception as error:  # pylint: disable=broad-exception-caught
      raise self._failed_to_read(step, error) from error
    for name, leaves in wanted.items():
      if leaves != tree.recorded(stored[name]):
        raise CheckpointError(
            f"{self._path(step)} holds other {name} than its {manifest.NAME} lists: it was not"
            " written whole. Restore an earlier step, or copy it again from where it came"
        )
    return stored

  def _read(self, step: int, items: dict):
    try:
      return self._manager().restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # pylint: disable=broad-exception-caught
      raise self._failed_to_read(step, error) from error

  def _failed_to_read(self, step: int, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{self._path(step)} cannot be read: {reason(error)}")


def _as_numpy(stored):
  """How Orbax is told to give every leaf as a NumPy array."""
  return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)


def _json_copy(meta: dict) -> dict:
  """A private copy of `meta`; metrics that are not finite become None, as JSON has no NaN."""
  metrics = {
      name: value if math.isfinite(value) else None
      for name, value in meta.get("metrics", {}).items()
  }
  return json.loads(json.dumps({**meta, "metrics": metrics}, allow_nan=False))


def reason(error: BaseException) -> str:
  """The operating system's words, or a bucket's, where the error or what caused it has them; on one
  line."""
  if said := failures.reason(error):
    return said
  seen = error
  while seen is not None:
    # TensorStore puts the number into its text.
    stated = re.search(r"os_error_code='(\d+)'", str(seen))
    code = int(stated[1]) if stated else getattr(seen, "errno", None)
    if code is not None:
      text = getattr(seen, "strerror", None) or os.strerror(code)
      return f"{text} ({errno.errorcode.get(code, code)})"
    seen = seen.__cause__ or seen.__context__
  text = " ".join(str(error).split()) or type(error).__name__
  return text if len(text) <= 400 else text[:400] + " ..."

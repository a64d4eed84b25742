"""One process decides about shared files, the others follow; and where they wait for each other."""

import itertools
import re
import sys
from typing import Callable

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import multihost

from vit_jax.errors import CheckpointError, PeerLost

# Seconds at a barrier: process 0 may be reading or writing terabytes.
PATIENCE = 3600
_FAILED = -(2**31)
_meetings = itertools.count()  # the same on all processes, as all take part in each


def decided_by_first(decide: Callable[[], int], what: str = "a decision") -> int:
  """`decide()`, run by process 0 alone; its value on every process.

  Args:
    decide: its value fits an int32 and is at least -1.  When it raises, process 0 raises the same
      and the others a CheckpointError of the same exit code, so that nobody waits for a process
      that has left.
    what: is decided, for the message of a PeerLost.

  Raises:
    PeerLost: not all processes have come here within an hour.
  """
  if jax.process_count() == 1:
    return decide()
  value, error = _FAILED, None
  if jax.process_index() == 0:
    try:
      value = decide()
    except Exception as caught:  # pylint: disable=broad-exception-caught
      error, code = caught, getattr(caught, "exit_code", CheckpointError.exit_code)
      value = _FAILED + code
  meet(what)
  value = int(multihost_utils.broadcast_one_to_all(np.int32(value)))
  if error is not None:
    raise error
  if value < -1:
    failure = CheckpointError("Process 0 found a fault; its message names it")
    failure.exit_code = value - _FAILED
    raise failure
  return value


def meet(name: str, *, seconds: float = PATIENCE) -> None:
  """Waits for the other processes; unlike a collective, not forever.

  Args:
    name: what for, as a reader would say it; all processes come here in the same order.
    seconds: to wait for the others.

  Raises:
    PeerLost: some have not come in time; they are named.
  """
  if jax.process_count() > 1:
    _wait(f"{name} ({next(_meetings)})", round(seconds * 1000))


def barrier(*, key: str, timeout_ms: int) -> None:
  """`meet` in the form in which Orbax wants it, also for threads: a key is used once at a time.

  Where a save has failed, Orbax comes here with that exception under way, to tell the others that
  it has ended.  They wait elsewhere, for what this process has not written, and neither would come
  to the other: the exception goes on at once, and what it ends tells them.
  """
  if (failure := sys.exc_info()[1]) is not None:
    raise failure
  _wait(key, timeout_ms)


def _wait(key: str, timeout_ms: int) -> None:
  try:
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)
  except RuntimeError as error:
    raise PeerLost(
        f"{_who(str(error))} within {timeout_ms / 1000:g} s to {key!r}, where process "
        f"{jax.process_index()} waited: see there whether it hangs, and why. Start all processes "
        "again; the same command continues the run"
    ) from error


def _who(said: str) -> str:
  """Who is missing, from what the coordination service says of a barrier that failed."""
  _, _, listed = said.partition("timed out task names:")
  missing = sorted({int(task) for task in re.findall(r"^(?:\S*task:)?(\d+)\s*$", listed, re.M)})
  if not missing:
    return f"the processes could not come ({said.strip().splitlines()[0]})"
  return f"process{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))} did not come"

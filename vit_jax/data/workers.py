"""Processes that prepare whole batches, in turn: the stream is that of one process.

Worker k of W makes the batches k, k + W, ...; they come back in shared memory.  A worker starts
anew (no fork), takes a second or two to do so, and never touches an accelerator.
"""

import functools
import os
import pickle
import signal
import sys
from typing import Callable, Iterator

from absl import flags
import grain
import numpy as np

from vit_jax.data.lifeline import die_with_parent
from vit_jax.errors import DataError, WorkerLost


def iterate(dataset: grain.MapDataset, workers: int) -> Iterator[dict[str, np.ndarray]]:
  """Yields the elements in order; `close()` ends the processes, which start with the first.

  Args:
    dataset: of dicts of arrays; can be pickled; what it raises should be `sendable`.
    workers: at least 1, at most as many as there are elements.

  Raises:
    WorkerLost: from `next`, a worker was killed; nothing that follows can be relied on.
    DataError: likewise, it could not work.
    Whatever the data set raises, from `next`.
  """
  if not flags.FLAGS.is_parsed():  # Grain reads flags, which only absl's own main would parse
    flags.FLAGS.mark_as_parsed()
  reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
  iterator = iter(
      dataset.to_iter_dataset(reading).mp_prefetch(options, worker_init_fn=_begin)
  )
  return _Workers(iterator)


class _Workers:
  """Grain's iterator, with an error of ours."""

  def __init__(self, iterator):
    self._iterator = iterator

  def __iter__(self):
    return self

  def __next__(self):
    try:
      element = next(self._iterator)
    except RuntimeError as error:
      if "terminated unexpectedly" not in str(error):
        raise
      raise _death(str(error)) from error
    return {key: _anonymous(value) for key, value in element.items()}

  def close(self) -> None:
    self._iterator.close()


def _anonymous(array: np.ndarray) -> np.ndarray:
  """Takes the name off an array's shared memory, which then ends with its last user.

  By itself Grain does so when the array goes, which those that are in use at the end never do.
  """
  if (shared := getattr(array, "shm", None)) is not None:
    shared.unlink()
    array._unlink_on_del = False
  return np.asarray(array)


def _death(said: str) -> DataError:
  """What a dead worker comes to; `said` is Grain's message, with the exit code."""
  code = next((int(word.rstrip(".")) for word in said.split() if _is_number(word)), None)
  if code is not None and code < 0:
    how = f"was killed by {_signal_name(-code)}"
  else:
    how = f"ended with exit code {code}, for the reason above"
  if code == -signal.SIGBUS:
    advice = "/dev/shm is too small for the batches (docker run --shm-size=8g enlarges it)"
  else:
    advice = "perhaps for want of memory: lower config.input.workers if it happens again"
  # What is not for want of this process's own means may be better the next time.
  kind = WorkerLost if code is not None and code < 0 and code != -signal.SIGBUS else DataError
  return kind(
      f"a worker process of the input {how}, {advice}. No batch is lost or changed: the same "
      "command continues from the last checkpoint"
  )


def _is_number(word: str) -> bool:
  return word.rstrip(".").lstrip("-").isdigit()


def _signal_name(number: int) -> str:
  try:
    return signal.Signals(number).name
  except ValueError:
    return f"signal {number}"


def _begin(index: int, count: int) -> None:
  """Runs in each worker before anything else."""
  del index, count
  die_with_parent()
  # Ctrl-C and a scheduler's notice reach the whole group; the main process decides what follows.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  # Grain imports jax, which is harmless as long as it starts no backend.
  os.environ["JAX_PLATFORMS"] = "cpu"
  if jax := sys.modules.get("jax"):
    jax.config.update("jax_platforms", "cpu")


def sendable(function: Callable) -> Callable:
  """Returns the function with its exceptions made such that another process can receive them.

  One that cannot be pickled would vanish on the way, and the receiver wait for ever.
  """

  @functools.wraps(function)
  def wrapped(*args):
    try:
      return function(*args)
    except Exception as error:
      try:
        pickle.loads(pickle.dumps(error))
      except Exception:
        raise DataError(f"{type(error).__name__}: {error}") from None
      raise

  return wrapped

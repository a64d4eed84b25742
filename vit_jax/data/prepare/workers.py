"""Processes that work in parallel, and die with the one that started them."""

import concurrent.futures
import contextlib
import multiprocessing
from typing import Callable, Iterator, Sequence

from vit_jax.data.lifeline import die_with_parent
from vit_jax.errors import DataError


class Workers:
  """Calls functions on several cores; one worker is this process itself."""

  def __init__(self, count: int):
    self._pool = None
    if count > 1:
      # Spawned, because a fork would inherit threads of the libraries loaded here.
      self._pool = concurrent.futures.ProcessPoolExecutor(
          count, mp_context=multiprocessing.get_context("spawn"), initializer=die_with_parent
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._pool is not None:
      self._pool.shutdown(wait=True, cancel_futures=True)

  def ordered(self, function: Callable, arguments: Sequence) -> Iterator:
    """Yields the results in the order of the arguments."""
    if self._pool is None:
      yield from map(function, arguments)
      return
    with _dead_worker():
      yield from self._pool.map(function, arguments)

  def finished(self, function: Callable, arguments: Sequence) -> Iterator:
    """Yields the results as they come."""
    if self._pool is None:
      yield from map(function, arguments)
      return
    with _dead_worker():
      futures = [self._pool.submit(function, argument) for argument in arguments]
      try:
        for future in concurrent.futures.as_completed(futures):
          yield future.result()
      finally:
        for future in futures:
          future.cancel()


@contextlib.contextmanager
def _dead_worker():
  try:
    yield
  except concurrent.futures.process.BrokenProcessPool as error:
    raise DataError(
        "a worker of prepare was killed, perhaps for want of memory: repeat the same command, "
        "with fewer --workers if it happens again; finished shards are kept"
    ) from error

"""What a model answers for each example of a split, in the split's order, on every host."""

import collections
from typing import Callable

import jax
import numpy as np

from vit_jax.errors import ConfigError


class Gather:
  """Collects rows over a split, exactly and over a mesh.

  The batches cover the split once; what lies behind its last example is cut off.
  """

  def __init__(
      self, *, function: Callable, batches: Callable, examples: int, out_sharding
  ):
    """Prepares a collection.

    Args:
      function: of (params, prepared batch) to a dict of arrays `[B, ...]`.
      batches: function of no arguments to an iterator of device batches (image, label, mask).
      examples: N, the length of the split.
      out_sharding: replicated over the mesh, so that every process reads all rows.
    """
    self._batches, self._examples = batches, examples

    def rows(params, batch):
      if "labels" in batch:
        raise ConfigError(
            f"the split has up to {batch['labels'].shape[1]} labels an image, and this measure "
            "compares with one: measure without config.evaluate.real_labels, or on other data"
        )
      return function(params, batch) | {"labels": batch["label"], "readable": batch["mask"] > 0}

    self._rows = jax.jit(rows, out_shardings=out_sharding)

  def run(self, params) -> dict[str, np.ndarray]:
    """Returns host arrays `[N, ...]`: the function's, "labels" int32 (-1 where an example has
    none) and "readable" bool; rows that are not readable hold anything.

    Raises:
      ConfigError: examples with several labels.
      ValueError: the batches hold less than the split.
    """
    gathered, start = {}, 0
    for batch in self._fetched(params):
      stop = min(self._examples, start + len(batch["labels"]))
      for name, rows in batch.items():
        if name not in gathered:
          gathered[name] = np.empty((self._examples, *rows.shape[1:]), rows.dtype)
        gathered[name][start:stop] = rows[: stop - start]
      start = stop
    if start < self._examples:
      raise ValueError(f"the batches hold {start} examples, the split {self._examples}")
    return gathered

  def _fetched(self, params):
    """Yields each batch's rows on the host, while the device works at the next two."""
    waiting = collections.deque()
    for batch in self._batches():
      waiting.append(self._rows(params, batch))
      if len(waiting) > 2:
        yield jax.device_get(waiting.popleft())
    yield from map(jax.device_get, waiting)

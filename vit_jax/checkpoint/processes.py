"""One process decides about shared files, the others follow."""

from typing import Callable

import jax
from jax.experimental import multihost_utils
import numpy as np

from vit_jax.errors import CheckpointError

_FAILED = -(2**31)


def decided_by_first(decide: Callable[[], int]) -> int:
  """`decide()`, run by process 0 alone; its value on every process.

  Args:
    decide: its value fits an int32.  When it raises, process 0 raises the same and the others a
      CheckpointError, so that nobody waits for a process that has left.
  """
  if jax.process_count() == 1:
    return decide()
  value, error = _FAILED, None
  if jax.process_index() == 0:
    try:
      value = decide()
    except Exception as caught:  # pylint: disable=broad-exception-caught
      error = caught
  value = int(multihost_utils.broadcast_one_to_all(np.int32(value)))
  if error is not None:
    raise error
  if value == _FAILED:
    raise CheckpointError("Process 0 found a fault in the checkpoints; its message names it")
  return value

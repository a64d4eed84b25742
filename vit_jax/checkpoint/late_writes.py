"""A gate for Orbax's threads, which begin to write when `save` is through.

Orbax already writes one tree while it takes the next from the devices.  On few cores its threads
hold up the one that trains, most of all at the start of each further thread.
"""

import asyncio
from concurrent import futures
import copy
from typing import Awaitable, Callable

import jax
import numpy as np
import orbax.checkpoint as ocp

_OTHER_TYPES = (int, float, bytes, np.number, np.ndarray, str)


class Gate:
  """A context in which no array is written that was given to a handler with this gate."""

  def __init__(self):
    self._opened = futures.Future()
    self._opened.set_result(None)

  def __enter__(self):
    self._opened = futures.Future()

  def __exit__(self, *_):
    self._opened.set_result(None)

  def waiter(self) -> Callable[[], Awaitable[None]]:
    """What returns when the gate as it stands now is open; in any thread's event loop."""
    opened = self._opened

    async def wait() -> None:
      await asyncio.shield(asyncio.wrap_future(opened))

    return wait


def make_handler(gate: Gate) -> ocp.PyTreeCheckpointHandler:
  """Orbax's handler, whose writers wait for the gate.

  Of this very class, because a checkpoint names it, and any Orbax is to read it.  Nothing is
  compressed: trained float32 numbers hardly shrink, and take time and memory for it.
  """
  types = ocp.type_handlers
  arrays = copy.copy(types.get_type_handler(jax.Array))
  serialize = arrays.serialize

  async def serialize_late(values, infos, *more):
    # What Orbax awaits before it writes: a directory that it made in the background.  Ours is
    # there.  (Such directories themselves are resolved by two threads at once, and not safely.)
    wait = gate.waiter()
    late = [info.replace(await_path_creation=wait) for info in infos]
    return await serialize(values, late, *more)

  arrays.serialize = serialize_late
  others = [(kind, types.get_type_handler(kind)) for kind in _OTHER_TYPES]
  return ocp.PyTreeCheckpointHandler(
      use_compression=False,
      type_handler_registry=types.create_type_handler_registry((jax.Array, arrays), *others),
  )

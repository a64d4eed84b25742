"""A gate for Orbax's threads, which begin to write when `save` is through.

Orbax already writes one tree while it takes the next from the devices.  On few cores its threads
hold up the one that trains, most of all at the start of each further thread.
"""

import asyncio
from concurrent import futures
import dataclasses

from etils import epath
import orbax.checkpoint as ocp


class Gate:
  """A context in which nothing is written that was given to a handler with this gate."""

  def __init__(self):
    self._opened = futures.Future()
    self._opened.set_result(None)

  def __enter__(self):
    self._opened = futures.Future()

  def __exit__(self, *_):
    self._opened.set_result(None)

  def path(self, path: epath.Path) -> "_LatePath":
    """The path, which exists but is awaited until the gate opens."""
    return _LatePath(path, self._opened)


@dataclasses.dataclass
class _LatePath:
  """What Orbax calls a PathAwaitingCreation: its writers await it before they begin."""

  path: epath.Path
  opened: futures.Future

  def __truediv__(self, name) -> "_LatePath":
    return _LatePath(self.path / name, self.opened)

  async def await_creation(self) -> epath.Path:
    await asyncio.shield(asyncio.wrap_future(self.opened))
    return self.path


def make_handler(gate: Gate) -> ocp.PyTreeCheckpointHandler:
  """Orbax's handler, whose writers wait for the gate.

  Of this very class, because a checkpoint names it, and any Orbax is to read it.  Nothing is
  compressed: trained float32 numbers hardly shrink, and take time and memory for it.
  """
  handler = ocp.PyTreeCheckpointHandler(use_compression=False)
  async_save = handler.async_save

  async def save_late(directory: epath.Path, *arguments, **more):
    return await async_save(gate.path(directory), *arguments, **more)

  handler.async_save = save_late
  return handler

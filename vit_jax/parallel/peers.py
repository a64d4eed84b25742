"""Whether the other processes are there still, seen at their connections, which end with them.

The connections are those of the `rendezvous`, a star around process 0.  JAX notices a loss, too:
from heartbeats, after 10 s, and then it aborts (SIGABRT) with a number at best.  A connection ends
in the moment in which its process does, whatever the accelerators wait for, and says whose it was.
A frozen process keeps its connection; that one is left to JAX's heartbeats, which no lock of Python
can hold up.

Lines of JSON: {"leaves": exit code, "orderly": whether the others may go on} of who ends,
{"lost": text, "code": exit code} of process 0 to all others when one has gone.
"""

import contextlib
import json
from multiprocessing import connection as multiplexing
import os
import socket
import sys
import threading
from typing import Callable

from vit_jax.errors import PeerLost
from vit_jax.parallel.clusters import Cluster

# Seconds of silence after which the system asks whether a machine is there still, so that no
# router forgets the connection.
_KEEP_ALIVE = 60
_LINE = 2**16  # bytes
# Exit codes on which no launcher starts a process again: who leaves for the same reason takes them
# over, else it would be started to wait for one that is not.
_FOR_GOOD = (2, 3, 4, 5)


class Peers:
  """Watches the others in a thread, and ends this process, with 75, when one of them has gone."""

  def __init__(
      self, cluster: Cluster, connections: dict[int, socket.socket],
      *, end: Callable[[str, int], None] | None = None,
  ):
    """Takes the connections over.

    Args:
      connections: what `rendezvous.meet` returned.
      end: is called in the thread, with what has happened and the exit code, instead of ending the
        process.
    """
    self._cluster = cluster
    self._connections = {connection: process for process, connection in connections.items()}
    self._left: dict[int, dict] = {}  # what those said who leave
    self._leaving = False
    self._end = end or _end
    for connection in connections.values():
      connection.settimeout(5.0)
      _keep_alive(connection)
    threading.Thread(target=self._watch, name="peers", daemon=True).start()

  def leave(self, code: int, *, orderly: bool) -> None:
    """Tells the others that this process ends, and watches them no longer."""
    self._leaving = True
    self._tell({"leaves": code, "orderly": orderly})

  def _watch(self) -> None:
    open_ones = dict(self._connections)
    while open_ones and not self._leaving:
      for connection in multiplexing.wait([*open_ones]):
        said = _receive(connection)
        if said is None:
          lost = self._lost(open_ones.pop(connection))
        else:
          self._left[open_ones[connection]] = said
          lost = (said["lost"], said["code"]) if "lost" in said else None
        if lost and not self._leaving:
          text, code = lost
          self._tell({"lost": text, "code": code})
          self._end(text, code)
          return

  def _lost(self, process: int) -> tuple[str, int] | None:
    """What a connection's end means, and the exit code for it; None where that was announced."""
    said, name = self._left.get(process, {}), self._cluster.name(process)
    if said.get("orderly"):
      return None
    if "leaves" in said:
      code = said["leaves"] if said["leaves"] in _FOR_GOOD else PeerLost.exit_code
      return (
          f"process {name} has left with exit code {said['leaves']}: its messages say why. Start "
          "all processes again, when that is mended"
      ), code
    return (
        f"process {name} has gone without a word: it was killed, or its machine or its network "
        "failed. Start all processes again; the same command continues the run"
    ), PeerLost.exit_code

  def _tell(self, message: dict) -> None:
    for connection in self._connections:
      try:
        connection.sendall(json.dumps(message).encode() + b"\n")
      except OSError:
        pass  # It has gone, too.


def _receive(connection: socket.socket) -> dict | None:
  """The line that is there; None where there will be none any more."""
  try:
    line = connection.makefile("rb", buffering=0).readline(_LINE)
    said = json.loads(line) if line else None
  except (OSError, ValueError):
    return None
  return said if isinstance(said, dict) else None


def _keep_alive(connection: socket.socket) -> None:
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  if hasattr(socket, "TCP_KEEPIDLE"):  # not on macOS
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_ALIVE)


def _end(lost: str, code: int) -> None:
  """Ends this process at once: its other threads may wait for the lost one for ever."""
  with contextlib.suppress(OSError, ValueError):  # a full disk, a reader that has left
    # One write, because the main thread may be saying something, too.
    os.write(2, " ".join(f"vit-jax: {lost}".split()).encode() + b"\n")
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
  os._exit(code)

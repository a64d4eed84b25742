"""All processes meet at the coordinator's address before JAX starts, and who is absent is named.

JAX waits there too, but when its time is up it names nobody and aborts (SIGABRT, jax 0.10.2), and
it lets processes train together that were started with different commands.  So process 0 first
listens there itself.  Each of the others sends a line of JSON, {"process", "processes", "host",
"command"}, and is answered when all have come, or at the end of the time: {"error": null or a text,
"lost": whether a peer is}.  When all have come the connections stay, for `peers`.
"""

import contextlib
import errno
import json
from multiprocessing import connection as multiplexing
import socket
import sys
import time

from vit_jax.errors import ConfigError, PeerLost, VitJaxError
from vit_jax.parallel.clusters import Cluster

_REMIND = 30.0  # seconds between two lines on who is absent
_TAKEN = 30.0  # seconds for whoever had the port, such as a run that is ending
_HELLO = 5.0  # seconds for a line that is already on its way
_STRAGGLE = 5.0  # seconds for the others to hear of a mistake, too
_LISTED = 20  # processes


def meet(
    cluster: Cluster, *, timeout: float, command: dict[str, str]
) -> dict[int, socket.socket]:
  """Returns when all processes have come: an open connection to each of the others by process 0, to
  process 0 by each of the others.

  Args:
    timeout: seconds.
    command: name to value of what must be the same for all.

  Raises:
    PeerLost: some have not come in time; all are named, on each of those that have.
    ConfigError: two have the same number, or were started with different commands.
  """
  if cluster.process == 0:
    return _Host(cluster, command).wait(timeout)
  return {0: _report(cluster, timeout, command)}


class _Host:
  """Process 0's side."""

  def __init__(self, cluster: Cluster, command: dict[str, str]):
    self._cluster, self._command = cluster, command
    self._hosts = {0: socket.gethostname()}  # of those who are here
    self._connections: dict[socket.socket, int | None] = {}  # None is nobody's number
    self._wrong: str | None = None

  def wait(self, timeout: float) -> dict[int, socket.socket]:
    deadline = time.monotonic() + timeout
    remind = time.monotonic() + _REMIND
    with _listen(self._cluster, min(timeout, _TAKEN)) as listener:
      try:
        while (absent := self._absent()) and (left := deadline - time.monotonic()) > 0:
          if time.monotonic() > remind:
            remind += _REMIND
            print(f"processes: waiting for {_listed(self._cluster, absent)}", file=sys.stderr,
                  flush=True)
          ready = multiplexing.wait([listener, *self._connections], min(1.0, left))
          for gone in set(ready) - {listener}:  # before one comes again
            self._forget(gone)
          if listener in ready and self._welcome(listener) and self._wrong:
            deadline = min(deadline, time.monotonic() + _STRAGGLE)
        error = None
        if self._wrong:
          error = ConfigError(self._wrong)
        elif absent:
          error = PeerLost(_absence(self._cluster, absent, timeout))
        self._answer(error)
        if error:
          raise error
      except BaseException:
        for connection in self._connections:
          connection.close()
        raise
    return {process: connection for connection, process in self._connections.items()}

  def _absent(self) -> list[int]:
    return [i for i in range(self._cluster.processes) if i not in self._hosts]

  def _welcome(self, listener: socket.socket) -> bool:
    """Takes note of a process; False for what else knocks at a port."""
    try:
      connection, _ = listener.accept()
    except OSError:
      return False  # It has gone.
    try:
      connection.settimeout(_HELLO)
      hello = json.loads(connection.makefile("rb").readline(2**20))
      process, host = int(hello["process"]), str(hello["host"])
      processes, command = int(hello["processes"]), dict(hello["command"])
    except (OSError, ValueError, KeyError, TypeError):
      connection.close()
      return False
    self._wrong = self._wrong or self._contradiction(process, host, processes, command)
    taken = process in self._hosts
    self._connections[connection] = None if taken else process
    self._hosts.setdefault(process, host)
    return True

  def _contradiction(self, process, host, processes, command) -> str | None:
    """What a process says that cannot be."""
    ours, own = self._cluster.processes, self._hosts[0]
    if processes != ours:
      return (
          f"process {process} on {host} is one of {processes}, process 0 on {own} one of {ours}: "
          "start all with the same --processes"
      )
    if process in self._hosts:
      return (
          f"two say that they are process {process}, on {self._hosts[process]} and on {host}: give "
          f"each its own --process, from 0 to {ours - 1}"
      )
    for name in sorted(self._command.keys() | command.keys()):
      if self._command.get(name) != command.get(name):
        return (
            f"process {process} on {host} was started with another command than process 0 on "
            f"{own}: {name} is {command.get(name)} there, {self._command.get(name)} here. Start "
            "all with the same"
        )
    return None

  def _forget(self, connection: socket.socket) -> None:
    """A process that says more than its line has gone, and may come again."""
    self._hosts.pop(self._connections.pop(connection), None)
    connection.close()

  def _answer(self, error: VitJaxError | None) -> None:
    told = {"error": error and str(error), "lost": isinstance(error, PeerLost)}
    for connection in self._connections:
      try:
        connection.sendall(json.dumps(told).encode() + b"\n")
      except OSError:
        pass  # It has gone; JAX will notice.


def _report(cluster: Cluster, timeout: float, command: dict[str, str]) -> socket.socket:
  """The other processes' side: the connection to process 0, which has answered that all came."""
  hello = json.dumps({
      "process": cluster.process, "processes": cluster.processes, "host": socket.gethostname(),
      "command": command,
  })
  deadline, reason = time.monotonic() + timeout, "no answer"
  while (left := deadline - time.monotonic()) > 0:
    with contextlib.ExitStack() as failing:
      try:
        connection = failing.enter_context(
            socket.create_connection(cluster.address, timeout=min(left, _HELLO))
        )
        connection.sendall(hello.encode() + b"\n")
        # Process 0 began to wait before it heard us.
        connection.settimeout(timeout + _HELLO)
        # Unbuffered, because what follows is for `peers`.
        answer = json.loads(connection.makefile("rb", buffering=0).readline())
        error, lost = answer["error"], answer["lost"]
      except (OSError, ValueError, KeyError, TypeError) as failure:  # a closed connection too
        reason = getattr(failure, "strerror", None) or reason
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
        continue
      if error:
        raise PeerLost(error) if lost else ConfigError(error)
      failing.pop_all()
      return connection
  raise PeerLost(
      f"process {cluster.name(0)} does not answer at {cluster.coordinator} after {timeout:g} s "
      f"({reason}): see whether it was started, and why it has ended, and whether that port is "
      "open between the machines. --start-timeout=SECONDS waits longer"
  )


def _listen(cluster: Cluster, patience: float) -> socket.socket:
  """A socket at the coordinator's port, on all addresses of this machine."""
  port, deadline = cluster.address[1], time.monotonic() + patience
  while True:
    try:
      listener = _server(port)
      listener.settimeout(_HELLO)
      return listener
    except OSError as error:
      if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
        raise ConfigError(
            f"process 0 cannot listen at port {port} ({error.strerror}): give another one, with "
            "--coordinator=HOST:PORT or JAX_COORDINATOR_PORT, to all processes"
        ) from error
      time.sleep(0.2)


def _server(port: int) -> socket.socket:
  """Of IPv6 and IPv4 where the machine has both."""
  if socket.has_dualstack_ipv6():
    try:
      return socket.create_server(
          ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
      )
    except OSError as error:
      if error.errno == errno.EADDRINUSE:
        raise
  return socket.create_server(("", port), backlog=1024)


def _listed(cluster: Cluster, processes: list[int]) -> str:
  names = ", ".join(map(cluster.name, processes[:_LISTED]))
  more = f" and {len(processes) - _LISTED} more" if len(processes) > _LISTED else ""
  return f"process{'es' if len(processes) > 1 else ''} {names}{more} of {cluster.processes}"


def _absence(cluster: Cluster, absent: list[int], timeout: float) -> str:
  return (
      f"{_listed(cluster, absent)} did not start within {timeout:g} s: see whether that was "
      "started, and why it has ended. --start-timeout=SECONDS waits longer"
  )

"""Several processes that train together: how one of them joins the others, speaks and leaves."""

import atexit
import contextlib
import os
import re
import sys
import threading
import time

import jax

from vit_jax.errors import (
    CheckpointError, ConfigError, NonFiniteError, PeerLost, Preempted, VitJaxError,
)
from vit_jax.parallel import clusters, rendezvous
from vit_jax.parallel.peers import Peers

# Seconds without a sign of life after which a process counts as dead; by default 100.
_HEARTBEAT = 10
# Seconds for JAX to connect those who have met.
_CONNECT = 60
# Seconds that who is done waits for process 0, which may be hashing a large checkpoint.
_COMMIT = 3600
# Seconds that who has failed waits for the others, who have failed likewise or wait for it.
_PATIENCE = 5.0
# Seconds in which `peers` will have noticed what an error has noticed already.
_NOTICE = 1.0
# How JAX, its coordination service, gloo and NCCL speak of another process that has gone.
_GONE = re.compile(
    r"gloo|nccl.*(remote|abort)|coordination service|heartbeat|set to ERROR"
    r"|connection (reset|closed)",
    re.IGNORECASE,
)

_peers: Peers | None = None


def start(
    *, coordinator: str | None = None, processes: int | None = None, process: int | None = None,
    timeout: float = 300.0, command: dict[str, str] | None = None, notice: bool = True,
) -> None:
  """Joins the other processes, where there are any; to be called before a backend starts.

  Afterwards `jax.devices()` are those of all, and nobody but process 0 prints to stdout.

  Args:
    coordinator: HOST:PORT, where process 0 listens; None, as the next two, to ask the cluster.
    processes: how many there are; 1 for this one alone.
    process: which of them this is, from 0.
    timeout: seconds to wait for those that are absent.
    command: name to value of what must be the same for all.
    notice: whether SIGTERM is noted for `checkpoint.preemption`, else it ends the process.

  Raises:
    ConfigError: the flags contradict each other, or the processes do.
    PeerLost: some are absent; all are named.
  """
  if not 0 < timeout < float("inf"):
    raise ConfigError(f"--start-timeout={timeout:g}: write seconds, more than 0")
  cluster = clusters.find(coordinator, processes, process)
  if cluster is None:
    return
  _let_only_the_first_speak(cluster.process)
  with contextlib.suppress(OSError):  # a full disk, a reader that has left
    print(
        f"processes: {cluster.processes}, by {cluster.origin}, coordinator {cluster.coordinator}",
        flush=True,
    )
  global _peers
  _peers = Peers(cluster, rendezvous.meet(cluster, timeout=timeout, command=command or {}))
  # Before JAX waits for the others.
  atexit.register(_peers.leave, 0, orderly=True)
  _go_round_proxies(cluster.address[0])
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.config.update("jax_enable_preemption_service", notice)
  try:
    jax.distributed.initialize(
        cluster.coordinator, cluster.processes, cluster.process,
        cluster.gpus and list(cluster.gpus),
        cluster_detection_method="deactivate",  # it is done
        initialization_timeout=_CONNECT,
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=_COMMIT,
    )
  except RuntimeError as error:
    raise PeerLost(
        f"the {cluster.processes} processes met at {cluster.coordinator}, and then could not "
        f"connect: {error}"
    ) from error


def _go_round_proxies(host: str) -> None:
  """Else JAX asks the proxy of http_proxy for the coordinator, and waits forever."""
  spared = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy")
  os.environ["no_grpc_proxy"] = f"{spared},{host}" if spared else host
  jax.config.update("jax_check_proxy_envs", False)  # it warns of that


def lost_peer(error: Exception) -> PeerLost | None:
  """What an error comes to where another process has gone: then collectives, barriers and whatever
  rests on them fail.  Where `peers` knows who has gone, this process ends in here."""
  ours = isinstance(error, VitJaxError) and not isinstance(error, CheckpointError)
  if ours or not jax.distributed.is_initialized():
    return None
  time.sleep(_NOTICE)
  said, cause = [], error
  while cause is not None:
    said.append(str(cause))
    cause = cause.__cause__ or cause.__context__
  if not _GONE.search(" ".join(said)):
    return None
  return PeerLost(
      f"another process has gone ({said[-1].strip().splitlines()[0]}): its messages say why. Start "
      "all processes again; the same command continues the run"
  )


def leave(code: int, error: BaseException | None = None) -> None:
  """Ends this process, if it is one of several, after an error, without waiting for the others.

  Else JAX would wait for them at the exit, and they for this one.  Those that go on end when they
  notice that it has gone.  Only who was preempted, or found what is not finite, waits, as all do
  that at the same step: process 0 commits what all have saved, and copies it.
  """
  if not jax.distributed.is_initialized():
    return
  orderly = isinstance(error, (Preempted, NonFiniteError))
  if _peers is not None:
    _peers.leave(code, orderly=orderly)
  if not isinstance(error, PeerLost):
    ending = threading.Thread(target=_shutdown, daemon=True)
    ending.start()
    ending.join(_COMMIT if orderly else _PATIENCE)
  with contextlib.suppress(OSError, ValueError):  # a full disk, a reader that has left
    sys.stdout.flush()
    sys.stderr.flush()
  os._exit(code)


def _shutdown() -> None:
  try:
    jax.distributed.shutdown()
  except RuntimeError:
    pass  # The others have gone another way.


def _let_only_the_first_speak(process: int) -> None:
  """Keeps stdout for what process 0 prints; libraries write there too, such as gloo."""
  sys.stdout.flush()
  if process == 0:
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(own, "w", buffering=1, encoding=sys.stdout.encoding)
  else:
    with open(os.devnull, "wb") as nowhere:
      os.dup2(nowhere.fileno(), 1)

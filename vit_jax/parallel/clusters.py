"""Which processes train together: told by flags, or by Slurm, GKE or Cloud TPU.

JAX can ask these clusters by itself (`jax.distributed.initialize()`), and what is found here agrees
with it but in four points.  A Slurm job of many tasks is not waited for in a shell that is one of
them.  A Slurm task that has its machine for itself takes all GPUs of it.  A TPU without Google's
metadata server is one process, not an error.  And the hosts have names, so that an absent one can
be named.
"""

import dataclasses
import http.client
import importlib.util
import os
import re
import socket
import time
from typing import Callable, Iterator, Sequence
import urllib.request

import jax

from vit_jax.errors import ConfigError

_TPU_PORT = 8482  # as JAX has it
_PAUSES = (1.0, 2.0, 4.0, 8.0, 0.0)  # seconds after each time that the metadata server was asked


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The processes that train together, and which of them this is.

  Attributes:
    origin: who said so, such as "Slurm".
    coordinator: HOST:PORT, where process 0 listens.
    processes: how many there are, at least 2.
    process: which of them this is, from 0.
    places: where each runs, as a reader would name it; empty where that is not known.
    gpus: ids of the GPUs that are this process's; None for all that it sees.
  """

  origin: str
  coordinator: str
  processes: int
  process: int
  places: tuple[str, ...] = ()
  gpus: tuple[int, ...] | None = None

  def name(self, process: int) -> str:
    """Such as "3 (node2)"."""
    return f"{process} ({self.places[process]})" if self.places else str(process)

  @property
  def address(self) -> tuple[str, int]:
    """Host and port of the coordinator."""
    host, _, port = self.coordinator.rpartition(":")
    return host.strip("[]"), int(port)


def find(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Cluster | None:
  """Returns the cluster, by the flags where any is given; None where this process is alone.

  Raises:
    ConfigError: the flags contradict each other, or the cluster's variables are damaged.
  """
  if (coordinator, processes, process) != (None, None, None):
    return _by_flags(coordinator, processes, process)
  for look in (_by_slurm, _by_gke, _by_metadata):
    try:
      cluster = look()
    except (ValueError, IndexError) as error:
      raise ConfigError(
          f"what the cluster says of its processes makes no sense ({error}): give --coordinator, "
          "--processes and --process, or --processes=1 for this one alone"
      ) from error
    if cluster is not None:
      return cluster
  return None


def _by_flags(coordinator, processes, process) -> Cluster | None:
  flags = {"--coordinator": coordinator, "--processes": processes, "--process": process}
  if processes is not None and processes < 1:
    raise ConfigError(f"--processes={processes}: write how many processes there are, at least 1")
  if processes == 1 and process is None:
    return None
  if missing := [flag for flag, value in flags.items() if value is None and processes != 1]:
    raise ConfigError(
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: several "
        "processes need --coordinator=HOST:PORT, where process 0 listens, --processes=N, and "
        "--process=I, which differs"
    )
  if not 0 <= process < processes:
    raise ConfigError(
        f"--process={process}: with --processes={processes} the first is 0, the last "
        f"{processes - 1}"
    )
  if processes == 1:
    return None
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
    raise ConfigError(
        f"--coordinator={coordinator}: write HOST:PORT, the host of process 0 and a port that is "
        "free there, such as node1:8476"
    )
  return Cluster("flags", coordinator, processes, process)


def _by_slurm() -> Cluster | None:
  """The tasks of a step of several.

  A job's shell (a batch script, `salloc`, `srun --pty`) is no such step, however many tasks the
  job has.
  """
  environment = os.environ
  needed = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
  processes = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
  if processes == 1 or not all(name in environment for name in needed):
    return None
  nodes = node_names(environment["SLURM_STEP_NODELIST"])
  tasks = tasks_of_nodes(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
  places = [node for node, count in zip(nodes, tasks) for _ in range(count)]
  in_order = environment.get("SLURM_DISTRIBUTION", "block").startswith("block")
  known = len(places) == processes and (in_order or max(tasks) == 1)
  # As JAX has it: above the ports that Linux gives away, and hardly another job's.
  port = _port(61440 + int(environment["SLURM_JOB_ID"]) % 4096)
  return Cluster(
      "Slurm", f"{nodes[0]}:{port}", processes, int(environment["SLURM_PROCID"]),
      tuple(places) if known else (), _slurm_gpus(tasks),
  )


def _slurm_gpus(tasks: Sequence[int]) -> tuple[int, ...] | None:
  """One for each task, unless Slurm deals them out itself or the task has no neighbour."""
  node, visible = int(os.environ.get("SLURM_NODEID", 0)), os.environ.get("CUDA_VISIBLE_DEVICES")
  alone = node < len(tasks) and tasks[node] == 1
  dealt = visible is not None and "," not in visible
  return None if alone or dealt else (int(os.environ["SLURM_LOCALID"]),)


def node_names(text: str) -> list[str]:
  """Slurm's "node[01-03,7],gpu" to node01, node02, node03, node7, gpu."""
  parts = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text)
  return [name for part in parts for name in _expanded(part)]


def _expanded(part: str) -> list[str]:
  match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
  if not match:
    return [part]
  head, ranges, tail = match.groups()
  return [head + number + rest for number in _numbers(ranges) for rest in _expanded(tail)]


def _numbers(ranges: str) -> Iterator[str]:
  for part in ranges.split(","):
    first, _, last = part.partition("-")
    for number in range(int(first), int(last or first) + 1):
      yield f"{number:0{len(first)}d}"


def tasks_of_nodes(text: str) -> list[int]:
  """Slurm's "8(x2),1" to 8, 8, 1."""
  counts = []
  for part in filter(None, text.split(",")):
    count, _, times = part.partition("(x")
    counts += [int(count)] * int(times.rstrip(")") or 1)
  return counts


def _by_gke() -> Cluster | None:
  """The hosts of TPU slices on Google Kubernetes Engine, which tells them in the environment."""
  hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
  if not hosts or "TPU_WORKER_ID" not in os.environ:
    return None
  hosts = [host.partition(":")[0] for host in hosts.split(",")]
  return _of_slices("GKE", hosts, int(os.environ["TPU_WORKER_ID"]), os.environ.get)


def _by_metadata() -> Cluster | None:
  """The hosts of TPU slices on Compute Engine, whose metadata server knows them."""
  if not _has_tpu():
    return None
  worker, hosts = _attribute("agent-worker-number"), _attribute("worker-network-endpoints")
  if worker is None or hosts is None:  # a TPU that is not Google's own machine, as in a notebook
    return None
  lines = (_attribute("tpu-env") or "").splitlines()
  told = {key.strip(): value.strip(" '") for key, _, value in (x.partition(":") for x in lines)}
  # Each is HOST, or NAME:ID:ADDRESS.
  hosts = [host.rpartition(":")[2] for host in hosts.split(",")]
  look_up = lambda key: os.environ.get(key) or told.get(key)
  return _of_slices("Cloud TPU", hosts, int(worker), look_up)


def _has_tpu() -> bool:
  """Whether JAX would compute on a TPU."""
  # JAX sets this one when it is imported where there is none.
  skipped = "TPU_SKIP_MDS_QUERY" in os.environ or not importlib.util.find_spec("libtpu")
  return not skipped and "tpu" in (jax.config.jax_platforms or "tpu")


def _attribute(name: str) -> str | None:
  """What the metadata server says; None where there is none, or no such attribute.

  Raises:
    ConfigError: there is one, but it does not answer: without it this host would train alone.
  """
  server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
  request = urllib.request.Request(
      f"http://{server}/computeMetadata/v1/instance/attributes/{name}",
      headers={"Metadata-Flavor": "Google"},
  )
  direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  for pause in _PAUSES:
    try:
      with direct.open(request, timeout=10) as answer:
        return answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
      if getattr(error, "code", None) == 404:
        return None
      if isinstance(getattr(error, "reason", None), (socket.gaierror, ConnectionRefusedError)):
        return None
      said = error
    time.sleep(pause)
  raise ConfigError(
      f"the metadata server {server} does not tell {name} ({said}), so that this host does not know"
      " the others: start it again, or give --coordinator, --processes and --process"
  )


def _of_slices(
    origin: str, hosts: Sequence[str], worker: int, look_up: Callable[[str], str | None]
) -> Cluster | None:
  """Several slices are numbered one after the other.

  Args:
    hosts: of this process's slice.
    worker: which of them this is.
    look_up: function of a variable's name.
  """
  slices, which = (
      int(look_up(f"MEGASCALE_{name}") or default)
      for name, default in (("NUM_SLICES", 1), ("SLICE_ID", 0))
  )
  if slices * len(hosts) == 1:
    return None
  # The host of process 0, which lies in another slice, is on record; its port is not ours.
  first = look_up("MEGASCALE_COORDINATOR_ADDRESS") if slices > 1 else None
  first = (first or hosts[0]).partition(":")[0]
  places = hosts if slices == 1 else [
      f"slice {i}, worker {j}" for i in range(slices) for j in range(len(hosts))
  ]
  return Cluster(
      origin, f"{first}:{_port(_TPU_PORT)}", slices * len(hosts), which * len(hosts) + worker,
      tuple(places),
  )


def _port(usual: int) -> int:
  return int(os.environ.get("JAX_COORDINATOR_PORT", usual))

"""Who trains together, found from flags and environments; and waiting for those who are absent."""

import http.server
import json
import os
import socket
import threading
import time

import pytest

from vit_jax.cli import main
from vit_jax.errors import ConfigError, PeerLost
from vit_jax.parallel import clusters, rendezvous
from vit_jax.parallel.clusters import Cluster, find
from vit_jax.parallel.rendezvous import meet

# What srun sets for task 5 of 6 on three machines, as far as it matters.
SLURM = {
    "SLURM_JOB_ID": "5000", "SLURM_NTASKS": "6", "SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_NODELIST": "gpu[08-09],big1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)", "SLURM_DISTRIBUTION": "block",
}
GKE = {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "vit-0.vit,vit-1.vit,vit-2.vit,vit-3.vit"}
SLICES = {
    "MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "vit-slice-0-0.vit:8080",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  """A machine in no cluster; returns a function that adds variables, None for one less."""
  for name in os.environ:
    if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "CUDA_VISIBLE", "JAX_COORDINATOR")):
      monkeypatch.delenv(name)
  monkeypatch.setattr(clusters, "_has_tpu", lambda: False)

  def add(**variables):
    for name, value in variables.items():
      monkeypatch.delenv(name, raising=False)
      if value is not None:
        monkeypatch.setenv(name, value)

  return add


def test_a_machine_in_no_cluster_is_alone():
  assert find() is None


def test_flags():
  assert find("node1:8476", 4, 3) == Cluster("flags", "node1:8476", 4, 3)
  assert find("[::1]:8476", 2, 1).address == ("::1", 8476)


def test_flags_go_before_the_environment(environment):
  environment(**SLURM)
  assert find("node1:8476", 2, 1).origin == "flags"
  assert find(processes=1) is None
  assert find("node1:8476", 1, 0) is None


@pytest.mark.parametrize("given, said", [
    ((None, 2, 0), "--coordinator is missing"),
    (("node1:1", None, 0), "--processes is missing"),
    (("node1:1", 2, None), "--process is missing"),
    ((None, None, 1), "--coordinator and --processes are missing"),
    (("node1:1", 2, 2), "--process=2"),
    (("node1:1", 2, -1), "--process=-1"),
    (("node1:1", 1, 1), "--process=1"),
    (("node1:1", 0, 0), "--processes=0"),
    (("node1", 2, 0), "--coordinator=node1"),
    ((":8476", 2, 0), "--coordinator=:8476"),
    (("node1:http", 2, 0), "--coordinator=node1:http"),
    (("node1:65536", 2, 0), "--coordinator=node1:65536"),
], ids=str)
def test_wrong_flags(given, said):
  with pytest.raises(ConfigError, match=said):
    find(*given)


@pytest.mark.parametrize("flags, said", [
    (["--processes=2"], "--coordinator and --process are missing"),
    (["--start-timeout=0"], "--start-timeout=0"),
    (["--start-timeout=nan"], "--start-timeout=nan"),
])
def test_wrong_flags_of_a_command(flags, said, tmp_path, capsys):
  for verb in (
      ["train", "--config=quickstart", f"--workdir={tmp_path / 'run'}"],
      ["evaluate", f"--model={tmp_path}"],
  ):
    with pytest.raises(SystemExit) as left:
      main([*verb, *flags])
    assert left.value.code == 2 and said in " ".join(capsys.readouterr().err.split())
  assert not (tmp_path / "run").exists()


def test_a_step_of_slurm(environment):
  environment(**SLURM)
  assert find() == Cluster(
      "Slurm", f"gpu08:{61440 + 904}", 6, 5, ("gpu08", "gpu08", "gpu09", "gpu09", "big1", "big1"),
      (1,),
  )
  environment(JAX_COORDINATOR_PORT="1234")
  assert find().coordinator == "gpu08:1234"


@pytest.mark.parametrize("shell", [
    # A batch script, and `salloc` with and without a step of its own for the shell.
    {"SLURM_STEP_NUM_TASKS": None, "SLURM_STEP_NODELIST": None, "SLURM_PROCID": "0"},
    {"SLURM_STEP_NUM_TASKS": None, "SLURM_STEP_NODELIST": None, "SLURM_PROCID": None},
    {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"},
], ids=["batch", "salloc", "interactive step"])
def test_a_shell_of_a_slurm_job_waits_for_nobody(environment, shell):
  environment(**(SLURM | shell))
  assert find() is None


@pytest.mark.parametrize("given, gpus", [
    ({}, (1,)),
    ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
    ({"CUDA_VISIBLE_DEVICES": "3"}, None),  # dealt out by Slurm
    ({"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_LOCALID": "0"}, None),  # alone on the last
], ids=["visible all", "visible two", "visible one", "alone"])
def test_gpus_of_a_slurm_task(environment, given, gpus):
  environment(**(SLURM | given))
  assert find().gpus == gpus


def test_slurm_tasks_that_are_dealt_round_have_no_known_place(environment):
  environment(**(SLURM | {"SLURM_DISTRIBUTION": "cyclic"}))
  assert find().places == () and find().name(3) == "3"
  environment(
      SLURM_STEP_NUM_TASKS="3", SLURM_PROCID="2", SLURM_STEP_TASKS_PER_NODE="1(x3)"
  )
  assert find().name(2) == "2 (big1)"


def test_damaged_variables_are_no_traceback(environment):
  environment(**(SLURM | {"SLURM_PROCID": "five"}))
  with pytest.raises(ConfigError, match="five.*--processes=1"):
    find()


@pytest.mark.parametrize("text, names", [
    ("node1", ["node1"]),
    ("a,b", ["a", "b"]),
    ("n[8-11]", ["n8", "n9", "n10", "n11"]),
    ("n[098-100,7]x,m", ["n098x", "n099x", "n100x", "n7x", "m"]),
    ("r[1-2]n[1,3]", ["r1n1", "r1n3", "r2n1", "r2n3"]),
])
def test_node_names(text, names):
  assert clusters.node_names(text) == names


def test_gke(environment):
  environment(**GKE)
  hosts = tuple(GKE["TPU_WORKER_HOSTNAMES"].split(","))
  assert find() == Cluster("GKE", "vit-0.vit:8482", 4, 2, hosts)
  environment(TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")
  assert find() is None


def test_slices_on_gke(environment):
  environment(**GKE, **SLICES)
  cluster = find()
  assert (cluster.processes, cluster.process) == (12, 6)
  assert cluster.coordinator == "vit-slice-0-0.vit:8482"
  assert cluster.name(0) == "0 (slice 0, worker 0)" and cluster.name(11) == "11 (slice 2, worker 3)"


@pytest.fixture
def metadata(monkeypatch, environment):
  """A dict that a metadata server on this machine tells to a machine with a TPU."""
  told = {}

  class Handler(http.server.BaseHTTPRequestHandler):

    def do_GET(self):
      name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
      known = name in told and self.headers["Metadata-Flavor"] == "Google"
      failing = told.get("failures", 0)
      told["failures"] = max(0, failing - 1)
      self.send_response(503 if failing else 200 if known else 404)
      self.end_headers()
      self.wfile.write(told.get(name, "").encode())

    def log_message(self, *_):
      pass

  server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  environment(GCE_METADATA_IP=f"127.0.0.1:{server.server_port}", http_proxy="http://127.0.0.1:9")
  monkeypatch.setattr(clusters, "_has_tpu", lambda: True)
  yield told
  server.shutdown()
  thread.join()
  server.server_close()


def test_cloud_tpu(metadata):
  assert find() is None
  metadata |= {"agent-worker-number": "1", "worker-network-endpoints": "a:1:10.0.0.7,b:2:10.0.0.8"}
  assert find() == Cluster("Cloud TPU", "10.0.0.7:8482", 2, 1, ("10.0.0.7", "10.0.0.8"))
  metadata["worker-network-endpoints"] = "10.0.0.7"
  metadata["agent-worker-number"] = "0"
  assert find() is None
  metadata["tpu-env"] = "ZONE: 'x'\n" + "\n".join(f"{k}: '{v}'" for k, v in SLICES.items())
  assert (find().processes, find().process) == (3, 1)
  assert find().coordinator == "vit-slice-0-0.vit:8482"


def test_a_metadata_server_that_does_not_answer_makes_nobody_train_alone(metadata, monkeypatch):
  monkeypatch.setattr(clusters, "_PAUSES", (0.0, 0.0, 0.0))
  metadata |= {"agent-worker-number": "1", "worker-network-endpoints": "10.0.0.7,10.0.0.8"}
  for failures in (1, 2):
    metadata["failures"] = failures
    assert find().process == 1
  metadata["failures"] = 3
  with pytest.raises(ConfigError, match="503.*--coordinator"):
    find()


def test_a_tpu_without_a_metadata_server_is_alone(metadata, environment):
  environment(GCE_METADATA_IP=f"127.0.0.1:{free_port()}")
  assert find() is None


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


class Meeting:
  """Processes that meet, a thread each."""

  def __init__(self, processes: int, places: tuple[str, ...] = ()):
    self.coordinator = f"127.0.0.1:{free_port()}"
    self._processes, self._places = processes, places
    self._threads, self.outcomes = [], {}

  def start(self, process: int, *, timeout=20.0, name=None, processes=None, **command):
    cluster = Cluster(
        "flags", self.coordinator, processes or self._processes, process, self._places
    )

    def run():
      try:
        meet(cluster, timeout=timeout, command=command)
        self.outcomes[name or process] = None
      except (PeerLost, ConfigError) as error:
        self.outcomes[name or process] = error

    self._threads.append(threading.Thread(target=run))
    self._threads[-1].start()

  def finish(self) -> dict:
    for thread in self._threads:
      thread.join()
    return self.outcomes


def test_all_meet_in_whatever_order():
  meeting = Meeting(4)
  for process in (2, 1, 0, 3):
    meeting.start(process, config="a")
    time.sleep(0.05)
  assert meeting.finish() == dict.fromkeys(range(4))


def test_each_that_came_names_all_that_did_not():
  meeting = Meeting(5, places=("a", "b", "c", "d", "e"))
  began = time.monotonic()
  for process in (0, 1, 3):
    meeting.start(process, timeout=1.0)
  outcomes = meeting.finish()
  assert time.monotonic() - began < 5
  assert {type(error) for error in outcomes.values()} == {PeerLost}
  assert len({str(error) for error in outcomes.values()}) == 1
  said = str(outcomes[3])
  assert "processes 2 (c), 4 (e) of 5 did not start within 1 s" in said
  assert "--start-timeout" in said and outcomes[3].exit_code == 75


def test_an_absent_coordinator_is_named():
  meeting = Meeting(2, places=("a", "b"))
  meeting.start(1, timeout=0.5)
  error = meeting.finish()[1]
  assert isinstance(error, PeerLost)
  assert f"process 0 (a) does not answer at {meeting.coordinator}" in str(error)
  assert "refused" in str(error)


def test_a_coordinator_that_cannot_be_found_is_named():
  with pytest.raises(PeerLost, match="nowhere.invalid:1 after 0.5 s"):
    meet(Cluster("flags", "nowhere.invalid:1", 2, 1), timeout=0.5, command={})


def test_two_with_the_same_number(monkeypatch):
  monkeypatch.setattr(rendezvous, "_STRAGGLE", 0.5)
  meeting = Meeting(3)
  for name in ("first", "second"):
    meeting.start(1, name=name)
  meeting.start(0)
  outcomes = meeting.finish()
  assert {type(error) for error in outcomes.values()} == {ConfigError}
  assert all("two say that they are process 1" in str(error) for error in outcomes.values())


def test_different_commands():
  """Who comes later hears of it, too."""
  meeting = Meeting(3)
  meeting.start(0, **{"--config": "a", "jax": "1"})
  meeting.start(1, **{"--config": "b", "jax": "1"})
  time.sleep(0.3)
  meeting.start(2, **{"--config": "a", "jax": "1"})
  outcomes = meeting.finish()
  assert all("--config is b there, a here" in str(error) for error in outcomes.values())
  assert {type(error) for error in outcomes.values()} == {ConfigError}


def test_different_numbers_of_processes(monkeypatch):
  monkeypatch.setattr(rendezvous, "_STRAGGLE", 0.5)
  meeting = Meeting(2)
  meeting.start(0)
  meeting.start(7, processes=8)
  outcomes = meeting.finish()
  said = {str(error) for error in outcomes.values()}
  assert len(said) == 1 and "is one of 8" in said.pop()


def connect(meeting: Meeting) -> socket.socket:
  """To process 0, once it listens."""
  host, port = meeting.coordinator.split(":")
  deadline = time.monotonic() + 10
  while True:
    try:
      return socket.create_connection((host, int(port)))
    except ConnectionRefusedError:
      assert time.monotonic() < deadline
      time.sleep(0.01)


def test_strangers_at_the_port_are_nobody():
  meeting = Meeting(2)
  meeting.start(0)
  for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n", b"[1]\n",
               b'{"process": "x"}\n', b'{"process": 1}\n'):
    with connect(meeting) as stranger:
      stranger.sendall(said)
  meeting.start(1)
  assert meeting.finish() == {0: None, 1: None}


def test_a_process_that_died_while_it_waited_is_absent_again():
  meeting = Meeting(3, places=("a", "b", "c"))
  meeting.start(0, timeout=2.0)
  hello = {"process": 1, "processes": 3, "host": "b", "command": {}}
  with connect(meeting) as died:
    died.sendall(json.dumps(hello).encode() + b"\n")
    time.sleep(0.3)
  assert "processes 1 (b), 2 (c) of 3" in str(meeting.finish()[0])


def test_a_process_that_died_may_come_again():
  meeting = Meeting(3)
  meeting.start(0)
  for _ in range(2):
    with connect(meeting) as died:
      died.sendall(
          b'{"process": 1, "processes": 3, "host": "b", "command": {}}\n'
      )
      time.sleep(0.1)
  meeting.start(1)
  meeting.start(2)
  assert meeting.finish() == dict.fromkeys(range(3))


def test_a_port_that_somebody_has(monkeypatch):
  monkeypatch.setattr(rendezvous, "_TAKEN", 0.3)
  with socket.create_server(("", 0)) as other:
    port = other.getsockname()[1]
    with pytest.raises(ConfigError, match=f"port {port}.*--coordinator"):
      meet(Cluster("flags", f"127.0.0.1:{port}", 2, 0), timeout=5.0, command={})


def test_who_is_absent_is_said_while_waiting(monkeypatch, capsys):
  monkeypatch.setattr(rendezvous, "_REMIND", 0.2)
  meeting = Meeting(2, places=("a", "b"))
  meeting.start(0, timeout=1.5)
  meeting.finish()
  assert "processes: waiting for process 1 (b) of 2" in capsys.readouterr().err

"""Several processes, started as users and clusters start them, do what one does."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest

from test_folder_run import TINY, write_folder
from vit_jax.loading import load

STEPS = 8
TRAIN = (
    "train", "--config=quickstart", "--config.model.width=32", "--config.model.depth=2",
    "--config.model.mlp_dim=64", "--config.model.num_heads=2", "--config.model.dropout=0.1",
    "--config.input.batch_size=16", f"--config.total={STEPS} steps",
    "--config.log_every=1 steps", "--config.evaluate.every=4 steps",
    "--config.checkpoint.every=4 steps",
)
# Compiles four times as fast, and rounds as before.
UNOPTIMIZED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
CLUSTER = ("XLA_FLAGS", "NPROC", "SLURM", "TPU_", "MEGASCALE_", "JAX_COORDINATOR")
# Of the slice itself, in GKE's pods; no TPU is looked for here.
SLICE = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
    "TPU_HOST_BOUNDS": "2,2,1", "TPU_RUNTIME_METRICS_PORTS": "8431,8432,8433,8434",
    "TPU_SKIP_MDS_QUERY": "true", "TPU_TOPOLOGY": "4x4", "TPU_TOPOLOGY_ALT": "false",
    "TPU_TOPOLOGY_WRAP": "false,false,false", "HOST_BOUNDS": "2,2,1",
    "CHIPS_PER_HOST_BOUNDS": "2,2,1", "WORKERS_0_HOSTNAME": "127.0.0.1",
    "JOB_COMPLETION_INDEX": "0",
}


def free_port(first: int = 0) -> int:
  """A port of the loopback; above `first`, where it is given."""
  for port in range(first, first + 4096) if first else (0,):
    with socket.socket() as free, contextlib.suppress(OSError):
      free.bind(("127.0.0.1", port))
      return free.getsockname()[1]
  raise AssertionError("no port is free")


def by_flags(processes: int):
  """Starters: functions of a number of processes to a function of a process's index, which
  returns its flags and its variables.  Here there is a proxy, too, which nobody is to ask."""
  port = free_port()
  return lambda i: (
      (f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={i}"),
      {"http_proxy": "http://127.0.0.1:9"},
  )


def by_slurm(processes: int):
  """All that srun sets in a task of a batch job (its manual page, output environment variables)."""
  port = free_port(61440)
  job, tasks = str(port - 61440), str(processes)
  of_the_job = {
      "CLUSTER_NAME": "test", "CONF": "/etc/slurm/slurm.conf", "CPUS_ON_NODE": "2",
      "GTIDS": ",".join(map(str, range(processes))), "JOBID": job, "JOB_ACCOUNT": "test",
      "JOB_CPUS_PER_NODE": "2", "JOB_GID": "0", "JOB_ID": job, "JOB_NAME": "vit-jax",
      "JOB_NODELIST": "localhost", "JOB_NUM_NODES": "1", "JOB_PARTITION": "gpu", "JOB_QOS": "high",
      "JOB_UID": "0", "JOB_USER": "root", "LAUNCH_NODE_IPADDR": "127.0.0.1", "MEM_PER_NODE": "4096",
      "NNODES": "1", "NODELIST": "localhost", "NPROCS": tasks, "NTASKS": tasks,
      "NTASKS_PER_NODE": tasks, "PRIO_PROCESS": "0", "SRUN_COMM_HOST": "127.0.0.1",
      "SRUN_COMM_PORT": "9", "STEPID": "0", "STEP_ID": "0", "STEP_LAUNCHER_PORT": "9",
      "STEP_NODELIST": "localhost", "STEP_NUM_NODES": "1", "STEP_NUM_TASKS": tasks,
      "STEP_TASKS_PER_NODE": tasks, "SUBMIT_DIR": "/", "SUBMIT_HOST": "login",
      "TASKS_PER_NODE": tasks, "TOPOLOGY_ADDR": "localhost", "TOPOLOGY_ADDR_PATTERN": "node",
      "UMASK": "0022", "WORKING_CLUSTER": "test:127.0.0.1:9:9728:109",
  }
  of_the_job = {f"SLURM_{name}": value for name, value in of_the_job.items()}
  return lambda i: ((), of_the_job | {
      "SLURMD_NODENAME": "localhost", "SLURM_LOCALID": str(i), "SLURM_NODEID": "0",
      "SLURM_PROCID": str(i), "SLURM_TASK_PID": str(os.getpid()),
  })


def by_gke(processes: int):
  """What GKE sets in the pods of a TPU slice, and a port, as here they share a machine."""
  port = free_port()
  return lambda i: ((), SLICE | {
      "TPU_WORKER_ID": str(i), "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * processes),
      "JAX_COORDINATOR_PORT": str(port),
  })


def by_slices(processes: int):
  """What GKE sets in the pods of TPU slices of one host each."""
  port = free_port()
  return lambda i: ((), SLICE | {
      "TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost",
      "MEGASCALE_NUM_SLICES": str(processes), "MEGASCALE_SLICE_ID": str(i),
      "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080", "JAX_COORDINATOR_PORT": str(port),
  })


def alone(_):
  return lambda i: ((), {})


@dataclasses.dataclass
class Ended:
  """What is left of a process; line breaks are removed from stderr."""

  code: int
  out: str
  err: str


class Job:
  """Processes on this machine, each with CPU devices of its own; all end with the context."""

  def __init__(self, command, *, processes: int, devices: int, starter, missing=(), more=None):
    """Starts them.

    Args:
      devices: of all processes together.
      missing: indexes of processes that are not started.
      more: index to further arguments of that process.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(CLUSTER)}
    count = f"--xla_force_host_platform_device_count={devices // processes} {UNOPTIMIZED}"
    told = starter(processes)
    self._processes = []
    for i in sorted(set(range(processes)) - set(missing)):
      flags, variables = told(i)
      logs = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
      self._processes.append((*logs, subprocess.Popen(
          [sys.executable, "-m", "vit_jax", *map(str, command), *flags, *(more or {}).get(i, ())],
          env=kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": count} | variables,
          stdout=logs[0], stderr=logs[1], stdin=subprocess.DEVNULL,
      )))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for out, err, process in self._processes:
      process.kill()
      process.wait()
      out.close()
      err.close()

  def ended(self, *, timeout: float = 150.0) -> list[Ended]:
    """Waits for all."""
    return [
        Ended(process.wait(timeout=timeout), read(out), " ".join(read(err).split()))
        for out, err, process in self._processes
    ]


def read(log) -> str:
  log.seek(0)
  return log.read()


def run(command, *, processes: int, devices: int = 4, starter=by_flags, **options) -> list[Ended]:
  with Job(command, processes=processes, devices=devices, starter=starter, **options) as job:
    return job.ended()


def train(workdir, *more, **options) -> list[Ended]:
  ended = run((*TRAIN, f"--workdir={workdir}", *more), **options)
  assert [process.code for process in ended] == [0] * len(ended), "\n".join(p.err for p in ended)
  return ended


def rows(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def files(workdir: pathlib.Path) -> list[str]:
  """Names of a run's files, without what names process and time."""
  found = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
  # How many files Orbax divides arrays into depends on the processes.
  kept = (path for path in found if path.parts[0] not in ("checkpoints", "tensorboard"))
  return sorted(map(str, kept))


def assert_same_training(workdir: pathlib.Path, reference: pathlib.Path, *, steps: int = STEPS):
  """Equal within the rounding of another order of summation; every step's metrics once."""
  ours, theirs = rows(workdir), rows(reference)
  assert [row["step"] for row in ours] == list(range(1, steps + 1))
  for row, other in zip(ours, theirs, strict=True):
    assert row["train/loss"] == pytest.approx(other["train/loss"], rel=0, abs=2e-6)
    evaluated = [key for key in other if key.startswith("eval/")]
    assert [key for key in row if key.startswith("eval/")] == evaluated
    for key in evaluated:
      assert row[key] == pytest.approx(other[key], rel=0, abs=2e-6 if "loss" in key else 0)
  ours, theirs = load(workdir), load(reference)
  assert ours.step == theirs.step == steps
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-4), ours.params, theirs.params
  )


def assert_said_once(ended: list[Ended], origin: str):
  """Process 0 says what one process says, and how many they are; the others nothing."""
  first, *others = ended
  assert first.out.count("processes: ") == 1
  assert first.out.startswith(f"processes: {len(ended)}, by {origin}, coordinator ")
  assert first.out.count("parameters:") == 1 and first.out.count(": done, ") == 1
  assert "step 1/" in first.err and "accuracy" in first.err
  assert [(process.out, process.err) for process in others] == [("", "")] * len(others)


def test_two_processes_train_as_one(tmp_path):
  """The quick one; against one process of as many devices."""
  quick = (
      "--config.total=4 steps", "--config.evaluate.every=0 steps", "--config.model.depth=1",
      "--config.batch_ops.mixup_alpha=0.0",
  )
  train(tmp_path / "one", *quick, processes=1, devices=2, starter=alone)
  ended = train(tmp_path / "two", *quick, processes=2, devices=2)
  assert_same_training(tmp_path / "two", tmp_path / "one", steps=4)
  assert_said_once(ended, "flags")


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> pathlib.Path:
  """A run of one process with four devices."""
  workdir = tmp_path_factory.mktemp("runs") / "one"
  train(workdir, processes=1, starter=alone)
  return workdir


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> pathlib.Path:
  """A run of four tasks of Slurm, sharded over two of them."""
  workdir = tmp_path_factory.mktemp("runs") / "four"
  ended = train(workdir, "--config.mesh.fsdp=2", processes=4, starter=by_slurm)
  assert_said_once(ended, "Slurm")
  return workdir


@pytest.mark.multiprocess
@pytest.mark.parametrize("processes, starter, origin", [
    (2, by_flags, "flags"), (4, by_flags, "flags"), (2, by_slurm, "Slurm"), (2, by_gke, "GKE"),
    (2, by_slices, "GKE"),
], ids=["2-flags", "4-flags", "2-slurm", "2-gke", "2-slices"])
def test_training_equals_one_process(tmp_path, one, processes, starter, origin):
  ended = train(tmp_path, processes=processes, starter=starter)
  assert_same_training(tmp_path, one)
  assert_said_once(ended, origin)
  assert files(tmp_path) == files(one)
  assert len(list((tmp_path / "tensorboard").iterdir())) == 1
  info = json.loads((tmp_path / "run.json").read_text())
  assert info["environment"]["devices"].endswith(f" of {processes} processes")


@pytest.mark.multiprocess
@pytest.mark.parametrize("processes, starter", [(1, alone), (2, by_flags)], ids=["1", "2"])
def test_a_checkpoint_of_four_processes_is_read_by_fewer(tmp_path, one, four, processes, starter):
  """From its middle; the rest is trained again, and equal."""
  assert_same_training(four, one)
  workdir = tmp_path / "run"
  shutil.copytree(four, workdir)
  shutil.rmtree(workdir / "checkpoints" / str(STEPS))
  first, *_ = train(workdir, "--config.mesh.fsdp=2", processes=processes, starter=starter)
  assert f"resume: from step 4 of {STEPS}" in first.out
  assert "devices was 4 x cpu of 4 processes" in first.out
  assert_same_training(workdir, four)


@pytest.mark.multiprocess
@pytest.mark.parametrize("processes", [2, 4])
def test_a_checkpoint_of_one_process_is_read_by_more(tmp_path, one, processes):
  workdir = tmp_path / "run"
  shutil.copytree(one, workdir)
  shutil.rmtree(workdir / "checkpoints" / str(STEPS))
  first, *_ = train(workdir, "--config.mesh.fsdp=2", processes=processes)
  assert f"resume: from step 4 of {STEPS}" in first.out
  assert f"devices was 4 x cpu, is 4 x cpu of {processes} processes" in first.out
  assert_same_training(workdir, one)


@pytest.mark.multiprocess
def test_checkpoints_by_the_clock_are_process_0s_to_decide(tmp_path):
  """Where the others wait for metrics anyway."""
  train(
      tmp_path, "--config.checkpoint.every=0.000001 minutes", "--config.checkpoint.keep_latest=9",
      "--config.log_every=2 steps", "--config.evaluate.every=0 steps", processes=2, devices=2,
  )
  committed = tmp_path.glob("checkpoints/*/manifest.json")
  assert sorted(int(file.parent.name) for file in committed) == [2, 4, 6, 8]


@pytest.mark.multiprocess
def test_evaluation_is_exact(tmp_path, four):
  """359 images, which 4 devices do not divide."""
  results = []
  for processes, starter in ((1, alone), (2, by_flags), (4, by_slurm)):
    file = tmp_path / f"{processes}.json"
    command = ("evaluate", f"--model={four}", f"--output={file}",
               "--measures=classification,macro_f1,knn")
    first, *others = run(command, processes=processes, starter=starter)
    assert {p.code for p in (first, *others)} == {0}, [p.err for p in (first, *others)]
    assert [(p.out, p.err) for p in others] == [("", "")] * len(others)
    shown = first.out if processes == 1 else first.out.partition("\n")[2]
    assert json.loads(shown) == json.loads(file.read_text())
    results.append(json.loads(shown)["metrics"])
  assert results[0]["examples"] == 359 and results[0]["accuracy"] > 0.1
  for other in results[1:]:
    assert other == pytest.approx(results[0], rel=0, abs=2e-6)
    assert other["accuracy"] == results[0]["accuracy"]


@pytest.mark.multiprocess
def test_a_sweep_is_compared_once(tmp_path):
  """And reads files, each process its own."""
  (tmp_path / "rates.py").write_text(
      "from vit_jax.configs.folder import get_config\n"
      "def sweep(arg=None):\n"
      "  return [{'optimizer.learning_rate': rate} for rate in (1e-7, 5e-3)]\n"
  )
  for split, images in (("train", 16), ("validation", 8), ("test", 8)):
    write_folder(tmp_path / "photos" / split, images=images)
  command = (
      "sweep", f"--config={tmp_path / 'rates.py'}:scratch", f"--workdir={tmp_path / 'sweep'}",
      f"--config.input.path={tmp_path / 'photos'}", *TINY, "--config.total=12 steps",
      "--config.checkpoint.every=0 steps",
  )
  for done in (False, True):
    first, second = run(command, processes=2, devices=2)
    assert (first.code, second.code) == (0, 0), (first.err, second.err)
    assert (second.out, second.err) == ("", "")
    assert first.out.count("finished already") == 2 * done
  lines = (tmp_path / "sweep" / "sweep.csv").read_text().splitlines()
  assert len(lines) == 3 and all(",finished,eval/validation/" in line for line in lines[1:])
  winner = json.loads((tmp_path / "sweep" / "winner.json").read_text())
  assert winner["value"] == max(float(line.rpartition(",")[2]) for line in lines[1:])
  assert winner["test_split"] == "test" and winner["test"]["examples"] == 24


@pytest.mark.multiprocess
def test_absent_processes_are_named(tmp_path):
  command = (*TRAIN, f"--workdir={tmp_path / 'run'}", "--start-timeout=4")
  present = run(command, processes=4, starter=by_slurm, missing=(1, 3))
  assert [process.code for process in present] == [75, 75]
  for process in present:
    assert "processes 1 (localhost), 3 (localhost) of 4 did not start within 4 s" in process.err
  [follower] = run(command, processes=2, starter=by_gke, missing=(0,))
  assert follower.code == 75 and "process 0 (localhost) does not answer at" in follower.err
  assert not (tmp_path / "run").exists()


@pytest.mark.multiprocess
def test_different_commands_are_refused(tmp_path):
  ended = run(
      (*TRAIN, f"--workdir={tmp_path / 'run'}"), processes=2,
      more={1: ("--config.optimizer.learning_rate=1e-4",)},
  )
  assert [process.code for process in ended] == [2, 2]
  assert all("learning_rate is 1e-4 there, None here" in process.err for process in ended)
  assert not (tmp_path / "run").exists()


@pytest.mark.multiprocess
def test_where_one_cannot_go_on_none_waits_for_it(tmp_path):
  """The lock is process 0's: the others hear of it."""
  with (tmp_path / ".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with Job(
        (*TRAIN, f"--workdir={tmp_path}"), processes=2, devices=2, starter=by_flags
    ) as job:
      first, second = job.ended(timeout=60)
  assert first.code == 2 and "is being trained by another process" in first.err
  assert second.code == 2 and "Process 0 found a fault" in second.err
  assert not (tmp_path / "run.json").exists()

"""Real runs, `python -m vit_jax train`, whose processes are killed, frozen and told to stop."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Callable

import jax
import numpy as np

from event_points import points_of
from vit_jax.loading import load

MODEL = (
    "--config.model.width=32", "--config.model.depth=1", "--config.model.mlp_dim=64",
    "--config.model.num_heads=2", "--config.model.dropout=0.1", "--config.input.batch_size=16",
)
# Compiled once for all runs of a test process; unoptimised code compiles four times as fast.
_CACHE = tempfile.TemporaryDirectory(prefix="vit_jax_programs")
_XLA = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def environment(devices: int = 1) -> dict[str, str]:
  """As a user has, without the test suite's eight devices."""
  kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
  count = f"--xla_force_host_platform_device_count={devices}"
  return kept | {
      "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{_XLA} {count}",
      "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", _CACHE.name),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }


@dataclasses.dataclass
class Ended:
  """What is left of a process; `seconds` from the last `send` on, line breaks gone from `err`."""

  code: int
  err: str
  seconds: float


class Life:
  """A run from one start of its processes to their end, which this context makes sure of."""

  def __init__(self, command, workdir: pathlib.Path, *, processes: int = 1):
    """Starts `command`, arguments of `vit-jax train`, once or as several processes."""
    self._workdir, self._sent = workdir, time.monotonic()
    self._errors = [tempfile.TemporaryFile("w+") for _ in range(processes)]
    self.processes = [
        subprocess.Popen(
            [sys.executable, "-m", "vit_jax", "train", *command, f"--workdir={workdir}", *flags],
            env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=error,
        )
        for flags, error in zip(flags_of(processes), self._errors)
    ]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process, error in zip(self.processes, self._errors):
      process.kill()
      process.wait()
      error.close()

  def until(self, moment: Callable[[pathlib.Path], bool], *, timeout: float = 120.0) -> bool:
    """Waits for something to be seen in the run's directory; False where the run ends before."""
    deadline = time.monotonic() + timeout
    while not moment(self._workdir):
      if any(process.poll() is not None for process in self.processes):
        return False
      assert time.monotonic() < deadline, self._said(0)
      time.sleep(0.001)
    return True

  def begun(self, workdir: pathlib.Path) -> bool:
    """Whether the run is its first process's now: for `until`, before anything is read."""
    with contextlib.suppress(FileNotFoundError):
      return f"{self.processes[0].pid} on" in (workdir / ".lock").read_text()
    return False

  def send(self, number: signal.Signals, *whom: int) -> None:
    """Sends a signal to the processes with these indexes, or to all."""
    for index in whom or range(len(self.processes)):
      self.processes[index].send_signal(number)
    self._sent = time.monotonic()

  def ended(self, *whom: int, timeout: float = 120.0) -> list[Ended]:
    """Waits for the processes with these indexes, or for all."""
    left, found = list(whom or range(len(self.processes))), {}
    deadline = time.monotonic() + timeout
    while left:
      for index in [index for index in left if self.processes[index].poll() is not None]:
        left.remove(index)
        code, seconds = self.processes[index].returncode, time.monotonic() - self._sent
        found[index] = Ended(code, self._said(index), seconds)
      assert time.monotonic() < deadline, f"still running: {left}; {self._said(left[0])}"
      time.sleep(0.01)
    return [found[index] for index in sorted(found)]

  def _said(self, index: int) -> str:
    self._errors[index].seek(0)
    return " ".join(self._errors[index].read().split())


def flags_of(processes: int) -> list[list[str]]:
  """What tells processes of each other."""
  if processes == 1:
    return [[]]
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  return [
      [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={index}"]
      for index in range(processes)
  ]


def finish(command, workdir: pathlib.Path, *, processes: int = 1) -> None:
  """Lets a run end by itself.  Several processes are started again where a machine so busy that it
  sends no heartbeat for 10 s has lost one of them, as launch/supervise.sh would."""
  for _ in range(3):
    with Life(command, workdir, processes=processes) as life:
      ended = life.ended()
    codes = {process.code for process in ended}
    if processes == 1 or not codes & {75, -signal.SIGABRT}:
      break
  assert codes == {0}, " ".join(process.err for process in ended)


def last_step(workdir: pathlib.Path) -> int:
  """The last step in the metrics, -1 before there is one."""
  with contextlib.suppress(FileNotFoundError, IndexError, json.JSONDecodeError):
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
  return -1


def committed(workdir: pathlib.Path) -> int:
  """The newest committed step, 0 before there is one."""
  found = (workdir / "checkpoints").glob("*/manifest.json")
  return max((int(file.parent.name) for file in found if file.parent.name.isdigit()), default=0)


def logged(step: int) -> Callable[[pathlib.Path], bool]:
  """The moment from which on the metrics of a step are there."""
  return lambda workdir: last_step(workdir) >= step


def saving(workdir: pathlib.Path) -> bool:
  """Whether a checkpoint is being written: there is a step without its manifest."""
  with contextlib.suppress(FileNotFoundError):
    return any(not (step / "manifest.json").exists()
               for step in (workdir / "checkpoints").iterdir()
               if step.is_dir() and ".corrupt" not in step.name)
  return False


def losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [(line["step"], line["train/loss"]) for line in map(json.loads, lines)]


def shown(workdir: pathlib.Path) -> list[tuple[str, int]]:
  """TensorBoard's points of losses and accuracies; of speeds the first after a start is missing."""
  names = ("train/loss", "eval/validation/loss", "eval/validation/accuracy")
  return sorted(point for point in points_of(workdir) if point[0] in names)


def assert_same_run(workdir: pathlib.Path, reference: pathlib.Path, *, steps: int) -> None:
  """Equal parameters bit for bit; every step's metrics and TensorBoard's points once and equal."""
  ours, theirs = load(workdir), load(reference)
  assert ours.step == theirs.step == steps
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
  assert [step for step, _ in losses(workdir)] == list(range(1, steps + 1))
  assert losses(workdir) == losses(reference)
  assert shown(workdir) == shown(reference)

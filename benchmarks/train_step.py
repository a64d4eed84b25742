"""Training steps a second of ours and, beside it, of timm's ViT in PyTorch.

    PYTHONPATH=. python benchmarks/train_step.py [--rows=B/16,S/16] [--rounds=8] [--budget=480]

On an accelerator bfloat16 S/16, B/16 and L/16 with AdamW at 224 px, and attention alone; on a
CPU float32 Ti/16 and a 32-px ViT.  Both sides start from uint8 images on the device, normalise,
compute loss and gradient, clip it and update.  Each framework has a process of its own; they
take turns of about a second, in alternating order, and sleep otherwise.  Figures are medians
over the rounds, the ratio the median of each round's.  Prints a JSON line for each result and a
markdown table.
Exit code 1 if one of ours could not be measured; a peer that is missing is named in the notes.
"""

import argparse
import dataclasses
import datetime
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from machine import OtherWork, machine_notes
from table import markdown
from vit_jax.huge_pages import environment_with_huge_pages
from vit_jax.models.flops import training_flops
from vit_jax.models.variants import variant_shape
from vit_jax.observe.peaks import peak_flops

_HERE = pathlib.Path(__file__).parent
_ROUND_SECONDS = 1.0
# Quartiles need two.
_LEAST_ROUNDS = 2
# A row is not begun with less left; a peer that takes longer to its first step is left out.
_LEAST_SECONDS, _PEER_SECONDS = 40, 150
_OPTIMIZER = {
    "learning_rate": 1e-4, "b1": 0.9, "b2": 0.999, "weight_decay": 0.1, "clip_global_norm": 1.0,
}


@dataclasses.dataclass(frozen=True)
class Contestant:
  """A framework: the module that runs it (see `worker.py`) and what its job says besides."""

  name: str
  module: str
  options: dict = dataclasses.field(default_factory=dict)


_OURS = Contestant("vit_jax", "worker_vit_jax")
_TIMM_EAGER = Contestant("timm, eager", "worker_timm", {"compile": False})
_TIMM_COMPILED = Contestant("timm, torch.compile", "worker_timm", {"compile": True})


@dataclasses.dataclass(frozen=True)
class Row:
  """A model at a batch size for each device, and who runs it; ours comes first."""

  name: str
  model: dict
  batch: int
  contestants: tuple[Contestant, ...]


def _model(variant: str, dtype: str, *, size: int = 224, classes: int = 1000, **more) -> dict:
  sizes = {"image_size": size, "num_classes": classes}
  return variant_shape(variant) | sizes | {"dtype": dtype} | more


def _rows(backend: str) -> list[Row]:
  """What is measured on "cpu", "gpu" or "tpu", the most telling first."""
  if backend == "cpu":
    both = (_OURS, _TIMM_EAGER)
    return [
        Row("Ti/16", _model("Ti/16", "float32"), 8, both),
        Row("Ti/4 at 32 px", _model("Ti/4", "float32", size=32, classes=10), 128, both),
    ]
  both = (_OURS, _TIMM_COMPILED)
  rows = [
      Row("B/16", _model("B/16", "bfloat16"), 256, both),
      Row("S/16", _model("S/16", "bfloat16"), 256, both),
      Row("L/16", _model("L/16", "bfloat16"), 128, (_OURS,)),
  ]
  if backend == "gpu":
    cudnn = _model("B/16", "bfloat16", attention="cudnn")
    rows.append(Row("B/16 with cuDNN attention", cudnn, 256, (_OURS,)))
  return rows


class WorkerError(Exception):
  """A worker is of no use; `kind`: "missing" (a package), "memory", "time" or "failed"."""

  def __init__(self, kind: str, text: str):
    super().__init__(text)
    self.kind = kind


class Worker:
  """A contestant's process, see `worker.py`."""

  def __init__(self, contestant: Contestant, job: dict, *, deadline: float):
    """Starts it and waits for its first step.

    Args:
      deadline: on `time.monotonic`'s clock; the process is killed if it has not answered then.

    Raises:
      WorkerError: it cannot run.
    """
    job = job | contestant.options | {"module": contestant.module}
    self._log = tempfile.TemporaryFile("w+")
    self._process = subprocess.Popen(
        [sys.executable, str(_HERE / "worker.py"), json.dumps(job)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        env=_environment(),
    )
    self.pid = self._process.pid
    try:
      self.facts = self._answer(deadline)
    except WorkerError:
      self.kill()
      raise

  def run(self, steps: int, *, deadline: float) -> float:
    """Seconds that `steps` steps take."""
    self._process.stdin.write(f"{steps}\n")
    self._process.stdin.flush()
    return self._answer(deadline)["seconds"]

  def finish(self, *, deadline: float) -> dict:
    """Ends it and returns its last facts."""
    self._process.stdin.close()
    return self._answer(deadline)

  def kill(self):
    self._process.kill()
    self._process.wait()
    self._process.stdout.close()
    self._log.close()

  def _answer(self, deadline: float) -> dict:
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._process.kill)
    timer.start()
    line = self._process.stdout.readline()
    timer.cancel()
    if not line:
      if time.monotonic() >= deadline:
        raise WorkerError("time", "took too long")
      raise WorkerError("failed", f"ended without an answer: {self._log_tail()}")
    answer = json.loads(line)
    if "missing" in answer:
      raise WorkerError("missing", answer["missing"])
    if "error" in answer:
      kind = "memory" if answer["out_of_memory"] else "failed"
      raise WorkerError(kind, answer["error"].partition("\n")[0])
    return answer

  def _log_tail(self) -> str:
    self._log.seek(0)
    return " / ".join(self._log.read().splitlines()[-5:])


def _environment() -> dict[str, str]:
  """Of a worker: memory taken as needed, one GPU, no compilation remembered from before; on a CPU
  huge pages, which `vit-jax train` asks for itself, for both sides."""
  visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
  return os.environ | {
      "CUDA_VISIBLE_DEVICES": visible,
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
      "JAX_ENABLE_COMPILATION_CACHE": "false",
      "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
  } | environment_with_huge_pages()


class Benchmark:
  """Measures rows until the budget is spent; collects results, notes and failures."""

  def __init__(self, *, backend: str, rounds: int, deadline: float):
    self._backend, self._rounds, self._deadline = backend, rounds, deadline
    self._absent = {}
    self.results, self.notes, self.versions = [], [], {}
    self.failed = False

  def measure(self, row: Row):
    """Runs a row with its batch, or with half as often as it takes to fit into memory."""
    if self._deadline - time.monotonic() < _LEAST_SECONDS:
      self._note(f"{row.name}: left out, the time was spent")
      return
    batch = row.batch
    while True:
      try:
        self._measure(row, batch)
        return
      except WorkerError as error:
        if error.kind == "memory" and batch > 1:
          self._note(f"{row.name}: batch {batch} does not fit into memory, tried {batch // 2}")
          batch //= 2
          continue
        self.failed = True
        self._note(f"{row.name}: not measured: {error}")
        return

  def compare_attention(self):
    """Runs `attention.py`; on a CPU there is only one implementation, hence no comparison."""
    if self._backend == "cpu":
      return
    seconds = self._deadline - time.monotonic()
    if seconds < _LEAST_SECONDS:
      self._note("attention alone: left out, the time was spent")
      return
    _progress("attention alone")
    try:
      done = subprocess.run(
          [sys.executable, str(_HERE / "attention.py")], env=_environment(), timeout=seconds,
          capture_output=True, text=True, check=True,
      )
    except subprocess.TimeoutExpired:
      self._note("attention alone: left out, the time was spent")
      return
    except subprocess.CalledProcessError as error:
      self.failed = True
      last = (error.stderr.strip() or "no message").splitlines()[-1]
      self._note(f"attention alone: failed: {last}")
      return
    for line in done.stdout.splitlines():
      result = json.loads(line)
      if "refused" in result:
        where = f"{result['implementation']} attention at {result['tokens']} tokens"
        self._note(f"{where}: refused: {result['refused']}")
      else:
        self._add(result)

  def _measure(self, row: Row, batch: int):
    workers = {}
    try:
      for contestant in row.contestants:
        worker = self._start(row, contestant, batch)
        if worker:
          workers[contestant.name] = worker
      times, other_work = self._take_turns(workers)
      for name, worker in workers.items():
        facts = worker.facts | worker.finish(deadline=self._deadline + 10)
        self._report(row, batch, name, facts, times, other_work)
    finally:
      for worker in workers.values():
        worker.kill()

  def _start(self, row: Row, contestant: Contestant, batch: int) -> Worker | None:
    """None for a peer that cannot take part; its absence is noted once."""
    peer = contestant is not _OURS
    if contestant.name in self._absent:
      return None
    _progress(f"{row.name}, batch {batch}: starting {contestant.name}")
    job = {
        "model": row.model, "batch": batch, "backend": self._backend, "optimizer": _OPTIMIZER,
        "mean": [0.5] * 3, "std": [0.5] * 3,
    }
    deadline = self._deadline
    if peer:
      deadline = min(deadline, time.monotonic() + _PEER_SECONDS)
    try:
      worker = Worker(contestant, job, deadline=deadline)
    except WorkerError as error:
      if not peer or error.kind == "memory":
        raise
      if error.kind == "missing":
        self._absent[contestant.name] = str(error)
        self._note(f"{contestant.name}: skipped: {error}")
      else:
        self._note(f"{row.name}, {contestant.name}: not measured: {error}")
      return None
    self.versions |= worker.facts["versions"]
    _progress(f"{contestant.name}: first step {worker.facts['first_step_seconds']:.1f} s")
    return worker

  def _take_turns(self, workers):
    """Seconds a step, a list over rounds for each worker, and others' share of the CPUs."""
    steps = {}
    for name, worker in workers.items():
      worker.run(1, deadline=self._deadline)
      seconds = worker.run(1, deadline=self._deadline)
      steps[name] = max(1, round(_ROUND_SECONDS / seconds))
    times = {name: [] for name in workers}
    other_work = OtherWork([os.getpid(), *(worker.pid for worker in workers.values())])
    for round_number in range(self._rounds):
      begin = time.monotonic()
      for name in sorted(workers, reverse=bool(round_number % 2)):
        seconds = workers[name].run(steps[name], deadline=self._deadline + 10)
        times[name].append(seconds / steps[name])
      now = time.monotonic()
      if round_number + 1 >= _LEAST_ROUNDS and self._deadline - now < 1.5 * (now - begin):
        break
    return times, other_work.share()

  def _report(self, row, batch, name, facts, times, other_work):
    if not math.isfinite(facts["loss"]):
      raise WorkerError("failed", f"{name}: the loss became {facts['loss']}")
    seconds = statistics.median(times[name])
    speeds = [batch / t for t in times[name]]
    result = {
        "benchmark": "train_step",
        "model": row.name,
        "framework": name,
        "batch": batch,
        "devices": facts["devices"],
        "dtype": row.model["dtype"],
        "images_per_second": batch / seconds,
        "quartiles": statistics.quantiles(speeds, n=4)[::2],
        "milliseconds": seconds * 1e3,
        "rounds": len(speeds),
        "first_step_seconds": facts["first_step_seconds"],
        "parameters": facts["parameters"],
        "peak_bytes": facts["peak_bytes"],
        "loss": facts["loss"],
        "other_work": other_work,
    }
    peak = peak_flops(facts["device"], row.model["dtype"])
    if peak:
      achieved = batch / seconds * training_flops(**row.model)
      result |= {"mfu": achieved / peak, "peak_flops": peak}
    peers = [c.name for c in row.contestants if c is not _OURS and c.name in times]
    if name == _OURS.name and peers:
      pairs = zip(times[peers[0]], times[name])
      result["ratio"] = statistics.median(theirs / ours for theirs, ours in pairs)
    self._add(result)

  def _add(self, result: dict):
    self.results.append(result)
    print(json.dumps(result), flush=True)

  def _note(self, text: str):
    _progress(text)
    self.notes.append(text)


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", type=_names, help="rows wanted, with commas; all by default")
  parser.add_argument("--rounds", type=int, default=12, help="turns of each framework a row")
  parser.add_argument("--budget", type=float, default=480, help="seconds that all may take")
  arguments = parser.parse_args()
  if arguments.rounds < _LEAST_ROUNDS:
    parser.error(f"--rounds must be at least {_LEAST_ROUNDS}: quartiles are taken over them")

  deadline = time.monotonic() + arguments.budget
  machine = machine_notes(_progress)
  backend, device = _probe()
  rows = _rows(backend)
  names = [row.name for row in rows]
  unknown = set(arguments.rows or ()) - set(names)
  if unknown:
    parser.error(f"on this {backend} the rows are {', '.join(names)}; not {', '.join(unknown)}")

  benchmark = Benchmark(backend=backend, rounds=arguments.rounds, deadline=deadline)
  wanted = [row for row in rows if not arguments.rows or row.name in arguments.rows]
  for row in wanted:
    benchmark.measure(row)
  if not arguments.rows:
    benchmark.compare_attention()

  versions = ", ".join(f"{name} {version}" for name, version in benchmark.versions.items())
  notes = [
      *machine,
      f"Python {platform.python_version()}, {versions}",
      *_reading_notes(benchmark.results),
      *benchmark.notes,
  ]
  heading = f"### {device if backend != 'cpu' else 'CPU'}, {datetime.date.today()}"
  print("\n" + markdown(benchmark.results, heading=heading, notes=notes))
  return int(benchmark.failed)


def _names(text: str) -> list[str]:
  return [name.strip() for name in text.split(",")]


def _probe() -> tuple[str, str]:
  """jax's backend and kind of device, asked in a process that then frees the device."""
  code = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind, sep='\\n')"
  done = subprocess.run(
      [sys.executable, "-c", code], env=_environment(), stdout=subprocess.PIPE, text=True,
      check=True,
  )
  backend, device = done.stdout.strip().splitlines()[-2:]
  _progress(f"jax runs on {backend}: {device}")
  return backend, device


def _reading_notes(results) -> list[str]:
  """What the figures are figures of."""
  steps = [r for r in results if r["benchmark"] == "train_step"]
  notes = []
  if steps:
    rounds = sorted({r["rounds"] for r in steps})
    notes.append(f"medians of {' or '.join(map(str, rounds))} interleaved rounds of about 1 s")
  if any(r["devices"] > 1 for r in steps):
    devices = steps[0]["devices"]
    notes.append(f"batch, images/s and memory are those of one of {devices} devices")
  for peak, dtype in sorted({(r["peak_flops"], r["dtype"]) for r in steps if "mfu" in r}):
    notes.append(f"MFU: of {peak / 1e12:.0f} TFLOP/s, the device's dense {dtype} peak")
  return notes


def _progress(text: str):
  print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main())

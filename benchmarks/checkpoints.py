"""What saving costs a training: memory, the time it stands still, and the rates behind its back.

    PYTHONPATH=. python benchmarks/checkpoints.py [--saves=200] [--parameters=20] [--directory=DIR]

Saves a state of so many million float32 parameters with Adam's two moments again and again, as
training does, with steps between and meanwhile that are given the state to overwrite, and beside
each save writes as many bytes to the same disk in sequence and flushes them.  Medians over all
saves but the first ten, during which allocators and caches fill:

- the growth of the resident memory from the first ten of them to the last ten, and from the middle;
- the peak of the resident memory above what it was before a save, in sizes of the state;
- for how long `save` keeps the thread that trains, beside copying all arrays to the host alone, and
  how much longer the step after it takes than the one before;
- the rate at which the files were written and flushed, beside the disk's sequential rate;
- the rate of hashing, per second that one core spends on it; also without the system's part, which
  is reading.

Other work on the machine spoils all of them but the first two; how much there was is printed.
Leaves with 1 where a figure is not as it should be.
"""

import argparse
import functools
import operator
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import threading
import time

import jax
import numpy as np

import machine
from vit_jax.checkpoint import manifest
from vit_jax.checkpoint.manager import Checkpoints

_SETTLED = 10  # saves after which memory should no longer grow
_FEW = 10  # saves whose median is the memory at the begin, and at the end
_BLOCK = 8 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")
_RELATIONS = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--saves", type=int, default=200, help="[200]")
  parser.add_argument("--parameters", type=float, default=20, help="in millions [20]")
  parser.add_argument("--directory", help="to work in, on the disk to measure [temporary]")
  arguments = parser.parse_args()
  if arguments.saves < _SETTLED + 2 * _FEW:
    parser.error(f"--saves={arguments.saves}: it takes {_SETTLED + 2 * _FEW} to see a growth")
  for note in machine.machine_notes(progress=print):
    print(f"- {note}")
  other = machine.OtherWork([os.getpid()])
  with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
    found = measure(pathlib.Path(directory), arguments.saves, arguments.parameters * 1e6)
  size = found.pop("bytes")
  print(f"- {arguments.saves} saves of {size / 1e6:.0f} MB on {jax.default_backend()}")
  print(f"- other work meanwhile: {other.share():.0%} of the CPUs\n")
  print("| | measured | wanted |\n| --- | --- | --- |")
  missed = []
  for name, (value, form, wanted) in found.items():
    print(f"| {name} | {value:{form}} | {wanted} |")
    if wanted and not _holds(value, *wanted.split()):
      missed.append(name)
  if missed:
    sys.exit(f"not as wanted: {', '.join(missed)}")


def _holds(value: float, relation: str, bound: str) -> bool:
  """Whether a figure is as it should be, such as "<", "5%"."""
  number = float(bound.rstrip("%")) / (100 if bound.endswith("%") else 1)
  return _RELATIONS[relation](value, number)


def measure(directory, saves: int, parameters: float) -> dict:
  """The table: name to (figure, its format, what it should be)."""
  state = jax.device_put(make_state(parameters))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  clock, rows = Clock(), []
  with Checkpoints(directory / "checkpoints", keep_latest=2) as checkpoints:
    for step in range(1, saves + 1):
      state = jax.block_until_ready(advanced(state))
      row = {"copy": timed(copy_to_host, state)}
      state, row["before"] = timed_step(state)
      clock.begin()
      with Peak() as peak:
        row["blocked"] = timed(save, checkpoints, step, state)
        state, row["after"] = timed_step(state)
        checkpoints.wait()
      row |= clock.end() | {"peak": peak.above, "memory": resident()}
      row["longer"] = row["after"] - row["before"]
      row["rate"] = row["bytes"] / row["written"]
      row["hashed"] = row["bytes"] / row["hashed"]
      row["alone"] = row["bytes"] / row["alone"]
      row["disk"] = size / write_in_sequence(directory / "sequence", size)
      rows.append(row)
  settled = rows[_SETTLED:]
  middle = {name: statistics.median(row[name] for row in settled) for name in rows[0]}
  half = len(settled) // 2
  first, halfway, last = (
      statistics.median(row["memory"] for row in part)
      for part in (settled[:_FEW], settled[half : half + _FEW], settled[-_FEW:])
  )
  ratio, rate = middle["blocked"] / middle["copy"], middle["rate"]
  return {
      "bytes": size,
      "growth of the memory": (last / first - 1, ".1%", "< 5%"),
      "... in the second half": (last / halfway - 1, ".1%", ""),
      "peak of the memory / state": (max(r["peak"] for r in settled) / size, ".2f", "<= 1.2"),
      "thread blocked, ms": (1e3 * middle["blocked"], ".0f", ""),
      "... / copy to the host": (ratio, ".2f", "<= 1.3"),
      "next step longer by, ms": (1e3 * middle["longer"], ".0f", ""),
      "written and flushed, GB/s": (rate / 1e9, ".2f", ""),
      "... / disk in sequence": (rate / middle["disk"], ".2f", ">= 0.7"),
      "read and hashed a core, GB/s": (middle["hashed"] / 1e9, ".2f", ""),
      "hashed a core, GB/s": (middle["alone"] / 1e9, ".2f", ">= 1"),
      "from save to commit, s": (middle["committed"], ".1f", ""),
  }


def make_state(parameters: float, leaves: int = 24) -> dict:
  """{"params", "mu", "nu"}, each of so many numbers in `leaves` arrays."""
  rows = max(1, round(parameters / leaves / 1024))
  rng = np.random.default_rng(0)  # noise, which the files cannot compress away
  return {
      item: {f"layer{i}": rng.standard_normal((rows, 1024), np.float32) for i in range(leaves)}
      for item in ("params", "mu", "nu")
  }


@functools.partial(jax.jit, donate_argnums=0)
def advanced(state):
  """Other numbers in the same arrays, as a training step leaves them."""
  return jax.tree.map(lambda leaf: leaf * 1.0001, state)


def copy_to_host(state) -> None:
  for leaf in jax.tree.leaves(state):
    np.array(leaf, copy=True)


def save(checkpoints, step: int, state: dict) -> None:
  meta = {"config": {}, "examples_seen": step, "metrics": {}, "versions": {}}
  training = {"mu": state["mu"], "nu": state["nu"]}
  assert checkpoints.save(step, params=state["params"], training=training, meta=meta)


def timed(function, *arguments) -> float:
  began = time.perf_counter()
  function(*arguments)
  return time.perf_counter() - began


def timed_step(state) -> tuple[dict, float]:
  """The state after a step, and its seconds."""
  began = time.perf_counter()
  return jax.block_until_ready(advanced(state)), time.perf_counter() - began


def write_in_sequence(path: pathlib.Path, size: int) -> float:
  """Seconds for as many bytes at a disk's best: one file, large blocks, flushed."""
  block = np.random.default_rng(0).bytes(_BLOCK)
  began = time.perf_counter()
  with open(path, "wb", buffering=0) as file:
    for start in range(0, size, _BLOCK):
      file.write(block[: min(_BLOCK, size - start)])
    os.fsync(file.fileno())
  seconds = time.perf_counter() - began
  path.unlink()
  return seconds


def user_time() -> float:
  """Seconds of a core that this thread has used outside of the system."""
  return resource.getrusage(resource.RUSAGE_THREAD).ru_utime


def resident() -> int:
  """Bytes of this process in memory."""
  return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * _PAGE


class Peak:
  """A context; `above`: the most resident bytes in it over those at its begin."""

  def __enter__(self):
    self.above, self._before, self._ended = 0, resident(), threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._ended.set()
    self._thread.join()

  def _watch(self):
    while not self._ended.wait(0.005):
      self.above = max(self.above, resident() - self._before)


class Clock:
  """Looks on while `manifest.write` commits a save: what was flushing, what hashing."""

  def __init__(self):
    self._found, self._lock, self._began = {}, threading.Lock(), 0.0
    for name, key, clock in (
        ("_leave_cache", "flushed", time.perf_counter), ("_measured", "hashed", time.thread_time),
        ("_measured", "alone", user_time),
    ):
      setattr(manifest, name, self._timed(getattr(manifest, name), key, clock))
    write = manifest.write

    def first(*arguments, **more):  # Orbax has finished
      self._found["orbax"] = time.perf_counter() - self._began
      write(*arguments, **more)

    manifest.write = first

  def _timed(self, function, key: str, clock):
    def timed_(*arguments):
      began = clock()
      result = function(*arguments)
      with self._lock:
        self._found[key] = self._found.get(key, 0.0) + clock() - began
        if key == "hashed":
          self._found["bytes"] = self._found.get("bytes", 0) + result["bytes"]
      return result

    return timed_

  def begin(self) -> None:
    self._found, self._began = {}, time.perf_counter()

  def end(self) -> dict[str, float]:
    """Seconds: "written" by Orbax and flushed, "hashed" of a core's time, "alone" without the
    system's part of it, until "committed"; and the "bytes" of all files."""
    return {
        "written": self._found["orbax"] + self._found["flushed"],
        "hashed": self._found["hashed"], "alone": self._found["alone"],
        "bytes": self._found["bytes"],
        "committed": time.perf_counter() - self._began,
    }


if __name__ == "__main__":
  main()

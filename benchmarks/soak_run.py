"""A run that is started again whenever it has ended, and what is seen of it from outside."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

_PATIENCE = 600  # seconds without a word
_RESTARTABLE = {75, 134, 137, 143}  # as for launch/supervise.sh
_MODEL = (
    "--config=quickstart", "--config.model.dropout=0.1", "--config.model.stochastic_depth=0.1",
    "--config.input.batch_size=32", "--config.optimizer.ema_decay=0.99",
    "--config.log_every=1 steps",
)


class Broken(Exception):
  """The run cannot be gone on with."""


@dataclasses.dataclass
class Fault:
  """One fault, and what came of it."""

  kind: str
  due: int  # the step from which on it strikes
  step: int | None = None  # the last one logged when it struck
  codes: list[int] = dataclasses.field(default_factory=list)  # that the run left with
  steps_again: int = 0  # that had been logged, and were trained again
  seconds: float | None = None  # until a step was trained again
  broken: list[str] = dataclasses.field(default_factory=list)  # promises, in words


class Run:
  """The same command, again and again.

  Attributes:
    directory: of the run; beside it lie compiled programs and what the run has said.
    fault: the last one; what is noticed is put down to it.
    unasked: ends that were nobody's doing.
    damaged: the step that was, while nothing ran; None once the run has gone on.
    starting: seconds that a start takes.
    watchdog: seconds.
  """

  def __init__(self, directory: pathlib.Path, *, total: int, every: int, starting: float = 600.0):
    """Nothing is started yet; of `total` steps, with a checkpoint `every` so many."""
    self.directory, self.total, self.every, self.starting = directory, total, every, starting
    self.watchdog = math.ceil(max(10, starting))  # a start may take four times that
    self.evaluate_every = max(2, every * 3 // 2)
    self._command = [
        sys.executable, "-m", "vit_jax", "train", *_MODEL, f"--workdir={directory}",
        f"--config.total={total} steps", f"--config.checkpoint.every={every} steps",
        f"--config.evaluate.every={self.evaluate_every} steps",
        f"--config.watchdog={self.watchdog} seconds",
    ]
    self.fault, self.unasked = Fault("none", 0), []
    self.damaged: int | None = None
    self.process: subprocess.Popen | None = None
    self._reached = 0  # the last step logged that still counts
    self._said: list[str] = []

  def strikes(self, fault: Fault) -> None:
    """From now on what is noticed is this one's, and `says` is about what comes."""
    self.fault, fault.step, self._said = fault, self.step(), []

  def start(self) -> None:
    good = [step for step in self.committed() if step != self.damaged]
    self._newest, self._resumed = max(good, default=0), False
    self._started, self._heard = time.time(), time.monotonic()
    self.process = subprocess.Popen(
        self._command, env=_environment(self.directory.parent / "programs"), text=True,
        errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    self._reader = threading.Thread(target=self._listen, args=(self.process.stdout,))
    self._reader.start()

  def send(self, number: signal.Signals) -> None:
    self.process.send_signal(number)

  def kill(self) -> None:
    self.send(signal.SIGKILL)
    self.ends(137)

  def ends(self, *codes: int) -> None:
    """Waits for the end; an exit code that is none of these breaks a promise."""
    with contextlib.suppress(subprocess.TimeoutExpired):
      self.process.wait(_PATIENCE)
    code = self._ended()
    self.fault.codes.append(code)
    self.check(code in codes, f"left with {code}: {self._last_words()}")

  def until(self, happened, *, seconds: float = math.inf) -> bool:
    """Waits until `happened()`; False where the run is complete before, or the time is over.

    Where the run ends by itself that is noted, and it is started again; Broken where that cannot
    help.
    """
    deadline = time.monotonic() + seconds
    while not happened():
      if self.process.poll() is not None:
        code = self._ended()
        if code == 0:
          return False
        self.fault = Fault("unasked", self._reached, self._reached, [code])
        self.unasked.append(self.fault)
        if code not in _RESTARTABLE or len(self.unasked) > 10:
          raise Broken(f"the run left with {code} by itself: {self._last_words()}")
        self.start()
      if time.monotonic() > self._heard + _PATIENCE:
        raise Broken(f"no word for {_PATIENCE} s: {self._last_words()}")
      if time.monotonic() > deadline:
        return False
      time.sleep(0.002)
    return True

  def check(self, holds: bool, otherwise: str) -> None:
    if not holds:
      self.fault.broken.append(otherwise)

  def says(self, *words: str):
    """For `until`: whether one line since the last fault has all of the words."""
    return lambda: any(all(word in line for word in words) for line in self._said[:])

  def step(self) -> int:
    """The last step logged since the last start, -1 before the first."""
    line = self.last_line()
    return line["step"] if line and line["time"] >= self._started else -1

  def last_line(self) -> dict | None:
    """The last whole line of the metrics."""
    with contextlib.suppress(FileNotFoundError), self.metrics.open("rb") as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
      for text in reversed(file.read().splitlines()):
        with contextlib.suppress(ValueError):
          return json.loads(text)
    return None

  @property
  def metrics(self) -> pathlib.Path:
    return self.directory / "metrics.jsonl"

  def checkpoint(self, step: int) -> pathlib.Path:
    return self.directory / "checkpoints" / str(step)

  def committed(self) -> list[int]:
    """Committed steps, ascending."""
    found = self.directory.glob("checkpoints/*/manifest.json")
    return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())

  def saving(self) -> bool:
    """Whether a step is being written: it is there, under whatever name, without a manifest."""
    with contextlib.suppress(FileNotFoundError):
      return any(not (path / "manifest.json").exists()
                 for path in (self.directory / "checkpoints").iterdir()
                 if path.is_dir() and ".corrupt" not in path.name)
    return False

  def _ended(self) -> int:
    """Its exit code, as a shell has it; kills what runs still."""
    self.process.kill()
    code = self.process.wait()
    self._reader.join()
    if (step := self.step()) >= 0:
      self.check(self._resumed or not self._newest, f"began anew, though {self._newest} was good")
      self._reached = step
      # A step is committed while those after it are trained, before the next is saved.
      behind = step - max(self.committed(), default=0)
      self.check(behind <= 2 * self.every, f"step {step} came {behind} after the last commit")
    return code if code >= 0 else 128 - code

  def _last_words(self) -> str:
    return " ".join(self._said[-3:])

  def _listen(self, stream) -> None:
    """In a thread: keeps what is said, and compares what a start goes on from."""
    with (self.directory.parent / "output.log").open("a", buffering=1) as log:
      for line in stream:
        self._heard = time.monotonic()
        self._said.append(" ".join(line.split()))
        log.write(line)
        if match := re.match(r"resume: from step (\d+) of", line):
          step, self._resumed = int(match[1]), True
          self.fault.steps_again += max(0, self._reached - step)
          self._reached = min(self._reached, step)
          self.check(step == self._newest, f"went on from {step}, though {self._newest} was good")


def _environment(programs: pathlib.Path) -> dict[str, str]:
  """As a user has; compiled programs are kept, so that a start takes seconds."""
  return os.environ | {
      "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "JAX_COMPILATION_CACHE_DIR": str(programs),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }

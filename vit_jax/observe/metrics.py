"""Metrics on disk: `metrics.jsonl`, which is the record, and TensorBoard events beside it."""

import json
import math
import os
import pathlib
import time

NAME = "metrics.jsonl"
EVENTS = "tensorboard"


class MetricsWriter:
  """Appends a run's metrics; after a restart each step's metrics are there once.

  Several processes: only process 0 makes one.
  """

  def __init__(self, directory: str | os.PathLike, *, resume_step: int):
    """Drops what lies after the step that the run goes on from.

    Args:
      directory: of the run; made where it is missing.
      resume_step: the step that was restored, 0 for a new run; later lines are written again.

    Raises:
      OSError: the directory cannot be written.
    """
    self._directory = pathlib.Path(directory)
    self._directory.mkdir(parents=True, exist_ok=True)
    self._resume_step = resume_step
    path = self._directory / NAME
    _drop_after(path, resume_step)
    self._lines = path.open("a", encoding="utf-8")
    self._events = None

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes one line, `{"step", "time" (seconds since the epoch), **values}`, and flushes it.

    A value that is not finite becomes null, as JSON has no NaN, and no TensorBoard point.
    """
    now = time.time()
    numbers = {name: float(value) for name, value in values.items()}
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    line = {"step": step, "time": round(now, 3)} | {name: finite.get(name) for name in numbers}
    self._lines.write(json.dumps(line, allow_nan=False) + "\n")
    self._lines.flush()
    if self._events is None:
      self._events = self._open_events()
    for name, value in finite.items():
      self._events.add_scalar(name, value, step, walltime=now)

  def close(self) -> None:
    """Flushes the events and closes both files."""
    self._lines.close()
    if self._events is not None:
      self._events.close()
      self._events = None

  def _open_events(self):
    from tensorboardX import SummaryWriter  # pylint: disable=g-import-not-at-top  # slow

    return SummaryWriter(
        str(self._directory / EVENTS),
        # From this step on TensorBoard hides what older files have.
        purge_step=self._resume_step + 1,
        flush_secs=10,
        filename_suffix=f".{os.getpid()}.{time.time_ns()}",  # else a quick restart overwrites
    )


def read_metrics(directory: str | os.PathLike) -> list[dict]:
  """The lines of a run's `metrics.jsonl`, oldest first; those that are torn are left out."""
  return [line for _, line in _parsed(pathlib.Path(directory) / NAME)]


def _parsed(path: pathlib.Path) -> list[tuple[str, dict]]:
  """Text and content of each whole line; empty where there is no file."""
  if not path.exists():
    return []
  found = []
  for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
    try:
      line = json.loads(text)
    except ValueError:
      continue
    if isinstance(line, dict) and isinstance(line.get("step"), int):
      found.append((text, line))
  return found


def _drop_after(path: pathlib.Path, step: int) -> None:
  """Rewrites the file without torn lines and without those after `step`, in one rename."""
  if not path.exists():
    return
  kept = [text + "\n" for text, line in _parsed(path) if line["step"] <= step]
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("w", encoding="utf-8") as file:
    file.writelines(kept)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)

"""The sessions of a run: from when to when it held how many chips, and what came of it.

`sessions.json` lies in the run's directory: a list, a session for each time that training was
started, `{"started", "seen" (seconds since the epoch), "first_step", "step", "chips",
"processes"}`, and "seconds_per_step", the median of its recent intervals, once it is known.  A
session that was killed ends where it was last seen.
"""

import contextlib
import json
import math
import os
import time

from vit_jax.bucket import atomic
from vit_jax.bucket.failures import BucketError
from vit_jax.bucket.path import place
from vit_jax.observe.eta import Eta

NAME = "sessions.json"
# Not more often: on a bucket an object can be replaced about once a second.
_SECONDS_BETWEEN = 10.0
_NUMBERS = ("started", "seen", "first_step", "step", "chips")


class Session:
  """Records this process's session; several processes: only process 0 makes one."""

  def __init__(self, directory: str | os.PathLike, *, step: int, chips: int, processes: int):
    """Adds a session to the run's.

    Args:
      directory: of the run.
      step: that it begins with.
      chips: accelerators that it holds, over all processes.

    Raises:
      OSError: the file cannot be written.
    """
    self._path = place(directory) / NAME
    now = time.time()
    self._sessions = read_sessions(directory) + [{
        "started": now, "seen": now, "first_step": step, "step": step, "chips": chips,
        "processes": processes,
    }]
    self._eta = Eta(0)
    self._write()

  def seen(self, step: int, *, last: bool = False) -> None:
    """Notes that training got to `step`; writes it now and then, and when it is the last."""
    now, own = time.time(), self._sessions[-1]
    due = last or now - own["seen"] >= _SECONDS_BETWEEN
    if not last:  # the last saves lie between
      self._eta.seen(step, now)  # not what lies before the first time: start-up, compilation
    if due:
      own |= {"seen": now, "step": step}
      if rate := self._eta.seconds_per_step():
        own["seconds_per_step"] = rate
      with contextlib.suppress(OSError):  # the next turn makes it good; it is worth no run
        self._write()

  def _write(self) -> None:
    atomic.write_text(self._path, json.dumps(self._sessions, indent=1) + "\n")


def read_sessions(directory: str | os.PathLike) -> list[dict]:
  """The sessions of a run, oldest first, without damaged entries; none where the file is missing.

  Raises:
    BucketError: a bucket does not answer.
  """
  try:
    found = json.loads((place(directory) / NAME).read_text(encoding="utf-8"))
  except BucketError:
    raise  # else the next session would replace all
  except (OSError, ValueError):
    return []
  return _whole(found) if isinstance(found, list) else []


def _whole(entries: list) -> list[dict]:
  """Those of the entries that can be reckoned with."""
  return [
      entry for entry in entries
      if isinstance(entry, dict) and all(_is_number(entry.get(name)) for name in _NUMBERS)
  ]


def _is_number(value: object) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def summary(sessions: list[dict], *, seconds_per_step: float | None, step: int) -> dict:
  """What the sessions come to; damaged entries are left out.

  Args:
    seconds_per_step: the median of recent intervals, for sessions that did not note their own and
      had as many chips as the newest; None where it is not known.
    step: that the run has reached.

  Returns:
    "restarts"; "held_seconds", in which chips were held; "chip_hours"; "steps_lost", which were
    done and had to be done again; "goodput", the share of the held time that the steps which count
    took, each as long as in its own session, without start-up, compilation, evaluation, saving and
    repetition, None where it is not known.
  """
  sessions = _whole(sessions)
  held = [max(0, session["seen"] - session["started"]) for session in sessions]
  lost = sum(
      max(0, before["step"] - after["first_step"]) for before, after in zip(sessions, sessions[1:])
  )
  return {
      "restarts": max(0, len(sessions) - 1),
      "held_seconds": sum(held),
      "chip_hours": sum(
          seconds * session["chips"] for seconds, session in zip(held, sessions)
      ) / 3600,
      "steps_lost": lost,
      "goodput": _goodput(sessions, held, seconds_per_step, step),
  }


def _goodput(
    sessions: list[dict], held: list[float], newest: float | None, reached: int
) -> float | None:
  """`summary`'s; `newest` are its seconds per step."""
  noted = [session.get("seconds_per_step") for session in sessions]
  if not sum(held) or not (newest or any(map(_is_number, noted))):
    return None
  good, kept = 0.0, max(reached, sessions[-1]["step"])
  for number in reversed(range(len(sessions))):
    session = sessions[number]
    first, step = session["first_step"], session["step"]
    if number == len(sessions) - 1:
      step = kept  # the metrics may know more than what was noted now and then
    if step > first:
      # At most this, which start-up is part of; with other chips nothing better may be known.
      rate = held[number] / (step - first)
      if _is_number(noted[number]):
        rate = min(rate, noted[number])
      elif newest and session["chips"] == sessions[-1]["chips"]:
        rate = min(rate, newest)
      good += rate * max(0, min(step, kept) - first)
    kept = min(kept, first)  # what came after it was done again
  return good / sum(held)

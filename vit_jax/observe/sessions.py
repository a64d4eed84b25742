"""The sessions of a run: from when to when it held how many chips, and what came of it.

`sessions.json` lies in the run's directory: a list, a session for each time that training was
started, `{"started", "seen" (seconds since the epoch), "first_step", "step", "chips",
"processes"}`.  A session that was killed ends where it was last seen.
"""

import contextlib
import json
import os
import time

from vit_jax.bucket import atomic
from vit_jax.bucket.failures import BucketError
from vit_jax.bucket.path import place

NAME = "sessions.json"
# Not more often: on a bucket an object can be replaced about once a second.
_SECONDS_BETWEEN = 10.0


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
    self._write()

  def seen(self, step: int, *, last: bool = False) -> None:
    """Notes that training got to `step`; writes it now and then, and when it is the last."""
    now, own = time.time(), self._sessions[-1]
    due = last or now - own["seen"] >= _SECONDS_BETWEEN
    if due:
      own |= {"seen": now, "step": step}
      with contextlib.suppress(OSError):  # the next turn makes it good; it is worth no run
        self._write()

  def _write(self) -> None:
    atomic.write_text(self._path, json.dumps(self._sessions, indent=1) + "\n")


def read_sessions(directory: str | os.PathLike) -> list[dict]:
  """The sessions of a run, oldest first; none where the file is missing or damaged.

  Raises:
    BucketError: a bucket does not answer.
  """
  try:
    found = json.loads((place(directory) / NAME).read_text(encoding="utf-8"))
  except BucketError:
    raise  # else the next session would replace all
  except (OSError, ValueError):
    return []
  return found if isinstance(found, list) else []


def summary(sessions: list[dict], *, seconds_per_step: float | None, step: int) -> dict:
  """What the sessions come to.

  Args:
    seconds_per_step: the median of recent intervals; None where it is not known.
    step: that the run has reached.

  Returns:
    "restarts"; "held_seconds", in which chips were held; "chip_hours"; "steps_lost", which were
    done and had to be done again; "goodput", the share of the held time that the steps which count
    would have taken without start-up, compilation, evaluation, saving and repetition, None where it
    is not known.
  """
  held = [session["seen"] - session["started"] for session in sessions]
  lost = sum(
      max(0, before["step"] - after["first_step"]) for before, after in zip(sessions, sessions[1:])
  )
  goodput = None
  if seconds_per_step and sum(held) > 0:
    done = step - sessions[0]["first_step"]
    goodput = min(1.0, done * seconds_per_step / sum(held))
  return {
      "restarts": max(0, len(sessions) - 1),
      "held_seconds": sum(held),
      "chip_hours": sum(
          seconds * session["chips"] for seconds, session in zip(held, sessions)
      ) / 3600,
      "steps_lost": lost,
      "goodput": goodput,
  }

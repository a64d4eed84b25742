"""What a loop does about steps that were skipped: says so, saves none of them, ends after too many.

`optim.skipping` decides about a step on the devices; here the host reads, two steps later, what was
decided, so that it waits for nothing that it would not wait for anyway.
"""

import collections
import dataclasses
import json

import jax
import numpy as np

from vit_jax.bucket import atomic
from vit_jax.diagnosis import broken_leaves, describe
from vit_jax.errors import NonFiniteError
from vit_jax.step import all_finite

DIAGNOSIS = "diagnosis.json"


class Sanity:
  """Of one loop; all processes call all methods at the same steps, and decide alike."""

  def __init__(self, plan, *, run, checkpoints, skipped: int):
    """Nothing is read or written yet.

    Args:
      plan: a `plan.Plan`.
      run: a `checkpoint.run.RunDirectory`.
      checkpoints: a `checkpoint.manager.Checkpoints`.
      skipped: steps that the run had skipped before.
    """
    self._plan, self._run, self._checkpoints = plan, run, checkpoints
    self._limit = plan.config.skip.limit
    self._in_flight = collections.deque()  # (step, metrics, batch), not yet examined
    self._in_a_row = 0
    self._announced = skipped
    self._due = False

  def after(self, step: int, state, values, batch, key) -> None:
    """Takes note of a step that is under way, and waits for the one before the last.

    Args:
      step, state: after it.
      values: its metrics, on the devices.
      batch, key: that it was made with.

    Raises:
      NonFiniteError: more than `config.skip.limit` steps in a row were skipped.
    """
    values["skipped_in_a_row"].copy_to_host_async()
    self._in_flight.append((step, values, batch))
    if len(self._in_flight) > 2:  # the host may run two steps ahead, no further
      self._examine(state, key)

  def may_save(self, due: bool, step: int, state, key, *, last: bool) -> bool:
    """Whether a checkpoint is to be saved now.

    What falls due at a step that was skipped waits for the next that is taken, so that what is
    committed had a finite loss and gradient; the `last` step before the loop ends waits for none.

    Raises:
      NonFiniteError: as `after`; or something in the state is not finite.
    """
    self._due |= due
    if not self._due:
      return False
    while self._in_flight:
      self._examine(state, key)
    if self._in_a_row and not last:
      return False
    self._due = False
    if not all_finite(state):
      raise NonFiniteError(
          f"after step {step} {_some(broken_leaves(state))} are not finite, so it was not saved in "
          f"{self._checkpoints.directory}; {self._advice()}"
      )
    return True

  def news(self, step: int, skipped: int) -> str | None:
    """A sentence for whoever watches, where steps were skipped since it was last asked."""
    new, self._announced = skipped - self._announced, skipped
    if not new:
      return None
    steps = "step was" if new == 1 else "steps were"
    return f"step {step}: {new} {steps} skipped, loss or gradient not sane; {skipped} in all"

  def _examine(self, state, key) -> None:
    """Waits for the oldest step in flight; ends the run where it is one too many."""
    step, values, batch = self._in_flight.popleft()
    self._in_a_row = int(values["skipped_in_a_row"])
    if self._in_a_row > self._limit:
      self._end(step, jax.device_get(values), state, batch, key)

  def _end(self, step: int, values, state, batch, key) -> None:
    """Raises the NonFiniteError that says what broke first."""
    # The state is as it was before the step, unless one of the two behind it was taken.
    before = dataclasses.replace(state, step=state.step - 1 - len(self._in_flight))
    said = self._diagnosed(step, before, batch, key)
    loss, norm = float(values["loss"]), float(values["gradient_norm"])
    why = "which are not finite"
    if np.isfinite(loss) and np.isfinite(norm):
      usual = float(np.exp(jax.device_get(state.health["log_gradient_norm"])))
      why = f"a spike (config.skip.spike_factor): the usual norm is {usual:.3g}"
    many = "" if self._in_a_row == 1 else f", and so were {self._in_a_row - 1} before it"
    raise NonFiniteError(
        f"step {step} was skipped with loss {loss:.6g} and gradient norm {norm:.6g}, {why}{many}; "
        f"config.skip.limit is {self._limit}. At step {step} {said}; "
        f"{self._advice()}"
    )

  def _diagnosed(self, step: int, before, batch, key) -> str:
    """What broke first, in words; everything that is known goes into the run's directory.

    Neither a lack of memory nor of room on the disk may hide why the run ends.
    """
    try:
      found = jax.device_get(self._plan.diagnose(before, batch, key))
    except jax.errors.JaxRuntimeError as error:
      return f"what broke first could not be computed: {str(error).splitlines()[0]}"
    said, told = describe(found, self._plan.abstract.params)
    file, text = self._run.path / DIAGNOSIS, json.dumps({"step": step} | told, indent=1)
    try:
      if jax.process_index() == 0:
        atomic.write_text(file, text + "\n")
    except OSError as error:
      return f"{said} ({file} could not be written: {error})"
    return f"{said} (all of it is in {file})"

  def _advice(self) -> str:
    latest = self._checkpoints.latest()
    if latest is None:
      return (
          "begin again in another --workdir with a lower config.optimizer.learning_rate, a longer "
          "config.schedule.warmup, or config.optimizer.clip_global_norm"
      )
    return (
        f"step {latest} is intact: lower config.optimizer.learning_rate or set "
        "config.optimizer.clip_global_norm, and add --amend to go on from there; or begin another "
        f"run with --config.fork.checkpoint={self._run.path}@{latest} and --config.fork.skip="
        '"200 steps", which leaves out data'
    )


def _some(names: list[str], *, listed: int = 3) -> str:
  more = len(names) - listed
  return ", ".join(names[:listed]) + (f" and {more} more" if more > 0 else "")

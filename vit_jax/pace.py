"""When something that happens "every so often" is due."""

import functools
import time

from vit_jax import durations
from vit_jax.checkpoint.retention import Every

_UNITS = durations.STEP_UNITS + durations.TIME_UNITS


class Pace:
  """A duration, asked at every step whether it has passed.

  In steps it is a function of the step alone, whatever the run was resumed from; in minutes or
  hours it counts from the last time it was due.  The last step of a run is always due.
  """

  def __init__(self, duration: str, *, steps_in, total_steps: int):
    """Starts the clock.

    Args:
      duration: such as "10 minutes" or "1 epochs"; 0 of anything is due at the end only.
      steps_in: function of a duration's text to steps.
    """
    self._seconds = durations.to_seconds(duration)
    self._exact = durations.parse(duration, units=_UNITS)[1] == "steps"
    self._steps = steps_in(duration) if self._seconds is None else None
    self._total, self._last = total_steps, time.monotonic()

  def due(self, step: int) -> bool:
    """Whether it is due after `step` steps; ask once a step."""
    if step == self._total:
      return True
    if self._seconds is None:
      # Epochs round to steps: what falls due within a tenth of its interval before the end (20 of
      # 60 epochs may end a step early) waits for the end.
      near_end = not self._exact and (self._total - step) * 10 < self._steps
      return self._steps > 0 and step % self._steps == 0 and not near_end
    if self._seconds <= 0 or time.monotonic() - self._last < self._seconds:
      return False
    self._last = time.monotonic()
    return True


def kept_every(config, *, examples: int) -> Every:
  """`config.checkpoint.keep_every`, for a training split of so many examples."""
  text = config.checkpoint.keep_every
  seconds = durations.to_seconds(text)
  if seconds is not None:
    return Every(seconds=seconds)
  in_steps = functools.partial(
      durations.to_steps, batch_size=config.input.batch_size, examples=examples
  )
  return Every(steps=in_steps(text, total_steps=in_steps(config.total, total_steps=None)))

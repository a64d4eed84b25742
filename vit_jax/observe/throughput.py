"""Images per second, model FLOPs utilisation, and how long the devices waited for input."""

import time


class Throughput:
  """Measures training between two readings, leaving out what is not training.

  The first interval contains compilation and is not reported.
  """

  def __init__(self, *, batch_size: int, flops_per_image: float, peak_flops: float | None):
    """Starts the clock.

    Args:
      batch_size: images of one step, over all devices.
      flops_per_image: of a training step.
      peak_flops: of all devices together, in FLOP/s; None where it is not known.
    """
    self._batch_size, self._flops, self._peak = batch_size, flops_per_image, peak_flops
    self._warm = False
    self.restart()

  def restart(self):
    """Begins a new interval: call it after evaluating or saving, which are not training."""
    self._begin, self._steps, self._waited = time.perf_counter(), 0, 0.0

  def step(self, waited: float):
    """Counts a step whose batch took `waited` seconds to arrive."""
    self._steps += 1
    self._waited += waited

  def read(self) -> dict[str, float]:
    """Returns `train/...` metrics since the last reading and begins a new interval.

    Call it when the step's results have arrived.  Empty for the interval with the compilation and
    for one without steps.
    """
    seconds, steps, waited = time.perf_counter() - self._begin, self._steps, self._waited
    self.restart()
    if not self._warm or not steps:
      self._warm = self._warm or steps > 0
      return {}
    images_per_second = steps * self._batch_size / seconds
    metrics = {
        "train/images_per_second": images_per_second,
        "train/input_wait_fraction": waited / seconds,
    }
    if self._peak:
      metrics["train/mfu"] = images_per_second * self._flops / self._peak
    return metrics

"""Learning rate as a function of the step."""

import optax

SCHEDULES = ("cosine", "linear", "constant")


def make_schedule(
    name: str, *, learning_rate: float, warmup_steps: int, total_steps: int,
    end_learning_rate: float,
):
  """Linear warm-up from 0, then the named decay down to `end_learning_rate` at `total_steps`.

  Args:
    name: one of `SCHEDULES`; "constant" ignores `end_learning_rate`.
    learning_rate: the peak, reached at `warmup_steps`.

  Returns:
    A function of the step (0 for the first update) giving a float32 scalar.

  Source: cosine without restarts, SGDR (arXiv 1608.03983), equation 5.
  """
  steps = max(1, total_steps - warmup_steps)
  if name == "cosine":
    decay = optax.cosine_decay_schedule(learning_rate, steps, end_learning_rate / learning_rate)
  elif name == "linear":
    decay = optax.linear_schedule(learning_rate, end_learning_rate, steps)
  elif name == "constant":
    decay = optax.constant_schedule(learning_rate)
  else:
    raise ValueError(f"unknown schedule {name!r}; choose one of {SCHEDULES}")
  if not warmup_steps:
    return decay
  warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, decay], [warmup_steps])

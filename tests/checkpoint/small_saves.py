"""Small states that are a function of the step; for the tests and the processes they start."""

import jax.numpy as jnp
import numpy as np


def make(step: int, rows: int) -> dict:
  """One float32 array of `rows` times 4 KiB."""
  values = np.random.default_rng(step).normal(size=(rows, 1024)).astype(np.float32)
  return {"kernel": jnp.asarray(values)}


def save(checkpoints, step: int, rows: int) -> bool:
  """Saves `make(step, rows)` as both items."""
  state = make(step, rows)
  meta = {"config": {}, "examples_seen": step, "metrics": {}, "versions": {}}
  return checkpoints.save(step, params=state, training=state, meta=meta)


def listed(directory) -> list[str]:
  """The names in a directory of checkpoints, but for the marks, which are those of its steps."""
  names = sorted(path.name for path in directory.iterdir())
  marks = [name for name in names if name.endswith(".committed")]
  steps = [name for name in names if (directory / name / "manifest.json").exists()]
  assert marks == [f"{name}.committed" for name in steps if name.isdigit()]
  return [name for name in names if name not in marks]


def block(directory) -> None:
  """A file takes the place of a directory."""
  directory.rename(directory.with_name("away"))
  directory.write_text("in the way")


def unblock(directory) -> None:
  """Undoes `block`."""
  directory.unlink()
  directory.with_name("away").rename(directory)

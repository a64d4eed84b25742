"""How many examples are computed at a time, so that a step fits into the memory of the devices."""

import contextlib
import math
from typing import Callable

import jax

from vit_jax.errors import ConfigError
from vit_jax.parallel import memory
from vit_jax.parallel import mesh as mesh_lib

# What to try where not even the state fits the devices.
SMALLER_STATE = "set config.mesh.fsdp to shard the parameters over more devices"
# What other arrays than a step's (the next batch, an evaluation) and fragmentation may take.
_RESERVED = 0.08


def micro_batches(batch_size: int, micro_batch: int, data_shards: int) -> int:
  """Into how many parts a batch is divided.

  Raises:
    ConfigError: it cannot be; the nearest value that can is named.
  """
  possible = sizes(batch_size, data_shards)
  if micro_batch not in possible:
    near = min(possible, key=lambda size: abs(size - micro_batch))
    raise ConfigError(
        f"config.micro_batch is {micro_batch}: it must divide config.input.batch_size {batch_size} "
        f"and be a multiple of the {data_shards} data shards; the nearest is {near}"
    )
  return batch_size // micro_batch


def sizes(batch_size: int, data_shards: int) -> list[int]:
  """Every possible `config.micro_batch`, the largest first."""
  return [
      batch_size // parts for parts in range(1, batch_size // data_shards + 1)
      if batch_size % (parts * data_shards) == 0
  ]


def largest_that_fits(
    needed: Callable[[int], int], *, batch_size: int, data_shards: int, available: int
) -> tuple[int, int]:
  """Finds the largest micro-batch that fits, by compiling the step at several sizes.

  The whole batch is tried first; then sizes are bisected, as a smaller one needs no more.

  Args:
    needed: bytes on a device at `config.micro_batch`, see `step_bytes`.
    available: bytes on a device.

  Returns:
    The micro-batch, and the bytes that it needs.

  Raises:
    ConfigError: not even one example a device fits.
  """
  possible, found = sizes(batch_size, data_shards), None
  usable, first, last = (1 - _RESERVED) * available, 0, len(possible)
  middle = 0
  while first < last:
    size = possible[middle]
    bytes_needed = needed(size)
    if bytes_needed <= usable:
      found, last = (size, bytes_needed), middle
    else:
      first = middle + 1
    middle = (first + last) // 2
  if found is None:
    much = f"{bytes_needed / 1e9:.3g} GB" if math.isfinite(bytes_needed) else "more than there is"
    raise ConfigError(
        f"a micro-batch of {size} needs {much} on a device of {available / 1e9:.3g} GB, and is the "
        f"smallest of config.input.batch_size {batch_size}: set config.mesh.fsdp to shard the "
        "parameters over more devices, or take a smaller model"
    )
  return found


def step_bytes(train_step, *abstract, device: jax.Device) -> float:
  """Bytes on a device that a jitted step takes, as its compiler planned them; where the compiler
  itself refuses, as a TPU's does, those that it asked for, or infinity."""
  lowered = train_step.lower(*abstract)
  try:
    with memory.compiling_for(device):
      return memory.program_bytes(lowered.compile(), device.platform)
  except jax.errors.JaxRuntimeError as error:
    if (refused := memory.refused(error)) is None:
      raise
    return refused[0]


@contextlib.contextmanager
def advice_when_out_of_memory(advice: str):
  """Turns a device's "out of memory" into what to try next.

  Raises:
    ConfigError: in place of what jax raises.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not memory.is_out_of_memory(error):
      raise
    first = str(error).partition("\n")[0]
    raise ConfigError(f"the devices are out of memory ({first}): {advice}") from error


def smaller_step(config, mesh) -> str:
  """What to try where a step does not fit the devices of a mesh."""
  now = config.micro_batch or config.input.batch_size
  smaller = sizes(now, mesh_lib.data_shards(mesh))[1:]
  return (
      f"set config.micro_batch={smaller[0]} (now {now}; where there is dropout a run that has "
      "begun needs --amend, too)" if smaller else SMALLER_STATE
  )


def smaller_evaluation(config, mesh) -> str:
  """What to try where an evaluation does not fit the devices of a mesh."""
  now, shards = config.evaluate.batch_size or config.input.batch_size, mesh_lib.data_shards(mesh)
  return (
      f"set config.evaluate.batch_size={max(now // 2, shards)} (now {now})"
      if now > shards else SMALLER_STATE
  )

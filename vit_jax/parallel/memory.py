"""How much memory a device has, and how much of it a compiled program takes."""

import contextlib
import math
import os
import re

import jax

# What XLA says of a program that does not fit: "Used 21.44G of 15.75G hbm", or, before it has
# placed anything, "memory required for HLO temporaries (1.00T) exceeds available HBM (15.75G)".
_TOO_LARGE = (
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) (?:hbm|HBM)"),
    re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def device_bytes(device: jax.Device) -> int:
  """Memory of a device; of a CPU its share of the machine's."""
  limit = (device.memory_stats() or {}).get("bytes_limit")
  if limit:
    return limit
  host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return host // jax.local_device_count()


def program_bytes(compiled, platform: str) -> int:
  """The most memory on a device at any time of a program, its arguments included.

  Args:
    compiled: what `jax.stages.Lowered.compile` returns.
    platform: of the devices; a CPU's own peak counts arguments alone, so that there, and on GPUs,
      whose peak was never compared with a measured one, all parts are summed.
  """
  memory = compiled.memory_analysis()
  if platform == "tpu":
    return memory.peak_memory_in_bytes
  return (
      memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  )


def is_out_of_memory(error: Exception) -> bool:
  """Whether a compiler or a device refused for want of memory."""
  return "RESOURCE_EXHAUSTED" in str(error)


def refused(error: Exception) -> tuple[float, float | None] | None:
  """(bytes wanted, bytes there) of a compiler that had too little memory; None for other errors.

  Where it does not say how much, infinity and None.
  """
  for pattern in _TOO_LARGE:
    if match := pattern.search(str(error)):
      used, unit, limit, limit_unit = match.groups()
      return float(used) * _UNITS[unit], float(limit) * _UNITS[limit_unit]
  return (math.inf, None) if is_out_of_memory(error) else None


@contextlib.contextmanager
def compiling_for(device: jax.Device):
  """Leaves out the compilation cache for devices that are only described: they cannot read it."""
  cached = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", cached and device in jax.devices())
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", cached)

"""A training step compiled and not run: how much memory it takes, and what it sends."""

import dataclasses
import resource
import time

import jax

from vit_jax.parallel import memory
from vit_jax.parallel.collectives import Collective, collectives
from vit_jax.plan import Plan, abstract_arguments


@dataclasses.dataclass(frozen=True)
class Program:
  """What a compiler says of a step, on one device.

  Attributes:
    peak_bytes: the most memory at any time, arguments included.
    limit_bytes: what the compiler had; None where it does not say, as when the step fits.
    argument_bytes: of the state, the batch and the key, as they lie in memory.
    output_bytes: of the new state, which takes the place of the old, and the metrics.
    flops: as the compiler counts them, bodies of loops once; None where it does not.
    collectives: None where the step does not fit, for there is then no program.
    wall_seconds, cpu_seconds: that compiling took.
  """

  peak_bytes: int
  limit_bytes: int | None
  argument_bytes: int | None
  output_bytes: int | None
  flops: float | None
  collectives: list[Collective] | None
  wall_seconds: float
  cpu_seconds: float


def compile_step(plan: Plan) -> Program:
  """Compiles a plan's training step for its mesh, whose devices need not be there.

  Raises:
    jax.errors.JaxRuntimeError: the compiler fails for another reason than memory.
  """
  lowered = plan.train_step.lower(*abstract_arguments(plan.config, plan.abstract))
  wall, cpu = time.perf_counter(), _cpu_seconds()
  device = plan.mesh.devices.flat[0]
  try:
    with memory.compiling_for(device):
      compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = memory.refused(error)
    if needed is None or needed[1] is None:
      raise
    return Program(
        int(needed[0]), int(needed[1]), None, None, None, None, time.perf_counter() - wall,
        _cpu_seconds() - cpu,
    )
  wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
  analysis = compiled.memory_analysis()
  return Program(
      memory.program_bytes(compiled, device.platform), None, analysis.argument_size_in_bytes,
      analysis.output_size_in_bytes, (compiled.cost_analysis() or {}).get("flops"),
      collectives(compiled.as_text(), plan.mesh), wall, cpu,
  )


def _cpu_seconds() -> float:
  """Of this process, all threads."""
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime

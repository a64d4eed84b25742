"""What a run would need and take on a topology that is not there.

Every number is a fact, `{"value": ..., "unit": ..., "basis": ...}`: nothing is said whose basis is
not. Where the topology can be compiled for, memory and collectives are the compiler's; elsewhere
they are counted from shapes and shardings.
"""

from importlib import metadata
import math

import jax

from vit_jax import config as config_lib
from vit_jax import estimate
from vit_jax.models.flops import training_flops
from vit_jax.observe.peaks import peak_flops
from vit_jax.observe.versions import versions
from vit_jax.parallel.collectives import summarize
from vit_jax.parallel.mesh import data_shards, slice_count
from vit_jax.parallel.topology import (
    NoCompiler, Topology, compile_devices, imagined_devices,
)
from vit_jax.plan import make_plan, parameter_table
from vit_jax.program import Program, compile_step
from vit_jax.roofline import ASSUMPTIONS, least_seconds

# Share of the bfloat16 peak that training reaches, by what was published of a ViT: on which chip.
_MFU = {
    "tpu": (0.35, "v4", "B/16 32 %, L/16 37 % (deit3-jax, from its run times)"),
    "a100": (0.30, "a100", "ViT-B/16, 900 images/s (NVIDIA JAX-Toolbox)"),
    "gpu": (0.16, "h100", "ViT-B/16, 1 459 images/s (NVIDIA JAX-Toolbox)"),
    "gpu, wide": (0.29, "h100", "ViT-g/14, 178 images/s (NVIDIA NeMo)"),
}
_WIDE = 1280  # of H/14; that of g/14 is 1408
# CPU milliseconds an image, end to end (benchmarks/README.md).
_DECODED = (1.8, "JPEGs of 108 kB decoded, cropped to 224 px and mirrored: 1.8 ms of a 2.1 GHz "
            "Xeon's CPU each (benchmarks/README.md); further augmentation is not in it")
_IN_MEMORY = (0.0018, "images of 32 px in memory: 1.8 us of a 2.1 GHz Xeon's CPU each "
              "(benchmarks/README.md)")
_SMALL = ("digits", "cifar10", "cifar100", "mnist", "fashion_mnist")
_SMALL_SIDE = 32  # pixels, at which they are not enlarged


def fact(value, unit: str, basis: str) -> dict:
  """A number, what it counts, and where it is from."""
  return {"value": value, "unit": unit, "basis": basis}


def forecast(config, topology: Topology, data, *, mfu: float | None = None) -> dict:
  """Plans a run for a topology, and compiles its step where that is possible.

  Args:
    config: resolved for the topology's platform.
    data: `known_data.DataSize`.
    mfu: share of the peak that training is taken to reach; None for what was published.

  Returns:
    A dict that `json` writes: "topology", "config", "data", "model", "mesh", "parameter_table" (see
    `plan`), "memory", "compilation" (None without), "collectives", "step", "run" and "notes".

  Raises:
    ConfigError: mesh, batch or durations do not work out.
  """
  notes = []
  try:
    devices = compile_devices(topology)
  except NoCompiler as error:
    devices = imagined_devices(topology)
    notes.append(f"estimated, not compiled: {error}")
    if config.micro_batch == "auto":
      config = config_lib.replace(config, {"micro_batch": None})
      notes.append("micro_batch=auto needs a compiler: planned with whole batches")
  plan = make_plan(
      config, examples=data.examples, num_classes=data.classes, devices=devices,
      device_bytes=topology.chip.usable_bytes,
  )
  program = None if notes else compile_step(plan)
  found = estimate.least_collectives(plan) if program is None else program.collectives
  memory = _memory(plan, topology, program)
  if not memory["fits"]:
    notes.append(_to_make_it_fit(plan))
  table = parameter_table(plan)
  if whole := [path for path, row in table.items() if row["dropped"]]:
    notes.append(
        f"{len(whole)} of {len(table)} parameters lie whole over an axis that does not divide "
        f"them: {', '.join(whole[:3])}{', ...' if len(whole) > 3 else ''}"
    )
  step = _step(plan, topology, program, found, memory, mfu)
  return {
      "topology": _topology(topology),
      "config": config_lib.to_json(plan.config),
      "data": {
          "examples": fact(data.examples, "images", data.basis),
          "classes": fact(data.classes, "classes", data.basis),
      },
      "model": _model(plan),
      "mesh": dict(plan.mesh.shape),
      "parameter_table": table,
      "memory": memory,
      "compilation": program and _compilation(program),
      "collectives": _collectives(found, program),
      "step": step,
      "run": _run(plan, topology, step, data),
      "notes": notes,
  }


def _to_make_it_fit(plan) -> str:
  """What can still be turned, in the order of what it costs."""
  config, mesh = plan.config, plan.mesh
  ways = []
  if (config.micro_batch or config.input.batch_size) > data_shards(mesh):
    ways.append("a smaller config.micro_batch")
  if config.model.remat != "block":
    ways.append("config.model.remat=block")
  fsdp, replicas = mesh.shape["fsdp"], mesh.shape["replica"] // slice_count(mesh.devices.flat)
  if replicas % 2 == 0 and plan.model_config["width"] % (2 * fsdp) == 0:
    ways.append(f"config.mesh.fsdp={2 * fsdp}")
    if config.mesh.replica is not None:
      ways[-1] += f" with config.mesh.replica={mesh.shape['replica'] // 2}"
  return f"to make it fit: {', '.join(ways + ['more or larger chips'])}"


def _topology(topology: Topology) -> dict:
  basis = "the topology; vit_jax/parallel/chips.py"
  return {
      "name": str(topology),
      "device_kind": topology.chip.device_kind,
      "chips": fact(topology.chips, "chips", basis),
      "devices": fact(topology.devices, "devices", basis),
      "slices": fact(topology.slices, "slices", basis),
      "hosts": fact(topology.hosts, "hosts", basis),
  }


def _model(plan) -> dict:
  parameters = plan.parameters
  return {
      "parameters": fact(parameters, "parameters", "shapes of the parameters"),
      "flops": fact(
          training_flops(**plan.model_config), "FLOP/image",
          "matrix products of a training image, attention in full (vit_jax/models/flops.py); "
          "what remat computes again is not in it",
      ),
  }


def _memory(plan, topology: Topology, program: Program | None) -> dict:
  """What a device's memory holds at the step's peak, and whether that fits."""
  parts = estimate.state_bytes(plan)
  usable = topology.chip.usable_bytes
  available = "what a program may take of a device"
  if topology.chip.platform == "gpu":
    available += ": 75 % of its memory, jax's share (XLA_PYTHON_CLIENT_MEM_FRACTION)"
  available += " (vit_jax/parallel/chips.py)"
  gradients = parts.pop("gradients")
  state = sum(parts.values())
  shapes = "shapes and shardings of the state"
  found = {name: fact(size, "bytes", shapes) for name, size in parts.items()}
  if program is None:
    saved = estimate.saved_bytes(plan)
    found["gradients"] = fact(gradients, "bytes", shapes)
    kept = "all are kept, as of scanned blocks"
    if not plan.config.model.scan:
      saved, kept = saved // 2, "half are kept, as of unrolled blocks of a TPU's program"
    if plan.mesh.shape["tensor"] > 1:
      kept += "; not divided over tensor"
    found["activations"] = fact(
        saved, "bytes", f"residuals of automatic differentiation: {kept} (vit_jax/estimate.py)"
    )
    peak, basis = state + gradients + saved, "the sum of these"
  else:
    peak, basis = program.peak_bytes, "the compiler's plan of the step"
    if program.argument_bytes is not None:
      found["batch and padding"] = fact(
          program.argument_bytes - state, "bytes", "the compiler's arguments less the state"
      )
    rest = peak - (state if program.argument_bytes is None else program.argument_bytes)
    found["activations, gradients, temporary"] = fact(
        rest, "bytes", "the compiler's peak less its arguments"
    )
    if program.limit_bytes is not None:
      usable, available = program.limit_bytes, "what the compiler refused to go beyond"
  return {
      "fits": peak <= usable,
      "peak": fact(peak, "bytes", basis),
      "available": fact(usable, "bytes", available),
      "parts": found,
  }


def _compilation(program: Program) -> dict:
  basis = (
      f"this machine; jax {versions()['jax']}, libtpu {_libtpu_version()}; a TPU's host compiles "
      "faster or slower"
  )
  return {
      "wall": fact(program.wall_seconds, "s", basis),
      "cpu": fact(program.cpu_seconds, "s", basis),
  }


def _libtpu_version() -> str:
  try:
    return metadata.version("libtpu")
  except metadata.PackageNotFoundError:
    return "of no package"


def _collectives(found, program: Program | None) -> dict:
  if program is None:
    basis = "asked for by the shardings"
  else:
    basis = "the compiled program"
  basis += "; bytes of whole arrays on a device, all executions of a step"
  if uncounted := sum(not one.counted for one in found or ()):
    basis += f"; {uncounted} lie in loops whose turns could not be read, and count as in one turn"
  return {"basis": basis, "rows": None if found is None else summarize(found)}


def _step(plan, topology: Topology, program, found, memory: dict, mfu) -> dict:
  """Work and time of one step."""
  chip = topology.chip
  flops = training_flops(**plan.model_config) * plan.config.input.batch_size
  share, published = mfu, "--mfu"
  if mfu is None:
    share, published = _published_mfu(chip, plan.model_config["width"])
  peak = peak_flops(chip.device_kind, "bfloat16")
  least = least_seconds(
      topology=topology, mesh=plan.mesh, flops=flops / topology.devices,
      moved_bytes=_moved_bytes(program, memory), collectives=found,
  )
  bound = max(least, key=least.get)
  at_mfu = flops / (topology.devices * peak * share)
  seconds = max(at_mfu, least[bound])
  at_peak = f"{peak * chip.devices / 1e12:.4g} TFLOP/s a chip"
  basis = f"{share:.0%} of the peak of {at_peak} ({published})"
  if least[bound] > at_mfu:
    basis = f"the least time, by {bound}: {share:.0%} of the peak cannot be reached"
  if found is None:
    basis += "; of a step that does not fit, so that what memory and links allow is not known"
  return {
      "flops": fact(
          flops / topology.chips, "FLOP/chip", "FLOP of an image x images of a step / chips"
      ),
      "least": {
          name: fact(value, "s", "roofline; see assumptions") for name, value in least.items()
      },
      "bound": bound,
      "assumptions": list(ASSUMPTIONS),
      "mfu": fact(flops / (seconds * topology.devices * peak), "of the peak", basis),
      "seconds": fact(seconds, "s", basis),
      "images_per_second": fact(
          plan.config.input.batch_size / seconds, "images/s", "images of a step / its time"
      ),
  }


def _published_mfu(chip, width: int) -> tuple[float, str]:
  """Share of the peak, and where it is from, for a kind of chip and a model."""
  wide = ", wide" if chip.platform == "gpu" and width >= _WIDE else ""
  default = _MFU[chip.platform + wide]
  share, measured, source = default if wide else _MFU.get(chip.name, default)
  assumed = "" if measured == chip.name else f", assumed of {chip.name}"
  return share, f"measured on {measured}: {source}{assumed}"


def _moved_bytes(program: Program | None, memory: dict) -> float | None:
  """Bytes that pass through a device's memory at least (`roofline.ASSUMPTIONS`)."""
  if program is None:
    # Gradients and state alone: how much of the activations XLA keeps is not known.
    parts = {name: part["value"] for name, part in memory["parts"].items()}
    return 2 * (sum(parts.values()) - parts["activations"])
  if program.argument_bytes is None:
    return None
  live = program.peak_bytes - program.argument_bytes
  return program.argument_bytes + program.output_bytes + 2 * live


def _run(plan, topology: Topology, step: dict, data) -> dict:
  """Time of the whole recipe, and the CPUs that feed it."""
  seconds = plan.total_steps * step["seconds"]["value"]
  images = step["images_per_second"]["value"]
  cost, measured = _input_cost(plan.config)
  cores = images * cost / 1000
  steps = f"{plan.config.total} of {data.examples} images, {plan.config.input.batch_size} a step"
  basis = "steps x time of a step; evaluations, checkpoints and interruptions are not in it"
  return {
      "steps": fact(plan.total_steps, "steps", steps),
      "hours": fact(seconds / 3600, "h", basis),
      "days": fact(seconds / 86400, "days", basis),
      "chip_hours": fact(seconds / 3600 * topology.chips, "chip-hours", "hours x chips"),
      "cores": fact(math.ceil(cores), "cores", measured),
      "cores_a_host": fact(
          math.ceil(cores / topology.hosts), "cores",
          f"cores / hosts of {topology.host_chips} chips",
      ),
  }


def _input_cost(config) -> tuple[float, str]:
  """CPU milliseconds an image, and what they are of."""
  side = config.model.image_size
  if config.input.dataset not in _SMALL:
    cost, measured = _DECODED
    return cost, measured + ("" if side == 224 else f"; these are {side} px, taken as dear")
  if side <= _SMALL_SIDE:
    return _IN_MEMORY
  cost, measured = _DECODED
  return cost, f"small images enlarged to {side} px, not measured, taken as dear as {measured}"

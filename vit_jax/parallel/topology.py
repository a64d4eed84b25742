"""Accelerators that are not there: "v5e:16x16", "v5p:4x4x8*2", "h100:8*4".

TPUs can be compiled for on any machine that has libtpu, through jax's compile-only devices.  GPUs,
and TPUs without libtpu, are imagined: devices with a name and a place, over which arrays can be
laid out but nothing compiled.
"""

import dataclasses
import difflib
import importlib.util
import itertools
import math
import os
import re

from vit_jax.errors import ConfigError
from vit_jax.parallel.chips import CHIPS, Chip


class NoCompiler(ConfigError):
  """Nothing here compiles for the topology; what can be said without a compiler can still be."""


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips of one kind and how they are joined.

  Attributes:
    chip: their kind.
    shape: of one slice, in chips; of GPUs (GPUs a node,).
    slices: joined by the data-centre network; of GPUs the nodes.
  """

  chip: Chip
  shape: tuple[int, ...]
  slices: int = 1

  def __str__(self) -> str:
    times = f"*{self.slices}" if self.slices > 1 else ""
    return f"{self.chip.name}:{'x'.join(map(str, self.shape))}{times}"

  @property
  def chips(self) -> int:
    """Of all slices together."""
    return math.prod(self.shape) * self.slices

  @property
  def devices(self) -> int:
    """As jax counts them: TPU7x is two a chip."""
    return self.chips * self.chip.devices

  @property
  def host_chips(self) -> int:
    """Chips of a host of one slice; a single host of v5e and v6e has up to 8."""
    chips = math.prod(self.shape)
    alone = 8 if self.chip.dimensions == 2 else self.chip.host_chips
    return chips if chips <= alone else self.chip.host_chips

  @property
  def hosts(self) -> int:
    """Of all slices together."""
    return self.slices * math.ceil(math.prod(self.shape) / self.host_chips)


def parse(text: str) -> Topology:
  """Reads GENERATION:SHAPE[*SLICES] (TPUs) or NAME:GPUS[*NODES].

  Raises:
    ConfigError: another form, an unknown accelerator, a shape that it is not sold in; with the
      nearest that is right.
  """
  match = re.fullmatch(r"([\w-]+):(\d+(?:x\d+)*)(?:\*(\d+))?", text.strip().lower())
  if not match:
    raise ConfigError(
        f"--topology={text}: write GENERATION:SHAPE, as v5e:16x16 or v5p:4x4x8, *N for N slices; "
        "or GPUS:COUNT, as h100:8*4 for four nodes of eight"
    )
  name, sides, slices = match.groups()
  shape = tuple(map(int, sides.split("x")))
  if name not in CHIPS:
    alike = [n for n, c in CHIPS.items() if c.dimensions == len(shape)] or CHIPS
    near = difflib.get_close_matches(name, alike, n=1, cutoff=0)[0]
    raise ConfigError(
        f"--topology={text}: {name!r} is not one of {', '.join(CHIPS)}; did you mean {near!r}?"
    )
  chip = CHIPS[name]
  if shape not in (shapes := chip.shapes()):
    raise ConfigError(f"--topology={text}: {_advice(chip, shape, shapes)}")
  if slices == "0":
    raise ConfigError(f"--topology={text}: there is at least one slice")
  return Topology(chip, shape, int(slices or 1))


def _advice(chip: Chip, shape, shapes) -> str:
  """Which shapes there are, and which is like the one that was asked for."""
  if chip.platform == "gpu":
    rule = f"a node has {', '.join(str(n) for n, in shapes)} GPUs; *N adds nodes"
  elif chip.dimensions == 2:
    rule = f"a slice of {chip.name} is {', '.join(map(_name, shapes))}"
  else:
    small = ", ".join(_name(s) for s in shapes if math.prod(s) < 64)
    rule = (
        f"a slice of {chip.name} has three sides: {small}, or multiples of 4 that do not fall, at "
        f"most {chip.most} chips"
    )

  def distance(candidate):
    # In powers of two: of the number of chips, then of the sides, the longest first.
    sides = itertools.zip_longest(
        sorted(shape, reverse=True), sorted(candidate, reverse=True), fillvalue=1
    )
    pairs = [(math.prod(shape), math.prod(candidate))] * 2 + list(sides)
    return sum(abs(math.log2(max(a, 1) / b)) for a, b in pairs), max(candidate)

  return f"{rule}. The nearest to {_name(shape)} is {chip.name}:{_name(min(shapes, key=distance))}"


def _name(shape) -> str:
  return "x".join(map(str, shape))


def prepare_environment() -> None:
  """Sets what libtpu and jax need to compile for chips that are elsewhere; before jax starts.

  The accelerators of this machine, if any, stay free.
  """
  os.environ.update(
      JAX_PLATFORMS="cpu",
      TPU_SKIP_MDS_QUERY="1",  # ask no metadata server which TPU this is
      ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # take no lock that a second process would wait for
  )
  # It compiles without these just as well, but complains first.
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def compile_devices(topology: Topology) -> list:
  """Returns jax's compile-only devices.

  Raises:
    NoCompiler: GPUs, or libtpu is missing or does not go with jax.
  """
  chip = topology.chip
  if chip.platform != "tpu":
    raise NoCompiler(f"a program for {chip.name} is compiled only where there is one")
  if importlib.util.find_spec("libtpu") is None:
    raise NoCompiler(
        "libtpu, the TPU's compiler, is not installed: pip install 'vit_jax[plan]' (no TPU needed)"
    )
  from jax.experimental import topologies

  options = {"num_slices": topology.slices} if topology.slices > 1 else {}
  if chip.name in ("v4", "v5p"):
    options["chip_config_name"] = "megacore"  # both cores of a chip are one device
  if math.prod(topology.shape) < chip.host_chips:
    bounds = topology.shape + (1,) * (3 - len(topology.shape))
    options["chips_per_host_bounds"] = bounds
  try:
    devices = topologies.get_topology_desc(
        f"{chip.name}:{_name(topology.shape)}", "tpu", **options
    ).devices
  except RuntimeError as error:  # jax's own is one
    reason = str(error).partition("\n")[0]
    raise NoCompiler(f"libtpu does not know {topology} ({reason})") from error
  return list(devices)


@dataclasses.dataclass(frozen=True)
class ImaginedDevice:
  """What a mesh asks of a device; the attributes are `jax.Device`'s."""

  id: int
  process_index: int
  slice_index: int
  coords: tuple[int, int, int]
  core_on_chip: int
  platform: str
  device_kind: str


def imagined_devices(topology: Topology) -> list[ImaginedDevice]:
  """Returns devices that arrays can be laid out over, and nothing can be compiled for."""
  chip = topology.chip
  sides = topology.shape + (1,) * (3 - len(topology.shape))
  # x runs fastest, then y, z, as jax lists a slice's chips.
  places = [(x, y, z) for z in range(sides[2]) for y in range(sides[1]) for x in range(sides[0])]
  everything = itertools.product(range(topology.slices), places, range(chip.devices))
  return [
      ImaginedDevice(
          i, i // (topology.host_chips * chip.devices), slice_index, place, core, chip.platform,
          chip.device_kind,
      )
      for i, (slice_index, place, core) in enumerate(everything)
  ]

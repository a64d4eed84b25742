"""What is known of the accelerators that a run can be planned for.

Sources.  TPUs: cloud.google.com/tpu/docs/{v4, v5e, v5p, v6e, tpu7x} for memory, its bandwidth and
the largest slice; "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus) for a link's
one-way bandwidth, which lies a tenth under the data sheets', and the data-centre network's share of
a chip.  The memory that a program may use is what libtpu 0.0.42.1 names when one does not fit: a
little less than the chip has; the chips of a host are its processes'.  GPUs: NVIDIA's data sheets
of the SXM boards, and of the DGX of each for the network (one adapter a GPU).  Peak arithmetic is
in `observe/peaks.py`.
"""

import dataclasses
import itertools

# Of a GPU's memory jax takes three quarters at its start (XLA_PYTHON_CLIENT_MEM_FRACTION).
_GPU_SHARE = 0.75
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of accelerator.

  Attributes:
    name: as in a topology, "v5e" or "h100".
    platform: "tpu" or "gpu", as jax names it.
    device_kind: `jax.Device.device_kind`.
    devices: jax devices that a chip is.
    usable_bytes: memory of a device that a program may take.
    memory_bandwidth: of a device, bytes/s.
    link: one way, bytes/s: of one of a TPU chip's links; of all of a GPU's NVLinks.
    network: one way, bytes/s: a chip's share of its host's network.
    host_chips: chips of a host, of those that are joined to others.
    most: chips of the largest slice; of a GPU those of a node.
    dimensions: of a TPU slice's shape; 1 for GPUs.
  """

  name: str
  platform: str
  device_kind: str
  devices: int
  usable_bytes: int
  memory_bandwidth: float
  link: float
  network: float
  host_chips: int
  most: int
  dimensions: int

  def shapes(self) -> list[tuple[int, ...]]:
    """Every shape of a slice (GPUs: of a node), the smallest first."""
    if self.platform == "gpu":
      return [(n,) for n in (1, 2, 4, 8) if n <= self.most]
    if self.dimensions == 2:
      return [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    cubes = itertools.combinations_with_replacement(range(4, 97, 4), 3)
    small = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
    large = [shape for shape in cubes if shape[0] * shape[1] * shape[2] <= self.most]
    return small + sorted(large, key=lambda s: (s[0] * s[1] * s[2], s))

  def wraps(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Which dimensions of a TPU slice are closed to a ring."""
    if self.dimensions == 2:
      return tuple(side == 16 for side in shape)
    return (all(side % 4 == 0 for side in shape),) * len(shape)


def _tpu(name, kind, devices, usable, bandwidth, link, network, host_chips, most, dimensions):
  return Chip(
      name, "tpu", kind, devices, int(usable * _GIB), bandwidth / devices, link, network,
      host_chips, most, dimensions,
  )


def _gpu(name, kind, memory, bandwidth, link, network):
  usable = int(_GPU_SHARE * memory)
  return Chip(name, "gpu", kind, 1, usable, bandwidth, link, network, 8, 8, 1)


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", "TPU v4", 1, 30.75, 1.2e12, 4.5e10, 6.25e9, 4, 4096, 3),
        _tpu("v5e", "TPU v5 lite", 1, 15.75, 8.19e11, 4.5e10, 3.125e9, 4, 256, 2),
        _tpu("v5p", "TPU v5", 1, 95.74, 2.765e12, 9e10, 6.25e9, 4, 6144, 3),
        _tpu("v6e", "TPU v6 lite", 1, 31.25, 1.638e12, 9e10, 1.25e10, 4, 256, 2),
        _tpu("tpu7x", "TPU7x", 2, 94.75, 7.38e12, 9e10, 1.25e10, 4, 9216, 3),
        _gpu("a100", "NVIDIA A100-SXM4-80GB", 80e9, 2.039e12, 3e11, 2.5e10),
        _gpu("h100", "NVIDIA H100 80GB HBM3", 80e9, 3.35e12, 4.5e11, 5e10),
        _gpu("h200", "NVIDIA H200", 141e9, 4.8e12, 4.5e11, 5e10),
        _gpu("b200", "NVIDIA B200", 180e9, 8e12, 9e11, 5e10),
    )
}


def chip_count(devices) -> int:
  """How many chips these jax devices are; of kinds that are not known each is one."""
  per_chip = {chip.device_kind: chip.devices for chip in CHIPS.values()}
  return -(-len(devices) // per_chip.get(devices[0].device_kind, 1))

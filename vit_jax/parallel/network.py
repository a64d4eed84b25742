"""How long a collective takes at least, from the bandwidth of the links between its devices.

Ring algorithms, whose traffic is the least possible: of an array of B bytes on n devices a gather,
a scatter and an all-to-all send B (n - 1) / n from each device, an all-reduce twice that.  Over
several slices, each slice first does its part inside.  A group that lies along several sides of a
torus uses the links of all of them at once.
"""

import numpy as np

from vit_jax.parallel.collectives import Collective
from vit_jax.parallel.mesh import slice_index
from vit_jax.parallel.topology import Topology

# The two dies of a TPU7x chip are joined by a link of six times an ordinary one's bandwidth
# (cloud.google.com/tpu/docs/tpu7x).
_BETWEEN_DIES = 6


def seconds(one: Collective, topology: Topology, mesh) -> dict[str, float]:
  """Least time of all executions of a collective, by network.

  Args:
    mesh: over the topology's devices, real or imagined.

  Returns:
    "links" inside a slice (a GPU's node) and "network" between slices, in seconds; no entry where
    nothing is sent.
  """
  inside, found = one.group // one.slices, {}
  if inside > 1:
    bandwidth = _inside(one, topology, mesh)
    found["links"] = one.total_bytes * _share(one.kind, inside) / bandwidth
  if one.slices > 1:
    bandwidth = topology.chip.network / topology.chip.devices
    part = one.total_bytes / inside
    found["network"] = part * _share(one.kind, one.slices) / bandwidth
  return found


def _share(kind: str, devices: int) -> float:
  """Bytes that leave a device, over the array's."""
  if kind == "collective-permute":
    return 1.0
  once = (devices - 1) / devices
  return 2 * once if kind == "all-reduce" else once


def _inside(one: Collective, topology: Topology, mesh) -> float:
  """Bytes/s that can leave a device towards the others of its group in the same slice."""
  chip = topology.chip
  if chip.platform == "gpu":
    return chip.link
  index = tuple(slice(None) if name in one.axes else 0 for name in mesh.axis_names)
  group = np.atleast_1d(mesh.devices[index]).ravel()
  first = group[0]
  coords = np.array([
      device.coords for device in group
      if slice_index(device) == slice_index(first)
  ])
  links = sum(
      chip.link * (2 if wraps else 1)
      for place, wraps in zip(coords.T, chip.wraps(topology.shape)) if len(set(place)) > 1
  )
  # Without any link the group is the two halves of one chip; else these share the chip's links.
  return links / chip.devices or _BETWEEN_DIES * chip.link

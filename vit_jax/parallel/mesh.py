"""The device mesh, and where a batch lies on it.

Axes: `replica` (pure data parallelism), `fsdp` (data parallelism with sharded parameters) and
`tensor` (layers split inside).  A batch is split over replica x fsdp.
"""

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import ConfigError

AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")


def create_mesh(*, replica: int | None, fsdp: int, tensor: int) -> Mesh:
  """Returns a mesh over all devices with axes `AXES`, types Auto.

  Args:
    replica: size of that axis; None for whatever the other two leave.

  Raises:
    ConfigError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices()
  if replica is None:
    replica = max(1, len(devices) // (fsdp * tensor))
  if replica * fsdp * tensor != len(devices):
    raise ConfigError(
        f"config.mesh {replica} x {fsdp} x {tensor} (replica x fsdp x tensor) needs "
        f"{replica * fsdp * tensor} devices, this run has {len(devices)}: leave "
        "config.mesh.replica unset and choose fsdp and tensor whose product divides that"
    )
  shape = (replica, fsdp, tensor)
  return Mesh(
      mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True),
      AXES, axis_types=(AxisType.Auto,) * len(AXES),
  )


def data_shards(mesh: Mesh) -> int:
  """Number of pieces that a batch is split into."""
  return mesh.shape["replica"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Leading axis over replica x fsdp, the rest whole."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def process_slice(mesh: Mesh) -> tuple[int, int]:
  """Returns (slice, slices): the contiguous part of each global batch that this process feeds.

  Derived from where the batch sharding puts this process's devices, not from the process index:
  processes that hold the same rows (split over `tensor` only) feed the same slice.

  Raises:
    ConfigError: this process's rows are not one aligned slice of the batch.
  """
  shards = data_shards(mesh)
  if jax.process_count() == 1:
    return 0, 1
  where = batch_sharding(mesh).addressable_devices_indices_map((shards,))
  rows = sorted({index[0].start or 0 for index in where.values()})
  if rows != list(range(rows[0], rows[-1] + 1)) or shards % len(rows) or rows[0] % len(rows):
    raise ConfigError(
        f"the mesh {dict(mesh.shape)} gives this process the batch rows {rows} of {shards}, which "
        "are not one contiguous slice: let config.mesh.tensor divide the devices of a process"
    )
  return rows[0] // len(rows), shards // len(rows)


def to_devices(batch, mesh: Mesh):
  """Puts this process's slice `[B / slices, ...]` of each array at its place in the global batch."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)

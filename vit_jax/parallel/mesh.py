"""The device mesh, and where a batch lies on it.

Axes: `replica` (pure data parallelism), `fsdp` (data parallelism with sharded parameters) and
`tensor` (layers split inside).  A batch is split over replica x fsdp.
"""

from typing import Callable

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import ConfigError

AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")


def create_mesh(
    *, replica: int | None, fsdp: int | None, tensor: int, devices=None
) -> Mesh:
  """Returns a mesh over devices with axes `AXES`, types Auto.

  Several TPU slices lie along `replica`, for only its one sum of gradients can be left to the data
  center's network; the other axes stay inside a slice.

  Args:
    replica: size of that axis; None for whatever the other two leave.
    fsdp: size of that axis; None for whatever the other two leave, 1 where `replica` is None too.
    devices: all by default.

  Raises:
    ConfigError: the sizes do not multiply to the number of devices, or `replica` cannot hold the
      slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  if fsdp is None:
    fsdp = max(1, len(devices) // (replica * tensor)) if replica else 1
  if replica is None:
    replica = max(1, len(devices) // (fsdp * tensor))
  if replica * fsdp * tensor != len(devices):
    raise ConfigError(
        f"config.mesh {replica} x {fsdp} x {tensor} (replica x fsdp x tensor) needs "
        f"{replica * fsdp * tensor} devices, this run has {len(devices)}: leave "
        "config.mesh.replica unset and choose fsdp and tensor whose product divides that"
    )
  slices = slice_count(devices)
  if replica % slices:
    raise ConfigError(
        f"config.mesh.replica is {replica}, but these are {slices} slices, which only that axis "
        f"may span: let config.mesh.fsdp x config.mesh.tensor divide the {len(devices) // slices} "
        "devices of a slice"
    )
  shape = (replica // slices, fsdp, tensor)
  if slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
        shape, (slices, 1, 1), devices=devices, allow_split_physical_axes=True
    )
  else:
    grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def choose_fsdp(
    devices, *, tensor: int, state_bytes: int, width: int, device_bytes: int | None
) -> int:
  """The smallest size of `fsdp` that leaves half of a device's memory to activations.

  Small, because every gather of parameters costs time; inside a slice, for the same reason.

  Args:
    devices: of the mesh.
    tensor: size of that axis.
    state_bytes: of parameters, their gradients, optimizer and average together.
    width: of the model: what does not divide it would leave the kernels whole.
    device_bytes: memory of a device; None where it is not known: then 1 is chosen.
  """
  most = len(devices) // slice_count(devices) // tensor
  possible = [size for size in range(1, most + 1) if most % size == 0 and width % size == 0]
  if device_bytes is None or not possible:
    return 1
  return next(
      (size for size in possible if state_bytes / (size * tensor) <= device_bytes / 2),
      possible[-1],
  )


def slice_index(device) -> int:
  """Which TPU slice a device lies in; 0 for devices that know none."""
  return getattr(device, "slice_index", 0)


def slice_count(devices) -> int:
  """How many TPU slices these are; other devices count as one."""
  return len(set(map(slice_index, devices)))


def data_shards(mesh: Mesh) -> int:
  """Number of pieces that a batch is split into."""
  return mesh.shape["replica"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Leading axis over replica x fsdp, the rest whole."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def placement(mesh: Mesh) -> Callable:
  """Returns a function that keeps an array `[B, ...]` of a jitted program split by examples.

  Without it the partitioner may split activations as it finds the parameters split, and send those
  instead.  A batch that does not divide over the mesh, as that of an initialisation, is left alone.
  """
  sharding, shards = batch_sharding(mesh), data_shards(mesh)
  return lambda x: x if x.shape[0] % shards else jax.lax.with_sharding_constraint(x, sharding)


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def everywhere(arrays, shardings):
  """Puts host arrays, which every process has whole, onto devices.

  `device_put` would first compare them between processes.

  Args:
    arrays: a tree of NumPy arrays.
    shardings: one for all, or a tree of them like `arrays`.
  """
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, arrays)
  return jax.tree.map(
      lambda a, sharding: jax.make_array_from_callback(a.shape, sharding, lambda index: a[index]),
      arrays, shardings,
  )


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
  """Puts this process's slice `[B / slices, ...]` of each array at its place in the batch."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)

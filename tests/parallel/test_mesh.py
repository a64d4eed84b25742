"""The mesh, and where a batch lies on it."""

import jax
from jax.sharding import AxisType
import numpy as np
import pytest

from vit_jax.errors import ConfigError
from vit_jax.parallel import mesh as mesh_lib


@pytest.mark.parametrize(
    "asked, shape",
    [
        ((None, 1, 1), (8, 1, 1)),
        ((None, 4, 1), (2, 4, 1)),
        ((None, 2, 2), (2, 2, 2)),
        ((None, 1, 8), (1, 1, 8)),
        ((2, 1, 4), (2, 1, 4)),
    ],
)
def test_replicas_are_what_is_left(asked, shape):
  mesh = mesh_lib.create_mesh(**dict(zip(mesh_lib.AXES, asked)))
  assert tuple(mesh.shape[axis] for axis in ("replica", "fsdp", "tensor")) == shape
  assert mesh.axis_names == mesh_lib.AXES and mesh.axis_types == (AxisType.Auto,) * 3
  assert set(mesh.devices.flat) == set(jax.devices())
  assert mesh_lib.data_shards(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
    "asked, needed", [((4, 1, 1), 4), ((None, 3, 1), 6), ((None, 16, 1), 16), ((3, 3, 1), 9)]
)
def test_sizes_that_are_not_the_devices_are_refused(asked, needed):
  with pytest.raises(ConfigError) as error:
    mesh_lib.create_mesh(**dict(zip(mesh_lib.AXES, asked)))
  said = str(error.value)
  assert f"needs {needed} devices, this run has 8" in said
  assert "config.mesh" in said and "choose fsdp and tensor" in said


def test_a_batch_is_split_over_the_data_axes_and_whole_over_tensor(mesh):
  batch = {"image": np.arange(32 * 6).reshape(32, 6), "label": np.arange(32)}
  placed = mesh_lib.to_devices(batch, mesh)
  jax.tree.map(np.testing.assert_array_equal, placed, batch)
  rows = 32 // mesh_lib.data_shards(mesh)
  for replica, fsdp, tensor in np.ndindex(mesh.devices.shape):
    first = (replica * mesh.shape["fsdp"] + fsdp) * rows
    device = mesh.devices[replica, fsdp, tensor]
    for name, array in placed.items():
      shard = next(s for s in array.addressable_shards if s.device == device)
      np.testing.assert_array_equal(shard.data, batch[name][first : first + rows])


def test_one_process_feeds_the_whole_batch(mesh):
  assert mesh_lib.process_slice(mesh) == (0, 1)


def test_replicated_arrays_are_whole_everywhere(mesh):
  array = jax.device_put(np.arange(5), mesh_lib.replicated(mesh))
  assert len(array.addressable_shards) == 8
  for shard in array.addressable_shards:
    np.testing.assert_array_equal(shard.data, np.arange(5))

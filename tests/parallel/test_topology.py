"""Topologies by name, and the devices that stand for them."""

import importlib.util
import math
import os

import jax
import pytest

from vit_jax.errors import ConfigError
from vit_jax.parallel import topology as topology_lib
from vit_jax.parallel.chips import CHIPS, chip_count
from vit_jax.parallel.mesh import create_mesh
from vit_jax.parallel.topology import NoCompiler, compile_devices, imagined_devices, parse


@pytest.mark.parametrize(
    "text, chips, devices, slices, hosts",
    [
        ("v5e:16x16", 256, 256, 1, 64),
        ("v5e:2x2", 4, 4, 1, 1),
        ("v6e:4x8*4", 128, 128, 4, 32),
        ("v4:2x2x1", 4, 4, 1, 1),
        ("v5p:4x4x8", 128, 128, 1, 32),
        ("V5P:8x8x8*2", 1024, 1024, 2, 256),
        ("tpu7x:2x2x2", 8, 16, 1, 2),
        ("h100:8", 8, 8, 1, 1),
        ("h200:8*4", 32, 32, 4, 4),
    ],
)
def test_topologies_by_name(text, chips, devices, slices, hosts):
  topology = parse(text)
  assert (topology.chips, topology.devices, topology.slices) == (chips, devices, slices)
  assert topology.hosts == hosts
  assert str(topology) == text.lower()


@pytest.mark.parametrize(
    "text, said",
    [
        ("v5f:4x4", "'v5f' is not one of"),
        ("v5f:4x4", "did you mean 'v5e'"),
        ("v7x:2x2x1", "did you mean 'tpu7x'"),
        ("v5e", "write GENERATION:SHAPE"),
        ("v5e:4x4*", "write GENERATION:SHAPE"),
        ("v5e:4x4*0", "at least one slice"),
        ("v5e:3x5", "nearest to 3x5 is v5e:4x4"),
        ("v5e:8x4", "nearest to 8x4 is v5e:4x8"),
        ("v6e:16x32", "nearest to 16x32 is v6e:16x16"),
        ("v5e:4x4x4", "1x1, 2x2, 2x4, 4x4"),
        ("v5p:16x16", "nearest to 16x16 is v5p:4x8x8"),
        ("v5p:2x2x3", "multiples of 4"),
        ("v4:16x16x20", "at most 4096 chips"),
        ("h100:16", "a node has 1, 2, 4, 8 GPUs; *N adds nodes"),
    ],
)
def test_errors_name_what_is_right(text, said):
  with pytest.raises(ConfigError) as error:
    parse(text)
  assert said in str(error.value) and f"--topology={text}" in str(error.value)


@pytest.mark.parametrize("name", CHIPS)
def test_every_shape_of_every_chip_is_read(name):
  shapes = CHIPS[name].shapes()
  assert len(shapes) == len(set(shapes))
  for shape in shapes:
    topology = parse(f"{name}:{'x'.join(map(str, shape))}")
    assert topology.shape == shape and topology.chips == math.prod(shape) <= CHIPS[name].most


def test_the_documented_slices_are_there():
  """The tables of cloud.google.com/tpu/docs/v5p and v5e."""
  documented = "2x2x1 2x2x2 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24"
  assert {tuple(map(int, s.split("x"))) for s in documented.split()} <= set(CHIPS["v5p"].shapes())
  documented = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
  assert [tuple(map(int, s.split("x"))) for s in documented.split()] == CHIPS["v5e"].shapes()


@pytest.mark.parametrize(
    "name, shape, wraps",
    [
        ("v5e", (16, 16), (True, True)), ("v5e", (8, 16), (False, True)),
        ("v6e", (8, 8), (False, False)), ("v5p", (4, 4, 8), (True, True, True)),
        ("v5p", (2, 4, 4), (False, False, False)), ("tpu7x", (2, 2, 1), (False, False, False)),
    ],
)
def test_rings(name, shape, wraps):
  assert CHIPS[name].wraps(shape) == wraps


def test_chips_are_counted_not_devices():
  """A tpu7x chip is two devices."""
  for name, chips in (("tpu7x:2x2x2", 8), ("v5p:2x2x2", 8), ("h200:8", 8)):
    assert chip_count(imagined_devices(parse(name))) == chips
  assert chip_count(jax.devices()) == jax.device_count()


@pytest.mark.parametrize("text", ["v5e:4x4", "v5p:2x2x4*2", "tpu7x:2x2x1", "h100:8*2", "h200:1"])
def test_imagined_devices_carry_a_mesh(text):
  topology = parse(text)
  devices = imagined_devices(topology)
  assert len(devices) == topology.devices
  assert [device.id for device in devices] == list(range(topology.devices))
  places = {(d.slice_index, d.coords, d.core_on_chip) for d in devices}
  assert len(places) == topology.devices
  assert {d.slice_index for d in devices} == set(range(topology.slices))
  mesh = create_mesh(replica=None, fsdp=1, tensor=1, devices=devices)
  assert mesh.size == topology.devices
  where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("replica", "fsdp")))
  assert where.shard_shape((topology.devices, 3)) == (1, 3)
  # Replicas of a slice stand together.
  slices = [device.slice_index for device in mesh.devices.flat]
  assert slices == sorted(slices)


@pytest.mark.parametrize("text, hosts, chips", [
    ("v5e:1x1", 1, 1), ("v5e:2x4", 1, 8), ("v6e:2x4*3", 3, 8), ("v5e:4x4", 4, 4),
    ("v5p:2x2x2", 2, 4), ("tpu7x:4x4x4", 16, 4), ("h100:2", 1, 2), ("h100:8*2", 2, 8),
])
def test_hosts(text, hosts, chips):
  assert (parse(text).hosts, parse(text).host_chips) == (hosts, chips)
  assert len({d.process_index for d in imagined_devices(parse(text))}) == hosts


def test_hosts_of_imagined_devices():
  processes = [device.process_index for device in imagined_devices(parse("v5p:2x2x2"))]
  assert processes == [0] * 4 + [1] * 4
  processes = [device.process_index for device in imagined_devices(parse("tpu7x:2x2x1"))]
  assert processes == [0] * 8


def test_gpus_are_not_compiled_for():
  with pytest.raises(NoCompiler, match="h100"):
    compile_devices(parse("h100:8"))


def test_a_missing_libtpu_is_said_with_what_to_install(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
      importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else find(name, *a)
  )
  with pytest.raises(NoCompiler, match=r"pip install 'vit_jax\[plan\]'"):
    compile_devices(parse("v5e:2x2"))


def test_what_libtpu_refuses_is_one_sentence(monkeypatch):
  from jax.experimental import topologies

  def refuse(*_, **__):
    raise RuntimeError("no such chip\nand a trace")

  monkeypatch.setattr(topology_lib.importlib.util, "find_spec", lambda name: True)
  monkeypatch.setattr(topologies, "get_topology_desc", refuse)
  with pytest.raises(NoCompiler) as error:
    compile_devices(parse("v5e:2x2"))
  assert str(error.value) == "libtpu does not know v5e:2x2 (no such chip)"


@pytest.mark.parametrize(
    "text, name, options",
    [
        ("v5e:16x16", "v5e:16x16", {}),
        ("v5e:2x2", "v5e:2x2", {}),
        ("v6e:1x1", "v6e:1x1", {"chips_per_host_bounds": (1, 1, 1)}),
        ("v5p:4x4x8*2", "v5p:4x4x8", {"num_slices": 2, "chip_config_name": "megacore"}),
        ("v4:2x2x1", "v4:2x2x1", {"chip_config_name": "megacore"}),
        ("tpu7x:2x2x1", "tpu7x:2x2x1", {}),
    ],
)
def test_what_libtpu_is_asked_for(text, name, options, monkeypatch):
  from jax.experimental import topologies

  asked = []

  def describe(*arguments, **given):
    asked.append((arguments, given))
    return topologies.TopologyDescription(["a device"])

  monkeypatch.setattr(topology_lib.importlib.util, "find_spec", lambda name: True)
  monkeypatch.setattr(topologies, "get_topology_desc", describe)
  assert compile_devices(parse(text)) == ["a device"]
  assert asked == [((name, "tpu"), options)]


def test_the_environment_keeps_the_accelerators_of_this_machine_free(monkeypatch):
  for name in (
      "JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_ACCELERATOR_TYPE",
      "TPU_WORKER_HOSTNAMES",
  ):
    monkeypatch.setenv(name, "tpu")  # undone after the test
  topology_lib.prepare_environment()
  assert os.environ["JAX_PLATFORMS"] == "cpu"
  assert os.environ["TPU_SKIP_MDS_QUERY"] == os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"

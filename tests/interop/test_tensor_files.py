"""Files of tensors: every kind read, ours read by the library, and damage told from damage."""

import argparse
import hashlib
import json
import sys

from flax import serialization
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit_jax.errors import CheckpointError
from vit_jax.interop.safetensors_writer import write_shards, write_tensors
from vit_jax.interop.tensor_files import open_tensors


@pytest.fixture
def tensors():
  rng = np.random.default_rng(0)
  return {
      "first": rng.standard_normal((3, 5), np.float32),
      "second.weight": rng.standard_normal((7,), np.float32),
      "third": rng.standard_normal((2, 1, 4), np.float32),
  }


def shapes_of(tensors):
  return {name: values.shape for name, values in tensors.items()}


def assert_read(path, tensors):
  with open_tensors(path) as source:
    assert source.shapes == shapes_of(tensors)
    for name, values in tensors.items():
      found = source.read(name)
      assert found.dtype == np.float32
      np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_ours_is_read_by_us_and_by_the_library(tmp_path, tensors, dtype):
  path = tmp_path / "model.safetensors"
  digest = write_tensors(path, shapes_of(tensors), tensors.__getitem__, dtype=dtype)
  assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
  stored = np.dtype(getattr(ml_dtypes, dtype, dtype))
  rounded = {name: values.astype(stored) for name, values in tensors.items()}
  found = load_file(path)
  assert list(found) == sorted(rounded)
  for name, values in rounded.items():
    assert found[name].dtype == stored
    np.testing.assert_array_equal(found[name], values)
  assert_read(path, rounded)
  assert_read(tmp_path, rounded)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_librarys_is_read(tmp_path, tensors, dtype):
  tensors = {name: values.astype(dtype) for name, values in tensors.items()}
  save_file(tensors, tmp_path / "any.safetensors", metadata={"format": "pt"})
  assert_read(tmp_path / "any.safetensors", tensors)


def test_views_are_written_in_their_order(tmp_path, tensors):
  path = tmp_path / "model.safetensors"
  write_tensors(path, {"a": (5, 3)}, lambda _: tensors["first"].T, dtype="float32")
  np.testing.assert_array_equal(load_file(path)["a"], tensors["first"].T)


def test_huge_values_are_finite(tmp_path):
  values = np.full(3, 3e38, np.float32)  # their squares are not
  write_tensors(tmp_path / "a.safetensors", {"a": (3,)}, lambda _: values, dtype="float32")
  assert_read(tmp_path / "a.safetensors", {"a": values})


@pytest.mark.parametrize("value, dtype", [
    (np.nan, "float32"), (np.inf, "float32"), (-np.inf, "bfloat16"), (np.nan, "bfloat16"),
    (np.nan, "float16"), (1e5, "float16"), (-1e5, "float16"), (3.4e38, "bfloat16"),
])
def test_values_that_are_not_finite_are_refused(tmp_path, tensors, value, dtype):
  tensors["third"][1, 0, 2] = value
  with pytest.raises(CheckpointError, match="third has values that are infinite or NaN"):
    write_tensors(
        tmp_path / "a.safetensors", shapes_of(tensors), tensors.__getitem__, dtype=dtype
    )


def test_shards_as_transformers_names_them(tmp_path, tensors):
  # 60, 28 and 32 bytes.
  hashes = write_shards(
      tmp_path, shapes_of(tensors), tensors.__getitem__, dtype="float32", max_shard_bytes=60
  )
  names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
  assert set(hashes) == {*names, "model.safetensors.index.json"}
  assert {path.name for path in tmp_path.iterdir()} == set(hashes)
  for name, digest in hashes.items():
    assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
  assert json.loads((tmp_path / "model.safetensors.index.json").read_text()) == {
      "metadata": {"total_parameters": 30, "total_size": 120},
      "weight_map": {"first": names[0], "second.weight": names[1], "third": names[1]},
  }
  assert set(load_file(tmp_path / names[1])) == {"second.weight", "third"}
  assert_read(tmp_path, tensors)


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path, tensors):
  write_shards(
      tmp_path, shapes_of(tensors), tensors.__getitem__, dtype="float32", max_shard_bytes=1
  )
  assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
  assert_read(tmp_path, tensors)


def test_a_missing_shard_is_named(tmp_path, tensors):
  write_shards(
      tmp_path, shapes_of(tensors), tensors.__getitem__, dtype="float32", max_shard_bytes=1
  )
  (tmp_path / "model-00002-of-00003.safetensors").unlink()
  with pytest.raises(CheckpointError, match="model-00002-of-00003.safetensors"):
    open_tensors(tmp_path)


def test_two_shards_cannot_hold_one_tensor(tmp_path, tensors):
  save_file(tensors, tmp_path / "a.safetensors")
  save_file(tensors, tmp_path / "b.safetensors")
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"first": "a.safetensors", "x": "b.safetensors"}}))
  with pytest.raises(CheckpointError, match="holds too: first, second.weight, third"):
    open_tensors(tmp_path)


@pytest.mark.parametrize("weights", [{"a": "../model.safetensors"}, {"a": "other.txt"}, {"a": 1}])
def test_an_index_cannot_name_anything(tmp_path, weights):
  (tmp_path / "other.txt").write_text("x")
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": weights}))
  with pytest.raises(CheckpointError, match="not in its directory|has no \"weight_map\""):
    open_tensors(tmp_path)


def header(**entries):
  text = json.dumps(entries).encode()
  return len(text).to_bytes(8, "little") + text


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize("content, message", [
    (b"", "is empty"),
    (b"1234", "truncated or not a safetensors file"),
    (b"not weights at all, but long enough", "truncated or not a safetensors file"),
    (b"\x05" + bytes(7) + b"[1,2]", "not a JSON object"),
    (b"\x05" + bytes(7) + b"{1,2}", "not JSON"),
    (header(a=ENTRY) + bytes(7), "has 76 bytes, its header speaks of 77"),
    (header(a=ENTRY) + bytes(9), "has 78 bytes"),
    (header(a=ENTRY, b=ENTRY) + bytes(16), "overlaps"),
    (header(a=ENTRY | {"data_offsets": [4, 12]}) + bytes(12), "leaves a gap"),
    (header(a=ENTRY | {"shape": [3]}) + bytes(8), "is not its size"),
    (header(a=ENTRY | {"shape": [-1, -2]}) + bytes(8), "is not its size"),
    (header(a=ENTRY | {"dtype": "F99"}) + bytes(8), "unknown form"),
    (header(a=ENTRY | {"data_offsets": 3}) + bytes(8), "unknown form"),
    (header(a=3) + bytes(8), "unknown form"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
    (b"\n<!DOCTYPE html><title>404</title>", "HTML page"),
    (b"<html>no</html>", "HTML page"),
    (b"\x89HDF\r\n\x1a\n" + bytes(50), "TensorFlow or Keras"),
    (b"\x80\x02}q\x00." + bytes(50), "PyTorch file"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_damaged_safetensors(tmp_path, content, message):
  path = tmp_path / "model.safetensors"
  path.write_bytes(content)
  with pytest.raises(CheckpointError, match=message) as error:
    open_tensors(path)
  assert str(path) in str(error.value)


def test_other_kinds_under_a_wrong_name(tmp_path, tensors):
  path = tmp_path / "model.safetensors"
  with open(path, "wb") as file:
    np.savez(file, **tensors)
  with pytest.raises(CheckpointError, match=r"is a NumPy archive \(.npz\), although its name says"):
    open_tensors(path)
  save_file(tensors, path)
  path.rename(tmp_path / "flax_model.msgpack")
  with pytest.raises(CheckpointError, match="safetensors file, although its name says msgpack"):
    open_tensors(tmp_path)


def test_integer_tensors_are_refused_where_they_are_wanted(tmp_path, tensors):
  save_file(tensors | {"ids": np.zeros(5, np.int8)}, tmp_path / "model.safetensors")
  with open_tensors(tmp_path) as source:
    source.read("first")
    with pytest.raises(CheckpointError, match="ids is of dtype I8"):
      source.read("ids")


def test_places_without_weights(tmp_path):
  with pytest.raises(CheckpointError, match="There is no file"):
    open_tensors(tmp_path / "nothing.safetensors")
  with pytest.raises(CheckpointError, match="has none of model.safetensors, "):
    open_tensors(tmp_path)
  (tmp_path / "tf_model.h5").write_bytes(b"")
  with pytest.raises(CheckpointError, match="tf_model.h5 alone"):
    open_tensors(tmp_path)
  (tmp_path / "weights.txt").write_text("")
  with pytest.raises(CheckpointError, match="does not end in any of .safetensors, .bin"):
    open_tensors(tmp_path / "weights.txt")


def flax_tree():
  """A tree as FlaxViTModel has it, and the same tensors under PyTorch's names and shapes."""
  rng = np.random.default_rng(0)
  dense, convolution = rng.standard_normal((3, 5)), rng.standard_normal((2, 2, 3, 4))
  scale = rng.standard_normal(5)
  tree = {"vit": {
      "embeddings": {"projection": {"kernel": convolution}},
      "layer": {"0": {"dense": {"kernel": dense, "bias": scale}, "norm": {"scale": scale}}},
  }}
  flat = {
      "vit.embeddings.projection.weight": convolution.transpose(3, 2, 0, 1),
      "vit.layer.0.dense.weight": dense.T,
      "vit.layer.0.dense.bias": scale,
      "vit.layer.0.norm.weight": scale,
  }
  return tree, flat


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_msgpack_of_flax(tmp_path, dtype):
  tree, flat = flax_tree()
  import jax

  data = serialization.msgpack_serialize(jax.tree.map(lambda a: a.astype(dtype), tree))
  (tmp_path / "flax_model.msgpack").write_bytes(data)
  assert_read(tmp_path, {name: values.astype(dtype) for name, values in flat.items()})


@pytest.mark.parametrize("content", [b"\x81", b"\x93\x01\x02\x03", b"\x81\xa1", b""])
def test_damaged_msgpack(tmp_path, content):
  (tmp_path / "flax_model.msgpack").write_bytes(content)
  with pytest.raises(CheckpointError, match="flax_model.msgpack is (empty|truncated or not)"):
    open_tensors(tmp_path)


def test_integers_in_msgpack_are_refused_where_they_are_wanted(tmp_path):
  data = serialization.msgpack_serialize({"a": np.zeros(3, np.int32)})
  (tmp_path / "flax_model.msgpack").write_bytes(data)
  with open_tensors(tmp_path) as source:
    with pytest.raises(CheckpointError, match="a is of dtype int32"):
      source.read("a")


@pytest.mark.torch
class TestTorch:

  @pytest.fixture
  def torch(self):
    return pytest.importorskip("torch")

  @pytest.fixture
  def state(self, torch, tensors):
    return {name: torch.from_numpy(values) for name, values in tensors.items()}

  @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
  @pytest.mark.parametrize("zipped", [True, False])
  def test_bin(self, torch, state, tmp_path, dtype, zipped):
    state = {name: values.to(getattr(torch, dtype)) for name, values in state.items()}
    torch.save(
        state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped
    )
    assert_read(tmp_path, {name: values.float().numpy() for name, values in state.items()})

  @pytest.mark.parametrize("wrappers", [["model"], ["state_dict"], ["teacher"], ["model", "model"]])
  def test_training_checkpoints(self, torch, state, tensors, tmp_path, wrappers):
    content = state
    for name in wrappers:
      content = {name: content, "epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {}}
    torch.save(content, tmp_path / "checkpoint.pth")
    assert_read(tmp_path / "checkpoint.pth", tensors)

  def test_shards(self, torch, state, tensors, tmp_path):
    for name, values in state.items():
      torch.save({name: values}, tmp_path / f"{name}.bin")
    index = {"weight_map": {name: f"{name}.bin" for name in state}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_read(tmp_path, tensors)

  @pytest.mark.parametrize("zipped", [True, False])
  def test_code_is_not_executed(self, torch, state, tmp_path, zipped):
    ran = tmp_path / "ran"

    class Code:

      def __reduce__(self):
        return (open, (str(ran), "w"))

    path = tmp_path / "pytorch_model.bin"
    torch.save(state | {"x": Code()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="Python objects besides tensors") as error:
      open_tensors(path)
    assert str(path) in str(error.value)
    assert not ran.exists()

  @pytest.mark.parametrize("content, message", [
      (b"", "is empty"),
      (b"nothing of the kind", "truncated or not a PyTorch file"),
      (b"PK\x03\x04" + bytes(100), "truncated or not a PyTorch file"),
      (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
      (b"<!DOCTYPE html>", "HTML page"),
      (header(a=ENTRY) + bytes(8), "is a safetensors file, although its name says PyTorch"),
  ], ids=lambda value: value if isinstance(value, str) else "")
  def test_damaged_files(self, torch, tmp_path, content, message):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
      open_tensors(tmp_path)

  def test_a_truncated_file(self, torch, state, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="truncated or not a PyTorch file"):
      open_tensors(path)

  def test_files_without_tensors(self, torch, tmp_path):
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
      open_tensors(tmp_path / "a.pth")

  def test_integers_are_refused_where_they_are_wanted(self, torch, tmp_path):
    torch.save({"ids": torch.zeros(3, dtype=torch.int64)}, tmp_path / "a.pt")
    with open_tensors(tmp_path / "a.pt") as source:
      with pytest.raises(CheckpointError, match="ids is of dtype int64"):
        source.read("ids")


def test_without_torch_the_error_says_what_to_install(tmp_path, monkeypatch):
  (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(CheckpointError, match=r"pip install 'vit_jax\[torch\]'"):
    open_tensors(tmp_path)

"""CIFAR and MNIST from archives as their authors publish them, sound and unsound."""

import gzip
import os
import pickle
import struct

import numpy as np
import pytest

from archives import tar_bytes
from vit_jax.data.open import open_dataset
from vit_jax.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = {name: RNG.integers(0, 256, (4, 3, 32, 32), np.uint8) for name in range(6)}


def as_python_2(value):
  """As the original pickles, whose texts and keys are byte strings, and NumPy's names old."""
  data = pickle.dumps(value, protocol=2)
  return data.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


def cifar10_python():
  files = {"batches.meta": as_python_2({b"label_names": [b"cat%d" % i for i in range(10)]})}
  for i in range(6):
    name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
    files[name] = as_python_2(
        {b"data": PIXELS[i].reshape(4, -1), b"labels": [i, 1, 2, 9], b"batch_label": b"x"}
    )
  return {f"cifar-10-batches-py/{name}": data for name, data in files.items()}


def cifar10_binary():
  files = {"batches.meta.txt": "".join(f"cat{i}\n" for i in range(10)).encode() + b"\n"}
  for i in range(6):
    name = f"data_batch_{i + 1}.bin" if i < 5 else "test_batch.bin"
    labels = [i, 1, 2, 9]
    files[name] = b"".join(bytes([x]) + p.tobytes() for x, p in zip(labels, PIXELS[i]))
  return {f"cifar-10-batches-bin/{name}": data for name, data in files.items()}


def cifar(path, name="cifar10"):
  return open_dataset(name, path=str(path), held_out=0.1)


def test_both_versions_of_cifar10_packed_and_not(tmp_path):
  found = []
  for archive, files in (
      ("cifar-10-python.tar.gz", cifar10_python()), ("cifar-10-binary.tar.gz", cifar10_binary())
  ):
    packed, unpacked = tmp_path / archive[:11] / "p", tmp_path / archive[:11] / "u"
    packed.mkdir(parents=True)
    (packed / archive).write_bytes(gzip.compress(tar_bytes(files)))
    for name, data in files.items():
      (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
      (unpacked / name).write_bytes(data)
    for path in (packed, packed / archive, unpacked, unpacked / next(iter(files)).split("/")[0]):
      found.append(cifar(path))
  dataset = found[0]
  assert {x.fingerprint for x in found} == {dataset.fingerprint}
  train, test = dataset.splits["train"], dataset.splits["test"]
  assert train.images.shape == (20, 32, 32, 3) and len(test) == 4
  np.testing.assert_array_equal(train.images[5], PIXELS[1][1].transpose(1, 2, 0))
  assert train.labels[::4].tolist() == [0, 1, 2, 3, 4] and test.labels.tolist() == [5, 1, 2, 9]
  assert dataset.classes[3] == "cat3" and train.labels.dtype == np.int32


def test_cifar100_has_its_fine_labels(tmp_path):
  names = {b"fine_label_names": [b"f%02d" % i for i in range(100)], b"coarse_label_names": []}
  files = {"meta": as_python_2(names)}
  for i, split in enumerate(("train", "test")):
    files[split] = as_python_2({
        b"data": PIXELS[i].reshape(4, -1), b"fine_labels": [99, 0, 50, 7], b"coarse_labels": [0] * 4
    })
  directory = tmp_path / "cifar-100-python"
  directory.mkdir()
  for name, data in files.items():
    (directory / name).write_bytes(data)
  dataset = cifar(tmp_path, "cifar100")
  assert dataset.splits["test"].labels.tolist() == [99, 0, 50, 7] and len(dataset.classes) == 100
  binary = tmp_path / "b"
  binary.mkdir()
  rows = lambda i: b"".join(
      bytes([19, x]) + p.tobytes() for x, p in zip([99, 0, 50, 7], PIXELS[i])
  )
  text = "".join(f"f{i:02d}\n" for i in range(100)).encode()
  (binary / "cifar-100-binary.tar.gz").write_bytes(gzip.compress(tar_bytes({
      "cifar-100-binary/train.bin": rows(0), "cifar-100-binary/test.bin": rows(1),
      "cifar-100-binary/fine_label_names.txt": text,
  })))
  assert cifar(binary, "cifar100").fingerprint == dataset.fingerprint


class Attack:
  def __reduce__(self):
    return os.mkdir, (os.environ["ATTACKED"],)


@pytest.mark.parametrize("evil", [Attack(), np.array([Attack()], object)], ids=["plain", "array"])
def test_pickles_run_nothing(tmp_path, monkeypatch, evil):
  monkeypatch.setenv("ATTACKED", str(tmp_path / "attacked"))
  files = cifar10_python()
  files["cifar-10-batches-py/test_batch"] = pickle.dumps({b"data": evil, b"labels": []})
  for name, data in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(data)
  with pytest.raises(DataError, match=r"test_batch cannot be read as arrays .*posix\.mkdir"):
    cifar(tmp_path)
  assert not (tmp_path / "attacked").exists()


def test_unsound_cifar(tmp_path):
  with pytest.raises(DataError, match="holds no cifar10: download cifar-10-python.tar.gz"):
    cifar(tmp_path)
  archive = tmp_path / "cifar-10-python.tar.gz"
  data = gzip.compress(tar_bytes(cifar10_python()))
  archive.write_bytes(data[: len(data) // 2])
  with pytest.raises(DataError, match="cifar-10-python.tar.gz is truncated or damaged"):
    cifar(tmp_path)
  files = cifar10_python()
  del files["cifar-10-batches-py/data_batch_3"]
  archive.write_bytes(gzip.compress(tar_bytes(files)))
  with pytest.raises(DataError, match="has no data_batch_3 in it"):
    cifar(tmp_path)
  for spoilt, text in (
      (as_python_2({b"data": PIXELS[0].reshape(4, -1)[:, 1:], b"labels": [1] * 4}), "pixels"),
      (as_python_2({b"data": PIXELS[0].reshape(4, -1)}), "has no labels"),
      (as_python_2({b"data": PIXELS[0].reshape(4, -1), b"labels": [10] * 4}), "outside the 10"),
      (cifar10_python()["cifar-10-batches-py/test_batch"][:500], "cannot be read as arrays"),
  ):
    files = cifar10_python() | {"cifar-10-batches-py/test_batch": spoilt}
    archive.write_bytes(gzip.compress(tar_bytes(files)))
    with pytest.raises(DataError, match=text):
      cifar(tmp_path)
  archive.unlink()
  files = cifar10_binary()
  files["cifar-10-batches-bin/test_batch.bin"] += b"x"
  (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))
  with pytest.raises(DataError, match="no multiple of 3073; it is truncated"):
    cifar(tmp_path)


def idx(array):
  return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + (
      array.tobytes()
  )


def mnist(root, zipped=True):
  root.mkdir(exist_ok=True)
  arrays = {}
  for prefix, count in (("train", 6), ("t10k", 3)):
    arrays[f"{prefix}-images-idx3-ubyte"] = RNG.integers(0, 256, (count, 28, 28), np.uint8)
    arrays[f"{prefix}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) + 4 - count // 6
  for name, array in arrays.items():
    data = idx(array)
    (root / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
  return arrays


@pytest.mark.parametrize("name, label", [("mnist", "5"), ("fashion_mnist", "Sandal")])
@pytest.mark.parametrize("zipped", [True, False])
def test_mnist(tmp_path, name, label, zipped):
  arrays = mnist(tmp_path, zipped)
  dataset = open_dataset(name, path=str(tmp_path), held_out=0.1)
  train = dataset.splits["train"]
  assert train.images.shape == (6, 28, 28, 3) and len(dataset.splits["test"]) == 3
  np.testing.assert_array_equal(train.images[..., 1], arrays["train-images-idx3-ubyte"])
  assert dataset.classes[train.labels[2]] == label


@pytest.mark.parametrize("spoil, text", [
    (lambda d: d[:-1], "truncated or damaged .it should hold 4704 bytes"),
    (lambda d: d + b"x", "it should hold 4704 bytes"), (lambda d: b"\1" + d[1:], "idx files of 3"),
    (lambda d: d[:9], "idx files of 3"), (lambda d: b"", "idx files of 3"),
    (lambda d: d[:4] + b"\xff" * 12 + d[16:], "claims .* bytes"),
])
def test_unsound_mnist(tmp_path, spoil, text):
  mnist(tmp_path)
  file = tmp_path / "train-images-idx3-ubyte.gz"
  file.write_bytes(gzip.compress(spoil(gzip.decompress(file.read_bytes()))))
  with pytest.raises(DataError, match=text) as error:
    open_dataset("mnist", path=str(tmp_path), held_out=0.1)
  assert str(file) in str(error.value)


def test_mnist_with_files_of_two_sets_or_cut(tmp_path):
  mnist(tmp_path)
  file = tmp_path / "t10k-labels-idx1-ubyte.gz"
  data = file.read_bytes()
  file.write_bytes(data[:-9])
  with pytest.raises(DataError, match="truncated or damaged"):
    open_dataset("mnist", path=str(tmp_path), held_out=0.1)
  file.write_bytes(gzip.compress(idx(np.zeros(4, np.uint8))))
  with pytest.raises(DataError, match="4 labels for 3 images"):
    open_dataset("mnist", path=str(tmp_path), held_out=0.1)
  file.unlink()
  with pytest.raises(DataError, match="t10k-labels-idx1-ubyte.gz is missing"):
    open_dataset("mnist", path=str(tmp_path), held_out=0.1)

"""TFDS data sets without TensorFlow: prepared here, small, then read by ours."""

import io
import json
from pathlib import Path
import subprocess
import sys

from PIL import Image
import pytest

from archives import contents, jpeg
from vit_jax.data.array_record import open_array_record
from vit_jax.data.open import open_dataset
from vit_jax.data.prepare.run import prepare
from vit_jax.data.source import ArraySource
from vit_jax.errors import ConfigError, DataError

tfds = pytest.importorskip("tensorflow_datasets")


class Tiny(tfds.core.GeneratorBasedBuilder):
  """Forty images of three classes, and ten for validation."""

  VERSION = tfds.core.Version("1.2.0")
  SIZES = {"train": 40, "validation": 10}

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": self.label(), "file_name": tfds.features.Text(),
    }))

  def label(self):
    return tfds.features.ClassLabel(names=["n1", "n2", "n3"])

  def label_of(self, i):
    return i % 3

  def _split_generators(self, manager):
    return {split: self._generate_examples(split, n) for split, n in self.SIZES.items()}

  def _generate_examples(self, split, size):
    for i in range(size):
      image = io.BytesIO(jpeg(i + 100 * len(split)))
      yield i, {"image": image, "label": self.label_of(i), "file_name": f"{split}{i}.jpg"}


class TinyAlone(Tiny):
  """A train split alone."""

  SIZES = {"train": 40}


class TinyReal(Tiny):
  """Several labels, or none, as ImageNet-ReaL has them."""

  SIZES = {"validation": 10}

  def label(self):
    return tfds.features.Sequence(tfds.features.ClassLabel(names=["n1", "n2", "n3"]))

  def label_of(self, i):
    return [2, 0][: i % 3]


class TinySmall(Tiny):
  """Images of one small size, as CIFAR-10's."""

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
        "label": self.label(),
    }))

  def _generate_examples(self, split, size):
    for i in range(size):
      buffer = io.BytesIO()
      Image.new("RGB", (8, 8), (i, 2, len(split))).save(buffer, "PNG")
      buffer.seek(0)
      yield i, {"image": buffer, "label": self.label_of(i)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  root = tmp_path_factory.mktemp("tfds")
  for builder in (Tiny, TinyAlone, TinyReal, TinySmall):
    made = builder(data_dir=root, file_format="array_record")
    made.download_and_prepare(file_format="array_record")
  return root


def opened(name, path, **more):
  return open_dataset(f"tfds:{name}", path=str(path), **{"held_out": 0.1} | more)


def test_images_are_the_files_own_bytes(data_dir):
  dataset = opened("tiny", data_dir)
  assert dataset.classes == ("n1", "n2", "n3") and dataset.notes == () and dataset.shuffled
  assert contents(dataset.splits["train"]) == {
      f"train{i}.jpg": (jpeg(i + 500), (f"n{i % 3 + 1}",)) for i in range(40)
  }
  assert len(dataset.splits["validation"]) == 10
  assert opened("tiny:1.2.0", data_dir).fingerprint == dataset.fingerprint


def test_parts_are_those_of_tfds(data_dir):
  dataset = opened("tiny", data_dir, split="train[:93%]", evaluation="train[93%:]")
  train, rest = dataset.splits["train"], dataset.splits["train[93%:]"]
  builder = tfds.builder_from_directory(data_dir / "tiny" / "1.2.0")
  for part, spec in ((train, "train[:93%]"), (rest, "train[93%:]")):
    theirs = builder.as_data_source(spec, decoders={"image": tfds.decode.SkipDecoding()})
    assert [part.record(i)["image"] for i in range(len(part))] == [x["image"] for x in theirs]
  assert (len(train), len(rest)) == (37, 3)


def test_the_end_of_train_is_held_out(data_dir):
  dataset = opened("tiny_alone", data_dir, held_out=0.2)
  assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 32, "validation": 8}
  assert dataset.notes == ("tfds:tiny_alone: the last 20 % of train held out",)


def test_several_labels_and_none(data_dir):
  source = opened("tiny_real", data_dir).splits["validation"]
  records = {r["name"]: r for r in map(source.record, range(10))}
  assert records["validation0.jpg"]["labels"] == () and records["validation0.jpg"]["label"] == -1
  assert records["validation5.jpg"]["labels"] == (0, 2)
  assert records["validation4.jpg"]["labels"] == (2,)


def test_wrong_names_and_versions(data_dir, tmp_path):
  for name, error, text in (
      ("tini", DataError, "did you mean tiny"), ("tiny:1.0.0", DataError, "no version 1.0.0"),
      ("tiny/x", DataError, "does not exist"), ("a b", ConfigError, "write tfds:NAME"),
      ("../tiny", ConfigError, "write tfds:NAME"), ("", ConfigError, "write tfds:NAME"),
  ):
    with pytest.raises(error, match=text):
      opened(name, data_dir)
  with pytest.raises(DataError, match="--file_format=array_record"):
    opened("tiny", tmp_path)


def test_missing_shards_and_other_formats(data_dir, tmp_path):
  import shutil

  shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
  directory = tmp_path / "tiny" / "1.2.0"
  (shard,) = directory.glob("tiny-validation*")
  shard.write_bytes(shard.read_bytes()[:-50])
  with pytest.raises(DataError, match=f"{shard.name} holds 0 records and should hold 10"):
    opened("tiny", tmp_path)
  shard.unlink()
  with pytest.raises(DataError, match=f"{shard.name} is missing"):
    opened("tiny", tmp_path)
  info = json.loads((directory / "dataset_info.json").read_text())
  (directory / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
  with pytest.raises(DataError, match="is stored as tfrecord"):
    opened("tiny", tmp_path)
  (directory / "dataset_info.json").unlink()
  with pytest.raises(DataError, match="is no prepared TFDS data set"):
    opened("tiny", tmp_path)


def test_prepared_into_our_shards(data_dir, tmp_path):
  prepare(source="tfds", input=data_dir / "tiny" / "1.2.0", output=tmp_path / "out",
          shard_bytes=5000, say=lambda line: None)
  ours = open_array_record(tmp_path / "out", held_out=0)
  theirs = opened("tiny", data_dir)
  for split in ("train", "validation"):
    a, b = ours.splits[split], theirs.splits[split]
    assert [a.record(i)["image"] for i in range(len(a))] == [
        b.record(i)["image"] for i in range(len(b))
    ]
    assert [a.record(i)["label"] for i in range(len(a))] == [
        b.record(i)["label"] for i in range(len(b))
    ]
  assert len(list((tmp_path / "out").glob("train-*.arrayrecord"))) > 1


def test_tensorflow_is_never_loaded(data_dir):
  program = (
      "import sys; from vit_jax.data.open import open_dataset\n"
      f"d = open_dataset('tfds:tiny', path={str(data_dir)!r}, held_out=0)\n"
      "d.splits['train'].record(3)\n"
      "assert not {'tensorflow', 'jax', 'torch'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_small_sets_are_decoded_once(data_dir):
  dataset = opened("tiny_small", data_dir)
  train = dataset.splits["train"]
  assert isinstance(train, ArraySource) and train.images.shape == (40, 8, 8, 3)
  for i in range(40):
    record = train.record(i)
    color = tuple(record["image"][0, 0].tolist())
    assert color[0] % 3 == record["label"] and color[1:] == (2, 5)
  assert len(set(train.images[:, 0, 0, 0].tolist())) == 40
  part = opened("tiny_small", data_dir, split="train[:50%]").splits["train"]
  assert isinstance(part, ArraySource) and len(part) == 20

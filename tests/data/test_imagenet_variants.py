"""ImageNet-ReaL's labels and ImageNet-V2's directories."""

import json

import pytest

from archives import jpeg
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.folder import FolderSource
from vit_jax.data.imagenet_variants import with_real_labels
from vit_jax.data.open import open_dataset
from vit_jax.data.pipeline import eval_batches
from vit_jax.data.preprocess import Preprocessing
from vit_jax.data.split import subset
from vit_jax.errors import DataError


def validation(root, names):
  for i, name in enumerate(names):
    (root / name).write_bytes(jpeg(i))
  classes, labels = ("a", "b", "c"), (0,) * len(names)
  return FolderSource("v", "validation", classes, str(root), tuple(names), labels)


def test_real_labels_follow_the_names(tmp_path):
  file = tmp_path / "real.json"
  file.write_text(json.dumps([[2, 0], [], [1]]))
  names = ["ILSVRC2012_val_00000003.JPEG", "ILSVRC2012_val_00000001.JPEG",
           "ILSVRC2012_val_00000002.JPEG"]
  source = with_real_labels(validation(tmp_path, names), file)
  assert [source.record(i)["labels"] for i in range(3)] == [(1,), (0, 2), ()]
  assert [source.record(i)["label"] for i in range(3)] == [1, 0, -1]
  assert source.record(0)["image"] == jpeg(0) and len(source) == 3
  for wrong in ("photo.jpg", "ILSVRC2012_val_00000004.JPEG"):
    with pytest.raises(DataError, match=f"{wrong} of v is not named ILSVRC2012_val_N"):
      with_real_labels(validation(tmp_path, [wrong]), file).record(0)


def test_other_images_are_refused_before_they_are_asked_for(tmp_path):
  (tmp_path / "real.json").write_text(json.dumps([[0]] * 40))
  names = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(39)] + ["n01440764_1.JPEG"]
  source = validation(tmp_path, names)
  said = "n01440764_1.JPEG of v .*--config.evaluate.split=validation"
  for other in (source, subset(source, range(40), split="train[99%:]")):
    with pytest.raises(DataError, match=said):
      with_real_labels(other, tmp_path / "real.json")
  good = with_real_labels(subset(source, range(39), split="part"), tmp_path / "real.json")
  assert good.record(38)["labels"] == (0,)
  # A folder knows all of its names, and is not read for them.
  odd = validation(tmp_path, ["n1.JPEG" if i == 7 else name for i, name in enumerate(names[:39])])
  (tmp_path / "n1.JPEG").unlink()
  with pytest.raises(DataError, match="n1.JPEG of v is not named"):
    with_real_labels(odd, tmp_path / "real.json")


@pytest.mark.parametrize("text", ["[[3]]", "[0]", "{}", "[[-1]]", "[", '[["a"]]', "[[true]]"])
def test_other_files_are_no_real_labels(tmp_path, text):
  (tmp_path / "real.json").write_text(text)
  with pytest.raises(DataError, match="real.json"):
    with_real_labels(validation(tmp_path, ["x"]), tmp_path / "real.json")


def test_v2_is_in_numeric_order(tmp_path):
  for i in range(12):
    (tmp_path / str(i)).mkdir()
    (tmp_path / str(i) / f"{i}a.jpeg").write_bytes(jpeg(i))
  dataset = open_dataset("imagenet_v2", path=str(tmp_path), held_out=0.1)
  test = dataset.splits["test"]
  assert list(dataset.splits) == ["test"] and test.labels == tuple(range(12))
  assert test.record(10)["image"] == jpeg(10) and dataset.classes == tuple(map(str, range(12)))
  (tmp_path / "classes.txt").write_text("".join(f"n{i:08d}\n" for i in range(12)))
  named = open_dataset("imagenet_v2", path=str(tmp_path), held_out=0.1)
  assert named.classes[11] == "n00000011" and named.fingerprint != dataset.fingerprint
  (tmp_path / "classes.txt").write_text("n1\n")
  with pytest.raises(DataError, match="names 1 classes, and there are 12"):
    open_dataset("imagenet_v2", path=str(tmp_path), held_out=0.1)
  (tmp_path / "classes.txt").unlink()
  (tmp_path / "3" / "3a.jpeg").unlink()
  with pytest.raises(DataError, match="/3 holds no images"):
    open_dataset("imagenet_v2", path=str(tmp_path), held_out=0.1)
  (tmp_path / "3").rmdir()
  with pytest.raises(DataError, match="does not hold the directories 0, 1"):
    open_dataset("imagenet_v2", path=str(tmp_path), held_out=0.1)


@pytest.mark.parametrize("split, images", [("test", 4), ("test[:50%]", 2)])
def test_v2_has_nothing_to_train_on_and_its_split_can_be_named(tmp_path, split, images):
  for i in range(4):
    (tmp_path / str(i)).mkdir()
    (tmp_path / str(i) / "a.jpeg").write_bytes(jpeg(i))
  dataset = open_dataset("imagenet_v2", path=str(tmp_path), held_out=0.1, evaluation=split)
  assert len(dataset.splits[split]) == images and not dataset.notes


def test_images_without_labels_count_nowhere(tmp_path):
  (tmp_path / "real.json").write_text("[[1], []]")
  names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (1, 2)]
  source = with_real_labels(validation(tmp_path, names), tmp_path / "real.json")
  (batch,) = eval_batches(
      source, batch_size=2, shard=0, shards=1, preprocessing=Preprocessing(image_size=8),
      threads=0, bad=BadRecords(),
  )
  assert batch["mask"].tolist() == [1, 0] and batch["label"].tolist() == [1, -1]

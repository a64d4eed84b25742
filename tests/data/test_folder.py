"""Folders of one's own: layouts, what is left out, and what is refused."""

import json
import os
import shutil

import numpy as np
from PIL import Image
import pytest

from vit_jax.data.decode import decode
from vit_jax.data.folder import open_folder
from vit_jax.errors import ConfigError, DataError

COUNT = iter(range(10**6))


def write(path):
  """An image unlike any other."""
  path.parent.mkdir(parents=True, exist_ok=True)
  value = next(COUNT)
  Image.new("RGB", (4, 3), (value % 256, value // 256, 7)).save(path)


def classes(root, **sizes):
  for name, size in sizes.items():
    for i in range(size):
      write(root / name / f"{i}.png")
  return root


def contents(source):
  """(path, class name) of each record."""
  records = [source.record(i) for i in range(len(source))]
  return {(record["name"], source.classes[record["label"]]) for record in records}


def test_class_folders_are_held_out(tmp_path):
  root = classes(tmp_path / "pets", dog=20, cat=11, Zebra=3)
  dataset = open_folder(root)
  assert dataset.name == "pets" and dataset.classes == ("Zebra", "cat", "dog")
  train, validation = dataset.splits["train"], dataset.splits["validation"]
  assert (len(train), len(validation)) == (30, 4)  # 2 dogs, 1 cat, 1 zebra
  assert [list(validation.labels).count(i) for i in range(3)] == [1, 1, 2]
  assert (train.split, validation.split) == ("train", "validation")
  everything = contents(train) | contents(validation)
  assert everything == {
      (f"{name}/{i}.png", name)
      for name, n in (("dog", 20), ("cat", 11), ("Zebra", 3)) for i in range(n)
  }
  assert dataset.notes == (
      f"{root}: 10 % (4 images) held out by content hash, stratified by class",
  )
  record = train.record(5)
  image = Image.open(root / record["name"])
  np.testing.assert_array_equal(
      decode(record["image"], exif_orientation=True), np.asarray(image)
  )


def test_renamed_files_are_held_out_alike(tmp_path):
  root = classes(tmp_path / "a", x=20, y=20)
  other = tmp_path / "b"
  for path in root.glob("*/*"):
    (other / path.parent.name).mkdir(parents=True, exist_ok=True)
    shutil.copy(path, other / path.parent.name / f"photo{path.name}")

  def held(folder):
    source = open_folder(folder, held_out=0.25).splits["validation"]
    return {source.record(i)["image"] for i in range(len(source))}

  assert held(root) == held(other) and len(held(root)) == 10


@pytest.mark.parametrize("names, splits", [
    (("train", "val"), ("train", "validation")),
    (("training", "validation", "test"), ("train", "validation", "test")),
    (("train", "test"), ("train", "test")),
])
def test_split_folders(tmp_path, names, splits):
  for i, name in enumerate(names):
    classes(tmp_path / name, a=3 - i, b=4)
  dataset = open_folder(tmp_path)
  assert tuple(dataset.splits) == splits and dataset.notes == ()
  for i, (name, split) in enumerate(zip(names, splits)):
    source = dataset.splits[split]
    assert contents(source) == {(f"{name}/a/{j}.png", "a") for j in range(3 - i)} | {
        (f"{name}/b/{j}.png", "b") for j in range(4)
    }


def test_train_alone_is_held_out_from(tmp_path):
  classes(tmp_path / "train", a=10, b=10)
  (tmp_path / "val" / "a").mkdir(parents=True)
  dataset = open_folder(tmp_path, held_out=0.2)
  assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 16, "validation": 4}
  assert "20 % (4 images)" in dataset.notes[-1]


def test_nothing_held_out_on_request(tmp_path):
  dataset = open_folder(classes(tmp_path, a=3, b=3), held_out=0)
  assert list(dataset.splits) == ["train"] and "0 % (0 images)" in dataset.notes[-1]
  with pytest.raises(ConfigError):
    open_folder(tmp_path, held_out=1)


def test_classes_may_be_called_train(tmp_path):
  dataset = open_folder(classes(tmp_path, train=4, bus=4))
  assert dataset.classes == ("bus", "train")


def test_what_is_left_out_is_counted(tmp_path):
  classes(tmp_path, a=4, b=4)
  (tmp_path / "empty_class").mkdir()
  (tmp_path / "a" / "notes.txt").write_text("x")
  (tmp_path / "b" / "Thumbs.db").write_text("x")
  write(tmp_path / "loose.jpg")
  write(tmp_path / "a" / "deep" / "0.png")
  (tmp_path / ".hidden").mkdir()
  write(tmp_path / "a" / ".x.png")
  write(tmp_path / ".cache" / "y.png")
  dataset = open_folder(tmp_path)
  assert dataset.classes == ("a", "b")
  assert sum(map(len, dataset.splits.values())) == 8
  notes = "\n".join(dataset.notes)
  assert "1 folders without images, so no classes: empty_class" in notes
  assert "2 files, not images, ignored: a/notes.txt, b/Thumbs.db" in notes
  assert "1 images outside any class folder, ignored: loose.jpg" in notes
  assert "1 folders inside class folders, ignored: a/deep" in notes
  assert "hidden" not in notes and ".x" not in notes and ".cache" not in notes


def test_extensions_in_capitals(tmp_path):
  for name in ("a", "b"):
    for file in ("1.JPEG", "2.Jpg", "3.PNG", "4.webp"):
      write(tmp_path / name / file)
  assert sum(map(len, open_folder(tmp_path).splits.values())) == 8


def test_a_class_empty_in_one_split_is_still_one(tmp_path):
  classes(tmp_path / "train", a=3, b=3)
  classes(tmp_path / "val", a=1)
  (tmp_path / "val" / "b").mkdir()
  dataset = open_folder(tmp_path)
  assert dataset.classes == ("a", "b") and dataset.notes == ()


def test_fingerprint(tmp_path):
  root = classes(tmp_path / "here", a=6, b=6)
  first = open_folder(root).fingerprint
  assert len(first) == 64
  shutil.copytree(root, tmp_path / "there")
  assert open_folder(tmp_path / "there").fingerprint == first
  assert open_folder(root, held_out=0.5).fingerprint != first
  (root / "a" / "0.png").rename(root / "a" / "6.png")
  assert open_folder(root).fingerprint != first
  (root / "a" / "6.png").rename(root / "a" / "0.png")
  assert open_folder(root).fingerprint == first
  for path in root.glob("*/*"):
    before = path.read_bytes()
    path.write_bytes(before + b"longer")
    assert open_folder(root).fingerprint != first
    path.unlink()
    assert open_folder(root).fingerprint != first
    path.write_bytes(before)
  assert open_folder(root).fingerprint == first


def metadata_csv(root, rows, header="file_name,label"):
  root.mkdir(parents=True, exist_ok=True)
  (root / "metadata.csv").write_text("\n".join([header] + rows) + "\n", encoding="utf-8-sig")
  for row in rows:
    write(root / row.split(",")[0])
  return root


def test_metadata_csv(tmp_path):
  parity = lambda i: "odd" if i % 2 else "even"
  root = metadata_csv(tmp_path, [f"images/{i}.png,{parity(i)}" for i in range(20)])
  write(root / "images" / "unlisted.png")
  dataset = open_folder(root)
  assert dataset.classes == ("even", "odd")
  found = contents(dataset.splits["train"]) | contents(dataset.splits["validation"])
  assert found == {(f"images/{i}.png", parity(i)) for i in range(20)}
  assert "1 images that metadata.csv does not list, ignored: images/unl" in dataset.notes[0]
  assert "10 % (2 images)" in dataset.notes[1]


def test_metadata_jsonl_with_splits(tmp_path):
  rows = [
      {"file_name": f"{i}.png", "label": i % 2, "split": ("train", "val", "test")[i % 3]}
      for i in range(12)
  ]
  for row in rows:
    write(tmp_path / row["file_name"])
  (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
  dataset = open_folder(tmp_path)
  assert dataset.classes == ("0", "1") and dataset.notes == ()
  assert {k: len(v) for k, v in dataset.splits.items()} == {
      "train": 4, "validation": 4, "test": 4
  }
  assert contents(dataset.splits["validation"]) == {
      (row["file_name"], str(row["label"])) for row in rows if row["split"] == "val"
  }


def test_metadata_in_each_split(tmp_path):
  metadata_csv(tmp_path / "train", ["1.png,a", "2.png,b", '3.png,"a"'])
  metadata_csv(tmp_path / "test", ["1.png,b"])
  dataset = open_folder(tmp_path)
  assert contents(dataset.splits["train"]) == {
      ("train/1.png", "a"), ("train/2.png", "b"), ("train/3.png", "a")
  }
  assert contents(dataset.splits["test"]) == {("test/1.png", "b")}


@pytest.mark.parametrize("header, rows, text", [
    ("file,label", ["a.png,x"], "line 1: no column file_name"),
    ("", [], "line 1: no column file_name and no column label"),
    ("file_name,label", ["a.png,x", "b.png,"], "line 3: label is missing"),
    ("file_name,label", ["a.png,x", "b.png"], "line 3: label is missing"),
    ("file_name,label", ["a.png,x", "a.png,y"], "line 3: a.png is listed in line 2 already"),
    ("file_name,label,split", ["a.png,x,train", "b.png,y,dev"], "line 3: the split is 'dev'"),
    ("file_name,label,split", ["a.png,x,train", "b.png,y,"], "line 3: split is missing"),
])
def test_faulty_csv(tmp_path, header, rows, text):
  metadata_csv(tmp_path, rows, header)
  with pytest.raises(DataError, match=text) as error:
    open_folder(tmp_path)
  assert str(tmp_path / "metadata.csv") in str(error.value)


def test_listed_image_is_missing(tmp_path):
  metadata_csv(tmp_path, ["a.png,x", "b.png,y"])
  (tmp_path / "b.png").unlink()
  with pytest.raises(DataError, match=r"metadata.csv, line 3: cannot find .*b\.png"):
    open_folder(tmp_path)


def test_faulty_jsonl(tmp_path):
  write(tmp_path / "a.png")
  for text, message in (
      ('{"file_name": "a.png", "label": "x"}\nnonsense', "line 2 is not JSON"),
      ('["a.png"]', "line 1 is not an object"), ('{"file_name": "a.png"}', "line 1: label"),
  ):
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
      open_folder(tmp_path)
  (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(DataError, match="UTF-8"):
    open_folder(tmp_path)
  (tmp_path / "metadata.csv").write_text("file_name,label\n")
  with pytest.raises(DataError, match="both metadata.csv and metadata.jsonl"):
    open_folder(tmp_path)


def test_no_such_folder(tmp_path):
  with pytest.raises(DataError, match="nowhere does not exist"):
    open_folder(tmp_path / "nowhere")
  write(tmp_path / "a.png")
  with pytest.raises(DataError, match="a.png is a file"):
    open_folder(tmp_path / "a.png")


def test_no_images(tmp_path):
  with pytest.raises(DataError, match="no images"):
    open_folder(tmp_path)
  (tmp_path / "a").mkdir()
  write(tmp_path / "loose.png")
  with pytest.raises(DataError, match="no images"):
    open_folder(tmp_path)


def test_one_class(tmp_path):
  with pytest.raises(DataError, match="only one class, 'a'"):
    open_folder(classes(tmp_path, a=5))


def test_class_without_training_images(tmp_path):
  classes(tmp_path / "train", cat=3, dog=3)
  classes(tmp_path / "val", Cat=1)
  with pytest.raises(DataError, match="'Cat' of val/Cat/0.png has no training images"):
    open_folder(tmp_path)


def test_a_split_twice(tmp_path):
  classes(tmp_path / "train", a=1, b=1)
  classes(tmp_path / "training", a=1, b=1)
  with pytest.raises(DataError, match="both train/ and training/"):
    open_folder(tmp_path)


def test_one_image_a_class(tmp_path):
  with pytest.raises(DataError, match="nothing can be held out"):
    open_folder(classes(tmp_path / "one", a=1, b=1))
  dataset = open_folder(classes(tmp_path / "two", a=1, b=5))
  assert "1 classes have a single image, kept for training: a" in dataset.notes[-1]


def test_a_file_that_goes_and_a_dangling_link(tmp_path):
  root = classes(tmp_path / "set", a=3, b=3)
  source = open_folder(root).splits["train"]
  (root / source.record(0)["name"]).unlink()
  with pytest.raises(DataError, match=r"cannot read .*\.png"):
    source.record(0)
  (root / "a" / "link.png").symlink_to(tmp_path / "nowhere.png")
  with pytest.raises(DataError, match=r"cannot find .*link\.png"):
    open_folder(root)


def test_names_that_are_not_utf8(tmp_path):
  root = classes(tmp_path, cat=2, dog=2)
  try:
    os.mkdir(os.fsencode(root) + b"/b\xe4r")
  except OSError:
    pytest.skip("this file system takes only UTF-8 names")
  (note,) = [note for note in open_folder(root, held_out=0.5).notes if "without images" in note]
  assert note.encode().endswith(rb"so no classes: b\udce4r")
  for i in range(2):
    write(root / os.fsdecode(b"b\xe4r") / f"{i}.png")
  with pytest.raises(DataError, match=r"the class name 'b\\udce4r' is not valid UTF-8.*: rename"):
    open_folder(root)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_several_labels_by_metadata(tmp_path, kind):
  rows = {f"{i}.png": ["cat", "dog", "sofa"][i % 3 :][:2] for i in range(9)}
  for name in rows:
    write(tmp_path / name)
  if kind == "csv":
    lines = ["file_name,labels", *(f"{name},{'; '.join(own)}" for name, own in rows.items())]
  else:
    lines = [json.dumps({"file_name": name, "labels": own * 2}) for name, own in rows.items()]
  (tmp_path / f"metadata.{kind}").write_text("\n".join(lines))
  train = open_folder(tmp_path, held_out=0).splits["train"]
  assert train.classes == ("cat", "dog", "sofa") and train.max_labels == 2
  found = {
      record["name"]: [train.classes[i] for i in record["labels"]]
      for record in map(train.record, range(len(train)))
  }
  assert found == rows
  assert all(train.record(i)["label"] == train.record(i)["labels"][0] for i in range(9))


@pytest.mark.parametrize("text, message", [
    ("file_name,labels\n0.png, ;", "labels is empty"),
    ("file_name,names\n0.png,a", "no column label"),
])
def test_missing_labels(tmp_path, text, message):
  write(tmp_path / "0.png")
  (tmp_path / "metadata.csv").write_text(text)
  with pytest.raises(DataError, match=message):
    open_folder(tmp_path)


def test_both_columns_are_refused(tmp_path):
  write(tmp_path / "0.png")
  (tmp_path / "metadata.csv").write_text("file_name,label,labels\n0.png,a,b;c")
  with pytest.raises(DataError, match="both label and labels"):
    open_folder(tmp_path)


def test_a_folder_for_evaluation_alone(tmp_path):
  classes(tmp_path / "validation", a=2, b=3)
  dataset = open_folder(tmp_path)
  assert list(dataset.splits) == ["validation"] and dataset.classes == ("a", "b")

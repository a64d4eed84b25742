"""`vit-jax prepare` from every form that data sets come in, and what it refuses."""

import csv
import io
import json
import os
import tarfile

import numpy as np
from PIL import Image
import pytest

from archives import contents, jpeg, link, tar, tar_bytes
from vit_jax.data.array_record import open_array_record
from vit_jax.data.decode import decode
from vit_jax.data.prepare.run import prepare
from vit_jax.errors import ConfigError, DataError


def prepared(tmp_path, source, input, **options):
  """(data set, rows of rejected.csv without the header)."""
  output = tmp_path / "out"
  prepare(source=source, input=input, output=output, say=lambda line: None, **options)
  assert not output.with_name("out.partial").exists()
  with open(output / "rejected.csv", newline="") as file:
    header, *rows = csv.reader(file)
  assert header == ["split", "name", "reason"]
  return open_array_record(output, held_out=0), sorted(map(tuple, rows))


def folder(root, **counts):
  seed = 0
  for label, count in counts.items():
    (root / label).mkdir(parents=True)
    for i in range(count):
      (root / label / f"{i}.jpg").write_bytes(jpeg(seed := seed + 1))
  return root


def test_image_folder(tmp_path):
  root = folder(tmp_path / "in" / "train", cat=3, dog=2)
  folder(tmp_path / "in" / "val", cat=1, dog=1)
  (root / "cat" / "zero.jpg").write_bytes(b"")
  (root / "dog" / "half.jpg").write_bytes(jpeg(90, (64, 64))[:700])
  (root / "dog" / "text.jpg").write_bytes(b"no image at all")
  dataset, rejected = prepared(tmp_path, "imagefolder", tmp_path / "in")
  assert dataset.classes == ("cat", "dog") and list(dataset.splits) == ["train", "validation"]
  assert contents(dataset.splits["train"]) == {
      f"train/{label}/{i}.jpg": ((root / label / f"{i}.jpg").read_bytes(), (label,))
      for label, count in (("cat", 3), ("dog", 2)) for i in range(count)
  }
  assert [name for _, name, _ in rejected] == [
      "train/cat/zero.jpg", "train/dog/half.jpg", "train/dog/text.jpg"
  ]
  assert dict(row[1:] for row in rejected)["train/cat/zero.jpg"] == "the file is empty"
  assert "3 images were rejected" in dataset.notes[0]


def test_reduced_copies(tmp_path):
  root = folder(tmp_path / "in", a=1, b=1)
  exif = Image.Exif()
  exif[0x0112] = 6
  (root / "a" / "wide.jpg").write_bytes(jpeg(7, (80, 40), exif=exif))
  image = io.BytesIO()
  Image.new("CMYK", (40, 50), (9, 9, 9, 9)).save(image, "JPEG")
  (root / "b" / "cmyk.jpg").write_bytes(image.getvalue())
  dataset, rejected = prepared(tmp_path, "imagefolder", root, short_side=20, quality=95)
  found = contents(dataset.splits["train"])
  sizes = {name: decode(data, exif_orientation=False).shape for name, (data, _) in found.items()}
  assert sizes["a/wide.jpg"] == (20, 40, 3) and sizes["b/cmyk.jpg"] == (25, 20, 3)
  assert decode(found["a/wide.jpg"][0], exif_orientation=True).shape == (40, 20, 3)
  assert found["a/0.jpg"][0] == (root / "a" / "0.jpg").read_bytes()  # small already
  expected = Image.open(root / "a" / "wide.jpg").resize((40, 20), Image.Resampling.BICUBIC)
  file = io.BytesIO()
  expected.save(file, "JPEG", quality=95)
  np.testing.assert_array_equal(
      decode(found["a/wide.jpg"][0], exif_orientation=False),
      decode(file.getvalue(), exif_orientation=False),
  )
  assert not rejected


def test_tars_of_classes_and_their_traps(tmp_path):
  images = [jpeg(i) for i in range(8)]
  tar(tmp_path / "in" / "set.tar", [
      ("./train/cat/0.jpg", images[0]), ("train/dog/0.jpg", images[1]),
      ("val/cat/1.jpg", images[2]), ("val/dog/1.jpg", images[3]),
      ("train/cat/../../../escape.jpg", images[4]), ("/etc/absolute.jpg", images[5]),
      ("train/cat/link.jpg", link("train/cat/link.jpg", "/etc/passwd")),
      ("train/cat/hard.jpg", link("train/cat/hard.jpg", "train/cat/0.jpg", tarfile.LNKTYPE)),
      ("train/cat/pipe.jpg", link("train/cat/pipe.jpg", "", tarfile.FIFOTYPE)),
      ("train/cat/readme.txt", b"hello"), ("train/cat/broken.jpg", images[6][:100]),
  ])
  before = sorted(tmp_path.rglob("*"))
  dataset, rejected = prepared(tmp_path, "tar", tmp_path / "in" / "set.tar")
  after = [path for path in sorted(tmp_path.rglob("*")) if "out" not in path.parts]
  assert [x for x in after if tmp_path / "out" not in (x, *x.parents)] == before
  assert dataset.classes == ("cat", "dog")
  assert contents(dataset.splits["train"]) == {
      "train/cat/0.jpg": (images[0], ("cat",)), "train/dog/0.jpg": (images[1], ("dog",))
  }
  assert set(contents(dataset.splits["validation"])) == {"val/cat/1.jpg", "val/dog/1.jpg"}
  reasons = {name: reason for _, name, reason in rejected}
  assert len(rejected) == 7 and reasons["train/cat/link.jpg"] == "a link, not a file"
  assert "leads out" in reasons["/etc/absolute.jpg"]
  assert "leads out" in reasons["train/cat/../../../escape.jpg"]
  assert reasons["train/cat/readme.txt"] == "not an image by its name"


def test_one_tar_a_class(tmp_path):
  for label in "ba":
    tar(tmp_path / "in" / f"{label}.tar", {f"{i}.jpg": jpeg(ord(label) + i) for i in range(2)})
  dataset, _ = prepared(tmp_path, "tar", tmp_path / "in")
  assert {name: labels for name, (_, labels) in contents(dataset.splits["train"]).items()} == {
      "a/0.jpg": ("a",), "a/1.jpg": ("a",), "b/0.jpg": ("b",), "b/1.jpg": ("b",)
  }


@pytest.mark.parametrize("cut", [700, 1024, -1024 - 512, -10240])
def test_truncated_tars_stop_it(tmp_path, cut):
  data = tar(tmp_path / "in" / "a.tar", {f"{x}/0.jpg": jpeg(1, (30, 30)) for x in "abc"})
  end = len(data.rstrip(b"\0"))
  (tmp_path / "in" / "a.tar").write_bytes(data[:cut] if cut > 0 else data[: end + cut])
  with pytest.raises(DataError, match=r"a\.tar cannot be read as a tar.*truncated"):
    prepared(tmp_path, "tar", tmp_path / "in")
  assert not (tmp_path / "out").exists()


def test_a_tar_cut_between_members_and_a_damaged_header(tmp_path):
  data = tar(tmp_path / "in" / "a.tar", {f"{x}/0.jpg": bytes(512) for x in "abc"})
  (tmp_path / "in" / "a.tar").write_bytes(data[:1024])
  with pytest.raises(DataError, match="the end of the archive is missing"):
    prepared(tmp_path, "tar", tmp_path / "in")
  (tmp_path / "in" / "a.tar").write_bytes(data[:1100] + b"###" + data[1103:])
  with pytest.raises(DataError, match=r"a\.tar cannot be read"):
    prepared(tmp_path, "tar", tmp_path / "in")
  import gzip
  (tmp_path / "in" / "a.tar").write_bytes(gzip.compress(data))
  with pytest.raises(DataError, match="is compressed"):
    prepared(tmp_path, "tar", tmp_path / "in")


def test_webdataset_with_synsets_and_without(tmp_path):
  def sample(key, label, name=None, **more):
    fields = {"label": label} | ({"filename": name} if name else {})
    return {f"{key}.jpg": jpeg(hash(key) % 1000), f"{key}.cls": b"%d" % label,
            f"{key}.json": json.dumps(fields).encode(), **more}

  tar(tmp_path / "a" / "imagenet1k-train-0000.tar", sample("s0", 1, "n02_x.JPEG") | sample(
      "s1", 0, "n00000001_7.JPEG") | {"loose.cls": b"3", "s2.jpg": jpeg(5)})
  tar(tmp_path / "a" / "imagenet1k-train-0001.tar", sample("s3", 1, "n00000002_9.JPEG"))
  tar(tmp_path / "a" / "imagenet1k-validation-00.tar", sample("s4", 0, "val_1.JPEG"))
  dataset, rejected = prepared(tmp_path, "webdataset", tmp_path / "a")
  assert dataset.classes == ("0", "1")  # the names of class 1 do not agree
  assert {k: v[1] for k, v in contents(dataset.splits["train"]).items()} == {
      "n02_x.JPEG": ("1",), "n00000001_7.JPEG": ("0",), "n00000002_9.JPEG": ("1",)
  }
  assert {row[1:] for row in rejected} == {
      ("loose", "a label without an image"), ("s2.jpg", "an image without a label")
  }
  (tmp_path / "b").mkdir()
  tar(tmp_path / "b" / "x" / "t-train-0.tar", sample("n00000002_5", 0) | sample(
      "n00000001_7", 1) | sample("n00000001_8", 1))
  (tmp_path / "b" / "x" / "words.txt").write_text("n00000002\tdog, hound\nn1\tother\n")
  dataset, _ = prepared(tmp_path / "b", "webdataset", tmp_path / "b" / "x")
  assert dataset.classes == ("n00000002", "n00000001")
  described = json.loads((tmp_path / "b" / "out" / "dataset.json").read_text())
  assert described["class_names"] == {"n00000002": "dog, hound"}


def test_webdataset_labels_that_are_none(tmp_path):
  tar(tmp_path / "in" / "a.tar", {"1.jpg": jpeg(1), "1.cls": b"cat"})
  with pytest.raises(DataError, match="a.tar: 1 has an unreadable label"):
    prepared(tmp_path, "webdataset", tmp_path / "in")


def test_parquet(tmp_path):
  pa = pytest.importorskip("pyarrow")
  import pyarrow.parquet as pq

  names = ["cat", "dog"]
  meta = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}

  def write(file, start, count):
    table = pa.table({
        "image": [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(start, start + count)],
        "label": pa.array([i % 2 for i in range(start, start + count)], pa.int64()),
    }).replace_schema_metadata({"huggingface": json.dumps(meta)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=2)

  write(tmp_path / "in" / "data" / "train-00000-of-00002.parquet", 0, 5)
  write(tmp_path / "in" / "data" / "train-00001-of-00002.parquet", 5, 3)
  write(tmp_path / "in" / "data" / "test-00000-of-00001.parquet", 8, 2)
  dataset, rejected = prepared(tmp_path, "parquet", tmp_path / "in")
  assert dataset.classes == ("cat", "dog") and not rejected
  train = dataset.splits["train"]
  assert [train.record(i)["image"] for i in range(8)] == [jpeg(i) for i in range(8)]
  assert train.labels.tolist() == [0, 1] * 4 and len(dataset.splits["test"]) == 2
  file = tmp_path / "in" / "data" / "test-00000-of-00001.parquet"
  file.write_bytes(file.read_bytes()[:200])
  with pytest.raises(DataError, match="test-00000-of-00001.parquet cannot be read as parquet"):
    prepare(source="parquet", input=tmp_path / "in", output=tmp_path / "other")


def imagenet(root):
  """ILSVRC2012 as published, with four classes and six validation images."""
  inner = {
      f"n0000000{k}.tar": tar_bytes(
          {f"n0000000{k}_{i}.JPEG": jpeg(10 * k + i) for i in range(2)}
      ) for k in (3, 1, 2)
  }
  tar(root / "ILSVRC2012_img_train.tar", inner)
  tar(root / "ILSVRC2012_img_val.tar", {
      f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(100 + i) for i in (2, 1, 3)
  })
  return root


def test_imagenet_with_its_development_kit(tmp_path):
  from scipy.io import savemat

  root = imagenet(tmp_path / "in")
  with pytest.raises(DataError, match="without labels: put beside it ILSVRC2012_devkit_t12"):
    prepared(tmp_path, "imagenet", root)
  fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
  synsets = np.array([
      (1, "n00000002", "dog", 0), (2, "n00000001", "cat, puss", 0), (3, "n00000003", "ox", 0),
      (4, "n00000009", "animal", 3),
  ], fields)
  mat = io.BytesIO()
  savemat(mat, {"synsets": synsets.reshape(-1, 1)})
  (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_bytes({
      "ILSVRC2012_devkit_t12/data/meta.mat": mat.getvalue(),
      "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n3\n",
  }))
  dataset, rejected = prepared(tmp_path, "imagenet", root)
  assert dataset.classes == ("n00000001", "n00000002", "n00000003") and not rejected
  train = contents(dataset.splits["train"])
  assert train["n00000003/n00000003_1.JPEG"] == (jpeg(31), ("n00000003",)) and len(train) == 6
  validation = contents(dataset.splits["validation"])
  assert {name[-6:-5]: labels for name, (_, labels) in validation.items()} == {
      "1": ("n00000002",), "2": ("n00000001",), "3": ("n00000003",)
  }
  described = json.loads((tmp_path / "out" / "dataset.json").read_text())
  assert described["class_names"]["n00000001"] == "cat, puss"


def test_imagenet_with_labels_of_others(tmp_path):
  root = imagenet(tmp_path / "in")
  (root / "LOC_val_solution.csv").write_text(
      "ImageId,PredictionString\nILSVRC2012_val_00000002,n00000001 1 2 3 4\n"
      "ILSVRC2012_val_00000001,n00000003 1 2 3 4 n00000003 1 2 3 4\n"
      "ILSVRC2012_val_00000003,n00000002 1 2 3 4\n"
  )
  (root / "LOC_synset_mapping.txt").write_text("n00000001 cat, puss\nn00000002 dog\n")
  dataset, _ = prepared(tmp_path, "imagenet", root)
  validation = contents(dataset.splits["validation"])
  assert validation["ILSVRC2012_val_00000001.JPEG"] == (jpeg(101), ("n00000003",))
  text = tmp_path / "labels.txt"
  text.write_text("n00000002\nn00000002\nn00000001\n")
  (tmp_path / "b").mkdir()
  dataset, _ = prepared(tmp_path / "b", "imagenet", root, val_labels=text)
  assert dataset.splits["validation"].labels.tolist() == [1, 1, 0]
  text.write_text("n00000002\n")
  with pytest.raises(DataError, match="has no label among 1"):
    prepare(source="imagenet", input=root, output=tmp_path / "c", val_labels=text)


def test_winter_21_with_the_order_of_a_file(tmp_path):
  root = tmp_path / "winter21_whole"
  for k in (1, 2, 3):
    tar(root / f"n0000000{k}.tar", {f"n0000000{k}_0.JPEG": jpeg(k), "x.txt": b""})
  (tmp_path / "ids.txt").write_text("n00000003\nn00000001\n")
  dataset, rejected = prepared(tmp_path, "imagenet", root, classes=tmp_path / "ids.txt")
  assert dataset.classes == ("n00000003", "n00000001")
  assert contents(dataset.splits["train"])["n00000003/n00000003_0.JPEG"][1] == ("n00000003",)
  assert dataset.splits["train"].labels.tolist() == [1, 0]
  assert ("train", "n00000002/n00000002_0.JPEG", "its class is not in ids.txt") in rejected
  assert len(rejected) == 4


def test_merged_duplicates(tmp_path):
  same, unlike, broken = jpeg(1), jpeg(2), jpeg(3)[:60]
  members = [("b/1.jpg", same), ("a/1.jpg", same), ("a/2.jpg", same), ("a/3.jpg", unlike),
             ("b/4.jpg", broken), ("c/4.jpg", broken), ("c/5.jpg", jpeg(9))]
  tar(tmp_path / "in" / "t.tar", members)
  dataset, rejected = prepared(tmp_path, "tar", tmp_path / "in", merge=True)
  assert contents(dataset.splits["train"]) == {
      "b/1.jpg": (same, ("a", "b")), "a/3.jpg": (unlike, ("a",)), "c/5.jpg": (jpeg(9), ("c",))
  }
  assert {name for _, name, _ in rejected} == {"b/4.jpg", "c/4.jpg"}
  described = json.loads((tmp_path / "out" / "dataset.json").read_text())
  assert described["multi_label"] and described["merged"] == 3
  (tmp_path / "b").mkdir()
  dataset, _ = prepared(tmp_path / "b", "tar", tmp_path / "in")
  assert len(dataset.splits["train"]) == 5


@pytest.mark.parametrize("source, text", [
    ("tar", "does not exist"), ("webdataset", "does not exist"), ("imagenet", "does not exist"),
    ("imagefolder", "does not exist"), ("zip", "--source=zip is not one of imagefolder"),
])
def test_wrong_sources(tmp_path, source, text):
  with pytest.raises((ConfigError, DataError), match=text):
    prepare(source=source, input=tmp_path / "nowhere", output=tmp_path / "out")
  assert list(tmp_path.iterdir()) == []


def test_wrong_options(tmp_path):
  root = folder(tmp_path / "in", a=1, b=1)
  for options, text in (
      ({"quality": 0}, "--quality=0 must be from 1"), ({"workers": 0}, "--workers=0"),
      ({"val_labels": "x"}, "--val-labels is for"), ({"classes": tmp_path / "x"}, "--classes="),
  ):
    with pytest.raises(ConfigError, match=text):
      prepare(source="imagefolder", input=root, output=tmp_path / "out", **options)


def test_nothing_usable(tmp_path):
  for label in "ab":
    (tmp_path / "in" / label).mkdir(parents=True)
    (tmp_path / "in" / label / "1.jpg").write_bytes(b"x")
  with pytest.raises(DataError, match="every image was rejected, the first, a/1.jpg"):
    prepare(source="imagefolder", input=tmp_path / "in", output=tmp_path / "out")


def test_several_labels_of_a_folder_and_odd_names(tmp_path):
  folder = tmp_path / "photos"
  folder.mkdir()
  odd = os.fsdecode(b"caf\xe9.jpg")
  names = ["a.jpg", "b.jpg", "c.jpg"]
  for i, name in enumerate(names):
    (folder / name).write_bytes(jpeg(i))
  lines = ["file_name,labels", "a.jpg,cat;dog", "b.jpg,sofa", "c.jpg,cat;dog;sofa"]
  (folder / "metadata.csv").write_text("\n".join(lines))
  prepare(source="imagefolder", input=str(folder), output=str(tmp_path / "out"), workers=1)
  train = open_array_record(tmp_path / "out", held_out=0).splits["train"]
  found = {r["name"]: [train.classes[i] for i in r["labels"]] for r in map(train.record, range(3))}
  assert found == {"a.jpg": ["cat", "dog"], "b.jpg": ["sofa"], "c.jpg": ["cat", "dog", "sofa"]}
  assert train.max_labels == 3
  for kind in ("cat", "dog"):
    (tmp_path / "odd" / kind).mkdir(parents=True)
    (tmp_path / "odd" / kind / "x.jpg").write_bytes(jpeg(8 + len(kind) + (kind == "cat")))
  (tmp_path / "odd" / "cat" / odd).write_bytes(jpeg(9))
  prepare(source="imagefolder", input=str(tmp_path / "odd"), output=str(tmp_path / "o"), workers=1)
  train = open_array_record(tmp_path / "o", held_out=0).splits["train"]
  assert sorted(train.record(i)["name"] for i in range(3)) == [
      "cat/caf\\udce9.jpg", "cat/x.jpg", "dog/x.jpg"
  ]

"""Our own shards: records, what is held out, and reading from several threads and processes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pickle
import subprocess
import sys

import numpy as np
import pytest

from archives import contents, jpeg, tar
from vit_jax.data.array_record import held_out_by_hash, open_array_record
from vit_jax.data.open import open_dataset
from vit_jax.data.prepare.run import prepare
from vit_jax.data.record_format import decode_record, encode_record
from vit_jax.errors import ConfigError, DataError


@pytest.mark.parametrize("name", ["a/b.jpg", "", "Zürich 猫"])
@pytest.mark.parametrize("labels", [(0,), (3, 70000)])
def test_records(name, labels):
  record = decode_record(encode_record(b"\xff\xd8picture", labels, name), where="x")
  assert record == {
      "image": b"\xff\xd8picture", "label": labels[0], "labels": labels, "name": name
  }


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 30, bytes(40)])
def test_what_is_no_record(data):
  with pytest.raises(DataError, match="shard 3 is not a record of vit_jax"):
    decode_record(data, where="shard 3")


def test_held_out_by_hash():
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(5, dtype=np.int32), [100, 10, 1, 2, 4])
  hashes = rng.integers(0, 2**64, len(labels), np.uint64)
  hashes[113:] = 7  # the last class is one image, four times
  hashes[101:105] = hashes[:100].min()
  held = held_out_by_hash(hashes, labels, fraction=0.1)
  counts = np.bincount(labels[held], minlength=5).tolist()
  assert counts[0] == 10 and counts[2:] == [0, 1, 0] and counts[1] in (1, 4)
  assert set(hashes[held & (labels == 0)]) == set(np.sort(hashes[:100])[:10])
  order = rng.permutation(len(labels))
  again = held_out_by_hash(hashes[order], labels[order], fraction=0.1)
  np.testing.assert_array_equal(again, held[order])
  assert not held_out_by_hash(hashes, labels, fraction=0).any()
  with pytest.raises(ConfigError):
    held_out_by_hash(hashes, labels, fraction=1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  root = tmp_path_factory.mktemp("shards")
  tar(root / "in.tar", {f"{'xyz'[i % 3]}/{i:02d}.jpg": jpeg(i) for i in range(60)})
  prepare(source="tar", input=root / "in.tar", output=root / "out", shard_bytes=6000,
          say=lambda line: None)
  return root / "out"


def test_held_out_splits_share_nothing(directory):
  whole = contents(open_dataset("array_record", path=str(directory), held_out=0).splits["train"])
  dataset = open_dataset("array_record", path=str(directory), held_out=0.2)
  train, validation = (contents(dataset.splits[x]) for x in ("train", "validation"))
  assert train | validation == whole and not set(train) & set(validation)
  source = dataset.splits["validation"]
  assert np.bincount(source.labels).tolist() == [4, 4, 4]
  assert [source.record(i)["label"] for i in range(12)] == source.labels.tolist()
  assert "20 % (12 images) held out by content hash" in dataset.notes[0]
  assert dataset.fingerprint != open_array_record(directory, held_out=0).fingerprint
  balanced = open_dataset(
      "array_record", path=str(directory), held_out=0.2, sampling="class_balanced"
  ).splits["train"]
  assert len(balanced) == 48


def test_threads_and_other_processes_read_the_same(directory):
  source = open_array_record(directory, held_out=0.1).splits["train"]
  wanted = [source.record(i) for i in range(len(source))]
  copy = pickle.loads(pickle.dumps(source))
  order = np.random.default_rng(1).integers(0, len(source), 600).tolist()
  with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(copy.record, order)) == [wanted[i] for i in order]
  with pytest.raises(IndexError):
    source.shards.read(60)


def test_a_shard_that_goes_or_rots_later(directory, tmp_path):
  import shutil

  shutil.copytree(directory, tmp_path / "d")
  source = open_array_record(tmp_path / "d", held_out=0).splits["train"]
  first, *_, last = sorted((tmp_path / "d").glob("*.arrayrecord"))
  data = bytearray(first.read_bytes())
  data[data.index(jpeg(0)) + 9] ^= 255
  first.write_bytes(data)
  last.unlink()
  with pytest.raises(DataError, match=f"{first.name}, record 0, cannot be read"):
    source.record(0)
  assert source.record(1)["image"] == jpeg(1)
  with pytest.raises(DataError, match=f"{last.name}, record .*, cannot be read"):
    source.record(59)


@pytest.mark.parametrize("hard, works", [(3000, True), (400, False)])
def test_more_shards_than_a_process_usually_may_open(directory, hard, works):
  program = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, {hard}))
from vit_jax.data.shards import Shards
shard = {str(min(directory.glob("*.arrayrecord")))!r}
shards = Shards([shard] * 1500, [1] * 1500)
print(sum(len(shards.read(i)) > 0 for i in range(1500)))
"""
  done = subprocess.run(
      [sys.executable, "-c", program], capture_output=True, text=True,
      cwd=Path(__file__).parents[2],
  )
  if works:
    assert done.stdout.strip() == "1500", done.stderr
  else:
    assert "this system allows a process 400 files: raise the limit" in done.stderr

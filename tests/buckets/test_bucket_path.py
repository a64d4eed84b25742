"""Paths in a bucket, and what its failures say."""

import pathlib
import subprocess
import sys

from emulator import Fault
import pytest

from vit_jax import config
from vit_jax.bucket import path as bucket_path
from vit_jax.bucket.failures import BucketError, reason
from vit_jax.bucket.path import BucketPath, check, is_bucket, place
from vit_jax.checkpoint.paths import absolute
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.errors import ConfigError


def test_what_is_in_a_bucket_and_what_is_not(emulator):
  assert is_bucket("gs://b/x") and not is_bucket("/gs/b") and not is_bucket(pathlib.Path("gs:/b"))
  assert place("gs://bucket/run/") == BucketPath("gs://bucket/run") == absolute("gs://bucket/run")
  assert place("runs/a") == pathlib.Path("runs/a")
  assert str(absolute("runs/a")) == str(pathlib.Path("runs/a").absolute())
  assert str(place("gs://bucket/run").absolute().parent / "x") == "gs://bucket/x"
  with pytest.raises(ConfigError, match="is a whole bucket: name a directory in it"):
    check("gs://bucket")


@pytest.mark.parametrize("ref", ["gs://bucket/run@10", "hf:user/name", "timm:vit_tiny"])
def test_a_config_leaves_what_lies_elsewhere_alone(ref):
  assert config.load("quickstart", {"init.checkpoint": ref}).init.checkpoint == ref


@pytest.mark.parametrize("content", [b"a\r", b"a\n", b"\r\n", b"\n\r", b"\n\n\r\n", b""])
def test_every_byte_of_a_file_arrives(content, emulator, bucket, tmp_path):
  (tmp_path / "file").write_bytes(content)
  place(f"gs://{bucket}/copy").upload(tmp_path / "file")
  assert emulator.read(bucket, "copy") == content


def test_reading_writing_and_listing(emulator, bucket):
  root = place(f"gs://{bucket}/run")
  assert not root.exists() and not root.is_dir()
  (root / "a.json").write_text("é1")
  (root / "a.json").write_text("é2")
  (root / "d" / "e" / "f").write_text("3")
  emulator.put(bucket, "run/", b"")  # what Google's console makes of a new folder
  assert (root / "a.json").read_text() == "é2" and (root / "a.json").read_bytes() == "é2".encode()
  assert root.is_dir() and (root / "d").is_dir() and not (root / "a.json").is_dir()
  assert (root / "a.json").exists() and not (root / "b.json").exists()
  assert [path.name for path in root.iterdir()] == ["a.json", "d"]
  assert {name: found.size for name, found in root.below().items()} == {"a.json": 3, "d/e/f": 1}
  assert (root / "a.json").stat().length == 3 and (root / "a.json").stat().mtime > 1.7e9
  # Nothing is remembered of what somebody else may change.
  emulator.put(bucket, "run/g", b"")
  emulator.remove(bucket, "run/a.json")
  assert [path.name for path in root.iterdir()] == ["d", "g"] and not (root / "a.json").exists()
  (root / "d").rmtree()
  (root / "d").rmtree(missing_ok=True)
  (root / "g").unlink()
  (root / "g").unlink(missing_ok=True)
  for missing in (root / "d").rmtree, (root / "g").unlink, (root / "g").read_text:
    with pytest.raises(FileNotFoundError):
      missing()
  assert emulator.names(bucket) == ["run/"]


def test_a_large_object_is_read_in_pieces(emulator, bucket, monkeypatch):
  monkeypatch.setattr(bucket_path, "_BLOCK", 1000)
  content = bytes(range(256)) * 10
  emulator.put(bucket, "run/x", content)
  listed = place(f"gs://{bucket}/run").below()["x"]
  assert [len(block) for block in listed.blocks()] == [1000, 1000, 560]
  assert b"".join(listed.blocks()) == content


def test_a_bucket_that_is_not_there(emulator):
  with pytest.raises(ConfigError) as caught:
    RunDirectory("gs://nobodys-bucket/run").exists()
  assert str(caught.value) == (
      "There is no bucket gs://nobodys-bucket (404): correct its name, or make it with `gcloud"
      " storage buckets create gs://nobodys-bucket`"
  )


@pytest.mark.parametrize(
    "status, said",
    [
        (401, "has no valid credentials (401): give it a service account, run `gcloud auth"),
        (403, "access is denied (403): give this machine's account the roles storage.objectAdmin"),
        (429, "the storage service is busy or failing (429), also after many tries"),
        (503, "the storage service is busy or failing (503), also after many tries"),
    ],
)
def test_a_refusal_is_one_sentence(emulator, bucket, hasty, status, said):
  emulator.faults.append(Fault(bucket, status=status))
  with pytest.raises(ConfigError) as caught:
    RunDirectory(f"gs://{bucket}/run").exists()
  assert said in str(caught.value) and str(caught.value).startswith(f"gs://{bucket}: ")
  with pytest.raises(BucketError) as caught:
    place(f"gs://{bucket}/run/x").write_text("1")
  assert said in str(caught.value) and f"gs://{bucket}/run/x: " in str(caught.value)
  with pytest.raises(BucketError):
    place(f"gs://{bucket}/run/x").exists()  # which is not the same as no


def test_no_network(bucket, hasty, monkeypatch):
  monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
  with pytest.raises(ConfigError, match="cannot be reached: look after this machine's network"):
    RunDirectory(f"gs://{bucket}/run").exists()


def test_a_passing_fault_is_not_noticed(emulator, bucket, hasty):
  emulator.faults.append(Fault("upload", status=503, times=2))
  emulator.faults.append(Fault("GET", reset=True, times=2))
  (place(f"gs://{bucket}/run") / "x").write_text("1")
  assert (place(f"gs://{bucket}/run") / "x").read_text() == "1"


def test_errors_of_others_are_left_alone():
  assert reason(OSError(28, "No space left on device")) is None
  assert reason(ValueError("DEADLINE_EXCEEDED: Barrier timed out")) is None
  tensorstore = ValueError('PERMISSION_DENIED: Error writing "gs://b/x": HTTP response code: 403')
  assert reason(tensorstore).startswith("access is denied (403)")


def test_gcsfs_is_missing(tmp_path):
  """Said at once, with the command that mends it; and never is TensorFlow what is used instead."""
  (tmp_path / "tensorflow").mkdir()
  (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('tensorflow was used')")
  program = (
      "import sys; sys.modules['gcsfs'] = None; sys.path.insert(0, sys.argv.pop(1));"
      "from vit_jax.cli import main; main()"
  )
  verbs = (
      ("train", "--config=quickstart", "--workdir=gs://bucket/run"),
      ("status", "--workdir=gs://bucket/run"),
  )
  for verb in verbs:
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), *verb], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert " ".join(done.stderr.split()) == (
        "vit-jax: gs://bucket/run is in a bucket, and gcsfs is missing, which reaches it: pip"
        ' install "vit_jax[gcs]"'
    )

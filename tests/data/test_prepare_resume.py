"""Prepare again after a kill, with other numbers of workers, beside others; and what is refused."""

import hashlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from archives import contents, jpeg, tar
from vit_jax.data.array_record import open_array_record
from vit_jax.data.prepare.run import prepare
from vit_jax.errors import ConfigError, DataError

COUNT = 120


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
  root = tmp_path_factory.mktemp("archive")
  tar(root / "set.tar", {
      f"{'abc'[i % 3]}/{i:03d}.jpg": jpeg(i // 2, (500, 400)) if i % 17 else b"broken"
      for i in range(COUNT)
  })
  return root / "set.tar"


def options(archive, output, **more):
  return dict(
      source="tar", input=archive, output=output, short_side=64, merge=True,
      shard_bytes=200_000, say=lambda line: None
  ) | more


def files(directory):
  """Name to sha256 of everything below."""
  return {
      str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
      for path in directory.rglob("*") if path.is_file()
  }


@pytest.fixture(scope="module")
def whole(archive, tmp_path_factory):
  """What an undisturbed process alone writes."""
  output = tmp_path_factory.mktemp("whole") / "out"
  prepare(**options(archive, output))
  return files(output)


def test_two_workers_write_the_same_bytes(archive, whole, tmp_path):
  prepare(**options(archive, tmp_path / "out", workers=2))
  assert files(tmp_path / "out") == whole
  assert len([name for name in whole if name.endswith(".arrayrecord")]) > 10
  assert {"dataset.json", "rejected.csv", "train.index.npz"} == {
      name for name in whole if not name.endswith(".arrayrecord")
  }


def start(archive, output, workers):
  """The command in a process of its own, in a session so that its children can be found."""
  call = f"prepare(**{options(str(archive), str(output), workers=workers, say=None)!r})"
  return subprocess.Popen(
      [sys.executable, "-c",
       f"if __name__ == '__main__':\n  from vit_jax.data.prepare.run import prepare\n  {call}"],
      cwd=Path(__file__).parents[2], start_new_session=True, stderr=subprocess.DEVNULL,
  )


def alive(session):
  """Processes of a session that have not ended."""
  found = []
  for entry in Path("/proc").iterdir():
    if entry.name.isdigit():
      try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
      except OSError:
        continue
      if int(fields[3]) == session and fields[0] != "Z":
        found.append(int(entry.name))
  return found


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_the_middle_and_repeated(archive, whole, tmp_path, workers):
  output, partial = tmp_path / "out", tmp_path / "out.partial"
  process = start(archive, output, workers)
  deadline = time.monotonic() + 60
  while len(list(partial.glob("*.json"))) < 4:  # plan.json and three shards
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.005)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  deadline = time.monotonic() + 20
  while alive(process.pid):
    assert time.monotonic() < deadline, "workers outlive their parent"
    time.sleep(0.05)
  assert not output.exists()
  with pytest.raises(DataError, match="dataset.json is missing.*interrupted"):
    open_array_record(output, held_out=0)
  finished = sorted(partial.glob("train-*.json"))
  assert finished
  damaged = partial / json.loads(finished[0].read_text())["file"]
  before = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.arrayrecord")}
  data = bytearray(damaged.read_bytes())
  data[len(data) // 2] ^= 1
  damaged.write_bytes(data)
  lines = []
  prepare(**options(archive, output, say=lines.append))
  assert files(output) == whole and not partial.exists()
  assert f" {len(finished) - 1} of " in next(x for x in lines if "finished before" in x)
  kept = {path.stem + ".arrayrecord" for path in finished}
  assert all(
      (output / name).stat().st_mtime_ns == before[name] for name in kept - {damaged.name}
  )


def test_repeated_when_complete_and_with_other_options(archive, whole, tmp_path):
  output, lines = tmp_path / "out", []
  prepare(**options(archive, output))
  prepare(**options(archive, output, say=lines.append))
  assert "Nothing to do" in lines[-1] and files(output) == whole
  with pytest.raises(ConfigError, match="exists already and is not what this command"):
    prepare(**options(archive, output, short_side=32))
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "file").write_text("dear to me")
  with pytest.raises(ConfigError, match="exists already"):
    prepare(**options(archive, tmp_path / "mine"))
  assert (tmp_path / "mine" / "file").read_text() == "dear to me"


def test_a_partial_directory_of_another_command(archive, tmp_path):
  output = tmp_path / "out"
  tar(tmp_path / "bad.tar", {"a/1.jpg": b"x", "b/1.jpg": b"y"})
  with pytest.raises(DataError, match="every image was rejected"):
    prepare(**options(tmp_path / "bad.tar", output))
  with pytest.raises(ConfigError, match="was begun with another input or other options"):
    prepare(**options(archive, output))
  other = tmp_path / "other.partial"
  other.mkdir()
  (other / "file").write_text("")
  with pytest.raises(ConfigError, match="is not of `vit-jax prepare`"):
    prepare(**options(archive, tmp_path / "other"))


def test_two_at_once_are_refused(archive, tmp_path):
  import fcntl

  output = tmp_path / "out"
  (tmp_path / "out.partial").mkdir()
  descriptor = os.open(tmp_path / "out.partial", os.O_RDONLY)
  fcntl.flock(descriptor, fcntl.LOCK_EX)
  with pytest.raises(ConfigError, match="being written by another process"):
    prepare(**options(archive, output))
  os.close(descriptor)


def test_missing_and_truncated_shards_are_found_at_start(archive, whole, tmp_path):
  output = tmp_path / "out"
  prepare(**options(archive, output))
  dataset = open_array_record(output, held_out=0)
  assert sum(len(source) for source in dataset.splits.values()) == len(
      contents(dataset.splits["train"]))
  shard = sorted(output.glob("*.arrayrecord"))[3]
  data = shard.read_bytes()
  for spoilt, text in (
      (data[:-100], "has .* bytes and should have"), (data[:-1] + b"x", None),
      (bytes(len(data)), "holds 0 records and should hold"), (None, "is missing"),
  ):
    shard.unlink()
    if spoilt is not None:
      shard.write_bytes(spoilt)
    if text:
      with pytest.raises(DataError, match=f"the shard .*{shard.name} {text}"):
        open_array_record(output, held_out=0)
  (output / "dataset.json").write_text("{")
  with pytest.raises(DataError, match="dataset.json is damaged"):
    open_array_record(output, held_out=0)
  with pytest.raises(DataError, match="dataset.json is missing"):
    open_array_record(tmp_path, held_out=0)


def test_a_full_disk_is_said_and_then_continued(archive, whole, tmp_path):
  output = tmp_path / "out"
  call = f"prepare(**{options(str(archive), str(output), say=None)!r})"
  # Python ignores the signal of this limit, so that writing fails as on a full disk.
  done = subprocess.run(
      [sys.executable, "-c",
       "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
       f"from vit_jax.data.prepare.run import prepare\n{call}"],
      cwd=Path(__file__).parents[2], capture_output=True, text=True,
  )
  assert "DataError: cannot write" in done.stderr and "repeat the same command" in done.stderr
  assert not output.exists()
  prepare(**options(archive, output))
  assert files(output) == whole


def test_a_killed_worker_ends_it_and_it_continues(archive, whole, tmp_path):
  output, partial = tmp_path / "out", tmp_path / "out.partial"
  process = start(archive, output, 2)
  deadline = time.monotonic() + 60
  while len(list(partial.glob("train-*.json"))) < 2:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.005)
  workers = [
      pid for pid in alive(process.pid)
      if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
  ]
  os.kill(workers[0], signal.SIGKILL)
  assert process.wait(timeout=30) != 0 and not output.exists()
  prepare(**options(archive, output))
  assert files(output) == whole

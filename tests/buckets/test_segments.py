"""What is appended to on a disk, in a bucket: metrics, sessions, unreadable images."""

import json
import shutil

from emulator import Fault
import pytest

from vit_jax.bucket import segments as segments_lib
from vit_jax.bucket.path import place
from vit_jax.bucket.segments import Segments, segments
from vit_jax.data.bad_records import BadRecords
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.observe.metrics import MetricsWriter, read_metrics
from vit_jax.observe.sessions import Session, read_sessions


@pytest.fixture
def run(bucket):
  return place(f"gs://{bucket}/run")


def write(run, steps, *, resume, value):
  with MetricsWriter(run, resume_step=resume) as writer:
    for step in steps:
      writer.write(step, {"loss": value})


def test_segments_follow_each_other(emulator, bucket, run, monkeypatch):
  monkeypatch.setattr(segments_lib, "_LARGE", 100)
  for first in (0, 7, 14):
    written = Segments(run / "lines")
    for number in range(first, first + 7):
      written.write(f"{number:029d}\n")
    written.close()
  assert emulator.names(bucket) == [f"run/lines/{n:05d}.jsonl" for n in range(6)]
  emulator.put(bucket, "run/lines/notes.txt", b"mine")
  assert [path.name for path in segments(run / "lines")] == [f"{n:05d}.jsonl" for n in range(6)]
  text = "".join(path.read_text() for path in segments(run / "lines"))
  assert [int(line) for line in text.splitlines()] == [*range(21)]


def test_an_object_is_not_replaced_too_often(emulator, bucket, run):
  written = Segments(run / "lines")
  for number in range(100):
    written.write(f"{number}\n")
  assert emulator.read(bucket, "run/lines/00000.jsonl") == b"0\n"  # the first is there at once
  written.flush()
  written.flush()
  assert len(emulator.read(bucket, "run/lines/00000.jsonl").splitlines()) == 100
  assert sum("/upload/" in line and bucket in line for line in emulator.requests) == 2


def test_each_step_is_there_once_after_restarts(emulator, bucket, run, monkeypatch, capsys):
  monkeypatch.setattr(segments_lib, "_LARGE", 200)
  for resume, last in ((0, 30), (20, 35), (20, 50), (0, 10), (10, 60), (60, 65)):
    write(run, range(resume + 5, last + 1, 5), resume=resume, value=resume)
  lines = read_metrics(run)
  assert [line["step"] for line in lines] == [*range(5, 70, 5)]
  assert [line["loss"] for line in lines] == [0.0] * 2 + [10.0] * 10 + [60.0]
  assert len(emulator.names(bucket)) > 2
  assert all(name.startswith("run/metrics/") for name in emulator.names(bucket))
  assert "TensorBoard's events are left out there" in capsys.readouterr().out


def test_a_kill_while_later_lines_are_dropped(bucket, run, monkeypatch):
  """The last segments go first: what is left then is the beginning still."""
  monkeypatch.setattr(segments_lib, "_LARGE", 200)
  write(run, range(1, 31), resume=0, value=1.0)
  gone, unlink = [], type(run).unlink

  def killed(path, *arguments, **options):
    if len(gone) == 2:
      raise KeyboardInterrupt
    gone.append(path)
    unlink(path, *arguments, **options)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(type(run), "unlink", killed)
    MetricsWriter(run, resume_step=2)
  assert len(gone) == 2
  left = [line["step"] for line in read_metrics(run)]
  assert left == [*range(1, len(left) + 1)] and 2 < len(left) < 30
  write(run, range(3, 8), resume=2, value=2.0)
  assert [(line["step"], line["loss"]) for line in read_metrics(run)] == [
      (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 2.0), (7, 2.0)
  ]


def test_what_was_flushed_survives_a_kill(emulator, bucket, run):
  """Before a step is saved every line is flushed: they would not be written again."""
  writer = MetricsWriter(run, resume_step=0)
  for step in range(1, 11):
    writer.write(step, {"loss": 1.0})
  writer.flush()
  writer.write(11, {"loss": 1.0})  # and here it is killed
  write(run, range(11, 13), resume=10, value=2.0)
  assert [(line["step"], line["loss"]) for line in read_metrics(run)] == (
      [(step, 1.0) for step in range(1, 11)] + [(11, 2.0), (12, 2.0)]
  )


def test_a_torn_line_goes(emulator, bucket, run):
  emulator.put(bucket, "run/metrics/00000.jsonl", b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
  assert [line["step"] for line in read_metrics(run)] == [1]
  write(run, [2], resume=1, value=3.0)
  assert [line["step"] for line in read_metrics(run)] == [1, 2]


def test_a_run_that_is_copied_goes_on(emulator, bucket, run, tmp_path):
  """From a bucket to a disk and from a disk to a bucket, into the middle of what it has."""
  write(run, range(1, 31), resume=0, value=0.0)
  local = tmp_path / "run"
  for name in emulator.names(bucket):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(emulator.read(bucket, name))
  write(local, range(21, 41), resume=20, value=1.0)
  assert {path.name for path in local.iterdir()} == {"metrics", "metrics.jsonl", "tensorboard"}
  expected = [(step, float(step > 20)) for step in range(1, 41)]
  assert [(line["step"], line["loss"]) for line in read_metrics(local)] == expected
  shutil.rmtree(local / "tensorboard")
  for path in (path for path in local.rglob("*") if path.is_file()):
    emulator.put(bucket, f"back/{path.relative_to(local)}", path.read_bytes())
  back = run.parent / "back"
  write(back, range(16, 51), resume=15, value=2.0)
  expected = [(step, 2.0 * (step > 15)) for step in range(1, 51)]
  assert [(line["step"], line["loss"]) for line in read_metrics(back)] == expected


def test_a_bucket_that_refuses_is_one_paragraph(emulator, bucket, run):
  with pytest.raises(CheckpointError) as caught:
    with MetricsWriter(run, resume_step=0) as writer:
      emulator.faults.append(Fault(f"POST .*{bucket}", status=403))
      writer.write(1, {"loss": 1.0})
  text = str(caught.value)
  assert text.startswith(f"The metrics in gs://{bucket}/run cannot be written: access is denied")
  assert "storage.objectAdmin" in text and text.endswith("restore access there")


def test_who_lost_the_run_leaves_the_metrics_alone(emulator, bucket, run):
  with pytest.raises(ConfigError), MetricsWriter(run, resume_step=0) as writer:
    writer.write(1, {"loss": 1.0})
    writer.write(2, {"loss": 1.0})
    write(run, [2], resume=1, value=2.0)  # another process, from step 1 on
    raise ConfigError("lost")
  assert [(line["step"], line["loss"]) for line in read_metrics(run)] == [(1, 1.0), (2, 2.0)]


def test_sessions(emulator, bucket, run):
  Session(run, step=0, chips=8, processes=2).seen(12, last=True)
  Session(run, step=10, chips=8, processes=2)
  assert [session["step"] for session in read_sessions(str(run))] == [12, 10]
  assert emulator.names(bucket) == ["run/sessions.json"]


def test_unreadable_images_are_listed_once(emulator, bucket, run, monkeypatch):
  monkeypatch.setattr(segments_lib, "_LARGE", 150)
  file = run / "bad_records.1.jsonl"
  for names in (("a", "b", "a"), ("b", "c", "d", "e", "f")):
    bad = BadRecords(file)
    for name in names:
      bad.add(name, "truncated")
    bad.close()
  assert bad.count == 6 == BadRecords(file).count
  listed = [emulator.read(bucket, name) for name in emulator.names(bucket)]
  rows = [json.loads(line) for line in b"".join(listed).splitlines()]
  assert [row["name"] for row in rows] == list("abcdef") and len(listed) == 2
  assert emulator.names(bucket)[0] == "run/bad_records.1/00000.jsonl"

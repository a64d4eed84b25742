"""Counting what could not be read."""

import json
import resource
import signal
import threading

import pytest

from vit_jax.data.bad_records import BadRecords
from vit_jax.errors import DataError


def test_each_is_counted_and_named_once(capsys):
  bad = BadRecords()
  assert bad.count == 0

  def work():
    for i in range(50):
      bad.add(f"image{i % 5}.jpg", "truncated")

  threads = [threading.Thread(target=work) for _ in range(4)]
  [t.start() for t in threads]
  [t.join() for t in threads]
  assert bad.count == 5
  err = capsys.readouterr().err
  assert sorted(err.splitlines()) == [
      f"warning: unreadable image: image{i}.jpg: truncated" for i in range(5)
  ]


def test_the_list_is_continued_by_the_next_process(tmp_path, capsys):
  file = tmp_path / "bad_records.jsonl"
  first = BadRecords(file)
  assert not file.exists()
  first.add("a.jpg", "truncated"), first.add("b\u00fc\n.jpg", "the file is empty")
  with file.open("a") as torn:
    torn.write('{"name": "c.j')
  capsys.readouterr()
  again = BadRecords(file)
  assert again.count == 2
  again.add("a.jpg", "truncated"), again.add("c.jpg", "truncated")
  assert capsys.readouterr().err == "warning: unreadable image: c.jpg: truncated\n"
  assert [json.loads(line) for line in file.read_text().splitlines()] == [
      {"name": "a.jpg", "reason": "truncated"},
      {"name": "b\u00fc\n.jpg", "reason": "the file is empty"},
      {"name": "c.jpg", "reason": "truncated"},
  ]
  file.write_text("no json\n")
  with pytest.raises(DataError, match="bad_records.jsonl is damaged"):
    BadRecords(file)


@pytest.mark.parametrize("epoch, batches", [(10**6, 100), (25, 3)])
def test_a_share_is_judged_after_enough_examples(epoch, batches):
  watch = BadRecords(max_fraction=0.01).watch(epoch=epoch)
  unreadable = [("a.jpg", "torn"), ("b.jpg", "empty")]
  for _ in range(batches - 1):
    watch.add(10, unreadable)
  with pytest.raises(DataError) as caught:
    watch.add(10, unreadable)
  assert str(caught.value).startswith(
      f"{2 * batches} of {10 * batches} images were unreadable, more than "
      "config.input.max_bad_fraction=0.01 allows; the first: a.jpg: torn; b.jpg: empty. "
  )


def test_a_share_at_the_limit_is_allowed():
  watch = BadRecords(max_fraction=0.1).watch(epoch=10)
  for _ in range(300):
    watch.add(10, [("a.jpg", "torn")])
  with pytest.raises(DataError, match="301 of 3001"):
    watch.add(1, [("a.jpg", "torn")])


def test_what_a_full_disk_took_of_a_line_is_taken_back(tmp_path, capsys):
  """Else the next would follow in the same line, which nobody could read."""
  file = tmp_path / "bad_records.jsonl"
  bad = BadRecords(file)
  bad.add("a.jpg", "truncated")
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, hard))
    bad.add("b.jpg", "truncated")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)
  assert "cannot be written: File too large" in capsys.readouterr().err
  assert BadRecords(file).count == 1
  bad.add("c.jpg", "truncated")
  assert BadRecords(file).count == 3


def test_a_disk_that_takes_no_list_ends_nothing(tmp_path, capsys):
  """It is said once, and what waited is written with the next."""
  file = tmp_path / "run" / "bad_records.jsonl"
  bad = BadRecords(file)
  bad.add("a.jpg", "truncated"), bad.add("b.jpg", "truncated")
  said = capsys.readouterr().err
  assert said.count(f"the list of unreadable images, {file}, cannot be written: No such file") == 1
  file.parent.mkdir()
  bad.add("c.jpg", "truncated")
  file.parent.rename(tmp_path / "away")
  bad.add("d.jpg", "truncated")
  (tmp_path / "away").rename(file.parent)
  bad.close()
  names = [json.loads(line)["name"] for line in file.read_text().splitlines()]
  assert names == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]

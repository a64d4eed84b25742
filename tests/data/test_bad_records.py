"""Counting what could not be read."""

import threading

from vit_jax.data.bad_records import BadRecords


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

"""A run whose disk stops to answer says where it hangs, and ends."""

import os
import time

import pytest

from killer import Life, last_step, logged
from test_folder_run import TINY, write_folder


def command(photos, *more):
  return (
      "--config=folder:scratch", f"--config.input.path={photos}", *TINY, "--config.model.depth=1",
      "--config.total=100000 steps", "--config.log_every=1 steps",
      "--config.evaluate.every=0 steps", *more,
  )


def freeze(photos) -> None:
  """Who opens a pipe to read waits for a writer: so does a file on a server that has gone."""
  for photo in photos.glob("*/*.png"):
    photo.unlink()
    os.mkfifo(photo)


def test_a_frozen_input_ends_the_run_and_is_shown(tmp_path):
  photos, run = write_folder(tmp_path / "photos"), tmp_path / "run"
  with Life(command(photos, "--config.watchdog=5 seconds"), run) as life:
    assert life.until(logged(3)), life.ended()
    freeze(photos)
    frozen = time.monotonic()
    [ended] = life.ended()
  assert ended.code == 75 and time.monotonic() - frozen < 30
  assert "process 0 hangs in the input, at step " in ended.err
  assert f"at step {last_step(run)}: nothing ended within 5 s (config.watchdog)" in ended.err
  # Stacks of all threads: the loop's, and that of who decodes.
  for text in (ended.err, (run / "logs" / "hang.0.txt").read_text()):
    assert "in _loop" in text and "in train" in text and "in _read" in text


@pytest.mark.multiprocess
def test_each_of_two_processes_says_where_it_hangs(tmp_path):
  photos, run = write_folder(tmp_path / "photos"), tmp_path / "run"
  with Life(command(photos, "--config.watchdog=5 seconds"), run, processes=2) as life:
    assert life.until(logged(3)), life.ended()
    freeze(photos)
    ended = life.ended()
  assert [process.code for process in ended] == [75, 75], ended
  # The first that ends may take the other with it.
  assert any(f"process {index} hangs in " in process.err for index, process in enumerate(ended))

"""Saves to a directory that really cannot be written, by a clock that passes when told to."""

import types

import jax
import pytest
from small_saves import block, make, unblock

from vit_jax.checkpoint import retry
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.retry import Saves
from vit_jax.errors import WriteFailed


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass only when told to, or slept."""
  now = [100.0]

  def sleep(seconds):
    now[0] += seconds

  fake = types.SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
  monkeypatch.setattr(retry, "time", fake)
  return now


@pytest.fixture
def checkpoints(tmp_path):
  with Checkpoints(tmp_path / "here" / "checkpoints", keep_latest=9) as found:
    yield found


def save(saves, step):
  state = make(step, 1)
  return saves.save(step, params=state, training=state, meta={"examples_seen": step})


def finish(saves):
  """Waits for the save in the background, and has it told."""
  saves._checkpoints._commit_thread.join()
  saves.check()


def test_a_save_that_fails_is_tried_again_ever_later(checkpoints, clock, capsys):
  saves = Saves(checkpoints, retries=5)
  assert save(saves, 1)
  finish(saves)
  assert capsys.readouterr().err == "" and saves.due(True, last=False)
  block(checkpoints.directory)
  for failures in (1, 2, 3):
    assert save(saves, 10 * failures)
    said = capsys.readouterr().err
    pause = 2 ** (failures - 1)
    assert said.startswith(f"warning: Saving step {10 * failures} to ") and "(ENOTDIR)" in said
    assert f"Training goes on; the save is tried again in {pause} s (retry {failures} of 5)" in said
    assert not saves.due(True, last=False) and saves.due(False, last=True)
    clock[0] += pause - 0.1
    assert not saves.due(True, last=False)
    clock[0] += 0.1
    assert saves.due(False, last=False)
  unblock(checkpoints.directory)
  assert save(saves, 31)
  finish(saves)
  assert capsys.readouterr().err == "warning: Saving succeeded again, after 3 failures.\n"
  assert not saves.due(False, last=False) and checkpoints.steps() == [1, 31]


def test_a_limit_and_a_success_that_begins_the_count_anew(checkpoints, clock):
  saves = Saves(checkpoints, retries=1)
  save(saves, 1)
  finish(saves)
  for first in (10, 20):
    block(checkpoints.directory)
    save(saves, first)
    unblock(checkpoints.directory)
    save(saves, first + 1)
    finish(saves)
  block(checkpoints.directory)
  save(saves, 30)
  with pytest.raises(WriteFailed, match="then repeat the command. It was tried 2 times"):
    save(saves, 31)
  unblock(checkpoints.directory)
  assert checkpoints.steps() == [1, 11, 21]


def test_the_last_save_is_tried_until_it_is_there(checkpoints, clock):
  saves = Saves(checkpoints, retries=9)
  save(saves, 1)
  assert saves.settled()
  block(checkpoints.directory)
  save(saves, 2)
  began = clock[0]
  for attempt in range(4):
    assert not saves.settled()
    if attempt == 3:
      unblock(checkpoints.directory)
    save(saves, 2)
  assert clock[0] - began == 1 + 2 + 4 + 8
  assert saves.settled() and checkpoints.steps() == [1, 2]


def test_the_first_save_of_all_may_fail(checkpoints, clock, capsys):
  saves = Saves(checkpoints, retries=3)
  checkpoints.directory.parent.write_text("in the way")
  assert save(saves, 1) and "(ENOTDIR)" in capsys.readouterr().err and not saves.settled()
  checkpoints.directory.parent.unlink()
  assert save(saves, 2) and saves.settled() and checkpoints.steps() == [2]


def test_without_retries_the_first_failure_is_the_last(checkpoints, clock):
  saves = Saves(checkpoints, retries=0)
  save(saves, 1)
  finish(saves)
  block(checkpoints.directory)
  with pytest.raises(WriteFailed, match="restore access there, then repeat the command$"):
    save(saves, 2)
  unblock(checkpoints.directory)


def test_what_comes_before_a_save_is_part_of_it(checkpoints, clock):
  """A step is not saved whose metrics may be lost."""
  refused = [True]

  def before():
    if refused[0]:
      raise WriteFailed("The metrics cannot be written")

  saves = Saves(checkpoints, retries=3, before=before)
  assert save(saves, 1) and not checkpoints.saving and not saves.settled()
  refused[0] = False
  assert save(saves, 1) and saves.settled() and checkpoints.steps() == [1]


def test_slow_saves_are_said(checkpoints, clock, capsys, monkeypatch):
  saves = Saves(checkpoints, retries=3)
  wait = checkpoints.wait

  def slow():
    clock[0] += 5.0
    wait()

  save(saves, 1)
  monkeypatch.setattr(checkpoints, "check", lambda: None)
  for passed, said in ((59.0, ""), (2.0, "taken 60 s"), (58.0, ""), (2.0, "taken 120 s")):
    clock[0] += passed
    saves.check()
    assert said in capsys.readouterr().err
  monkeypatch.setattr(checkpoints, "wait", slow)
  save(saves, 2)
  assert "Training waited 5.0 s at step 2" in capsys.readouterr().err
  assert saves.settled() and jax.process_count() == 1


def test_what_orbax_still_tells_at_the_end_does_not_hide_the_failure(tmp_path, monkeypatch, capsys):
  """A save may fail at once and in Orbax's threads, too, which raises it again when it is closed."""

  def close():
    raise ValueError("PERMISSION_DENIED: Error writing gs://bucket/1")

  with pytest.raises(WriteFailed, match="the run ends"):
    with Checkpoints(tmp_path / "checkpoints", keep_latest=9) as found:
      assert save(Saves(found, retries=0), 1)
      found.wait()
      monkeypatch.setattr(found._orbax, "close", close)
      raise WriteFailed("the run ends")
  assert "checkpoints: " in capsys.readouterr().err

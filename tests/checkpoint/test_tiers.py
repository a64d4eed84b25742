"""A fast local tier and the run's own directory: what is lost in one is found in the other."""

import json
import shutil
import threading
import time

import jax
import numpy as np
import pytest
from small_saves import block, make, save, unblock

from vit_jax.checkpoint import copier, manifest, retry
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.tiers import Tiers
from vit_jax.errors import CheckpointError, ConfigError, NonFiniteError, PeerLost


class Run:
  """The two directories of one run; each start gets the token of the one before."""

  def __init__(self, path):
    self.remote, self.place = path / "run" / "checkpoints", path / "fast"
    self.token, self.retries, self.more = None, 3, {}
    self.remote.parent.mkdir()

  def start(self, *, confirm_owner=lambda: None) -> Tiers:
    remote = Checkpoints(self.remote, **({"keep_latest": 2} | self.more))
    tiers = Tiers(
        remote, str(self.place), token=self.token, retries=self.retries,
        confirm_owner=confirm_owner,
    )
    self.token = tiers.token
    return tiers

  @property
  def local(self):
    (found,) = self.place.iterdir()
    return found

  def steps(self) -> tuple[list[int], list[int]]:
    """Committed steps in the local tier and in the remote."""
    return tuple(
        sorted(int(path.parent.name) for path in place.glob("[0-9]*/manifest.json")
               if path.parent.name.isdigit())
        for place in (self.local, self.remote)
    )


@pytest.fixture
def run(tmp_path):
  return Run(tmp_path)


def settle(tiers):
  tiers.finish(complete=False)


def said_until_retry(capsys) -> str:
  """What was said when a copy has failed for the first time, or after 20 s."""
  deadline, said = time.monotonic() + 20, ""
  while "retry 1 of 3" not in said and time.monotonic() < deadline:
    time.sleep(0.02)
    said += capsys.readouterr().err
  return said


def restored(tiers, step) -> bool:
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), make(step, 1)
  )
  params, training, meta = tiers.restore(step, params=wanted, training=wanted)
  np.testing.assert_array_equal(params["kernel"], make(step, 1)["kernel"])
  np.testing.assert_array_equal(training["kernel"], make(step, 1)["kernel"])
  return meta["examples_seen"] == step


def damage(directory) -> None:
  path = max(directory.glob("params/d/*"), key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def saved(run, *steps) -> None:
  with run.start() as tiers:
    for step in steps:
      assert save(tiers, step, 1)
      tiers.wait()
      settle(tiers)


def test_a_save_lies_in_both_with_the_same_bytes(run):
  run.more = {"keep_latest": 2}
  with run.start() as tiers:
    assert tiers.recover() == ([], None)
    for step in (1, 2, 3):
      assert save(tiers, step, 1)
    settle(tiers)
    assert run.steps() == ([3], [2, 3]) and tiers.latest() == 3
  assert manifest.read(run.local / "3") == manifest.read(run.remote / "3")
  assert manifest.problems(run.remote / "3") == []
  with Checkpoints(run.remote, read_only=True) as checkpoints:
    np.testing.assert_array_equal(
        checkpoints.restore_params(3)[0]["kernel"], make(3, 1)["kernel"]
    )


@pytest.mark.parametrize("lost", ["nothing", "the machine", "a bit here", "a bit there", "both"])
def test_the_newest_good_of_both_is_restored(run, lost):
  saved(run, 1, 2)
  if lost == "the machine":
    shutil.rmtree(run.place)
  if lost in ("a bit here", "both"):
    damage(run.local / "2")
  if lost in ("a bit there", "both"):
    damage(run.remote / "2")
  with run.start() as tiers:
    notes, step = tiers.recover()
    assert step == (1 if lost == "both" else 2)
    assert restored(tiers, step)
    assert len(notes) == {"nothing": 0, "both": 2}.get(lost, 1)
    said = "There is no" if lost == "the machine" else "is damaged"
    assert all(said in note for note in notes)
    assert save(tiers, step + 1, 1)
    settle(tiers)
    assert run.steps()[0] == [step + 1] and step + 1 in run.steps()[1]
  with run.start() as tiers:
    assert tiers.recover() == ([], step + 1)


def test_a_step_that_a_kill_left_uncopied_is_restored_and_copied(run):
  saved(run, 1, 2)
  shutil.rmtree(run.remote / "2")  # as if killed before
  (run.remote / "2.committed").unlink()
  with run.start() as tiers:
    assert tiers.recover() == ([], 2)
    assert restored(tiers, 2)
    settle(tiers)
    assert run.steps() == ([2], [1, 2])
  (run.remote / "2" / manifest.NAME).unlink()  # in the middle of the copy
  (run.remote / "2.committed").unlink()
  with run.start() as tiers:
    (note,), step = tiers.recover()
    assert step == 2 and "whose save never finished" in note
    settle(tiers)
    assert manifest.problems(run.remote / "2") == []


def test_a_step_that_is_gone_here_and_good_there_is_said_once(run):
  saved(run, 1, 2)
  shutil.rmtree(run.local / "2")
  with run.start() as tiers:
    (note,), step = tiers.recover()
    assert step == 2 and "Step 2 was committed" in note and "is gone" in note
    tiers.forget_gone()
  with run.start() as tiers:
    assert tiers.recover(strict=True) == ([], 2)


def test_a_step_that_is_gone_there_and_good_here_is_copied_again(run):
  saved(run, 1, 2)
  shutil.rmtree(run.remote / "2")
  with run.start() as tiers:
    (note,), step = tiers.recover(strict=True)  # no older one is used
    assert step == 2 and "Step 2 was committed" in note
    tiers.forget_gone()
    settle(tiers)
    assert run.steps() == ([2], [1, 2]) and (run.remote / "2.committed").exists()


def test_a_manifest_that_is_lost_there_is_copied_again(run):
  saved(run, 1, 2)
  (run.remote / "2" / manifest.NAME).unlink()
  with run.start() as tiers:
    (note,), step = tiers.recover()
    assert step == 2 and "manifest.json cannot be read" in note
    settle(tiers)
    assert run.steps() == ([2], [1, 2]) and manifest.problems(run.remote / "2") == []


def test_lost_is_what_was_damaged_in_either(run):
  saved(run, 1)
  with run.start() as tiers:
    assert not tiers.is_lost()
    (run.local / "1" / "manifest.json").write_text("x")
    assert tiers.local.recover().step is None
    assert tiers.is_lost()


@pytest.mark.parametrize("tier", ["local", "remote"])
def test_strict_refuses_what_is_damaged_in_either(run, tier):
  saved(run, 1, 2)
  damage(getattr(run, tier) / "2")
  with run.start() as tiers:
    with pytest.raises(CheckpointError, match=f"newest in {getattr(run, tier)}"):
      tiers.recover(strict=True)


def test_a_tier_that_the_run_was_continued_without_is_deleted(run):
  """Its newest step may lie beyond where the run went on: metrics in between would be lost."""
  saved(run, 1, 2)
  shutil.rmtree(run.remote / "2")  # never copied
  (run.remote / "2.committed").unlink()
  old = run.token
  for token in (None, old + 1):
    before = shutil.copytree(run.place, run.place.with_name("kept"), dirs_exist_ok=True)
    run.token = token
    with run.start() as tiers:
      notes, step = tiers.recover()
      assert step == 1 and notes[0].startswith(f"Deleted {run.local}: ")
    shutil.rmtree(run.place)
    before.rename(run.place)
  run.token = old
  with run.start() as tiers:
    assert tiers.recover() == ([], 2)
  run.token = old  # run.json was not written any more
  with run.start() as tiers:
    assert tiers.recover().step == 2


def test_copying_is_tried_again_while_saves_go_on(run, capsys):
  saved(run, 1)
  with run.start() as tiers:
    tiers.recover()
    settle(tiers)
    block(run.remote)
    for step in (2, 3, 4):
      assert save(tiers, step, 1)
      tiers.wait()
      tiers.check()
    said = said_until_retry(capsys)
    assert f"warning: Copying {run.local}/2 to {run.remote}/2 failed: " in said
    assert "(ENOTDIR)" in said
    assert "Training goes on; the copy is tried again in 1 s (retry 1 of 3)" in said
    unblock(run.remote)
    settle(tiers)
    assert "Copying succeeded again, after" in capsys.readouterr().err
    assert run.steps() == ([4], [3, 4])


@pytest.mark.parametrize("other, said_of_it", [(False, "(ENOENT)"), (True, "taken its place")])
def test_a_directory_that_has_gone_is_not_made_anew(run, capsys, other, said_of_it):
  """Where a disk was unmounted lies another one."""
  saved(run, 1)
  away = run.remote.parent.with_name("away")
  with run.start() as tiers:
    run.remote.parent.rename(away)
    if other:
      run.remote.parent.mkdir()
    assert save(tiers, 2, 1)
    tiers.wait()
    said = said_until_retry(capsys)
    assert said_of_it in said and not run.remote.exists()
    if other:
      run.remote.parent.rmdir()
    away.rename(run.remote.parent)
    settle(tiers)
    assert run.steps() == ([2], [1, 2])


def test_copying_that_stays_impossible_ends_the_run(run):
  run.retries = 1
  with pytest.raises(CheckpointError, match="then repeat the command. It was tried 2 times"):
    with run.start() as tiers:
      tiers.recover()
      settle(tiers)
      run.remote.write_text("in the way")
      assert save(tiers, 1, 1)
      settle(tiers)
  assert sorted(int(path.parent.name) for path in run.local.glob("*/manifest.json")) == [1]
  run.remote.unlink()
  with run.start() as tiers:
    assert tiers.recover() == ([], 1)
    settle(tiers)
    assert run.steps() == ([1], [1])


def test_what_the_near_disk_damaged_is_not_copied(run, capsys):
  with run.start() as tiers:
    assert save(tiers, 1, 1)
    settle(tiers)
    block(run.remote)
    assert save(tiers, 2, 1)
    tiers.wait()
    damage(run.local / "2")
    unblock(run.remote)
    with pytest.raises(CheckpointError, match="Step 2, the last, was damaged in .* repeat the com"):
      settle(tiers)
    said = capsys.readouterr().err
    assert f"{run.local / '2'} is damaged (params/d/" in said and "2.corrupt now" in said
    local, remote = run.steps()
    assert remote == [1] and 2 not in local
    assert save(tiers, 3, 1)
    settle(tiers)
    assert run.steps() == ([3], [1, 3])


def test_another_owner_stops_the_copying(run):
  def confirm():
    if (run.remote / "1").exists() and (run.remote / "1" / "params").exists():
      raise ConfigError("another process has taken over")

  with pytest.raises(ConfigError, match="taken over"):
    with run.start(confirm_owner=confirm) as tiers:
      assert save(tiers, 1, 1)
      settle(tiers)
  assert not (run.remote / "1" / manifest.NAME).exists()


def test_a_complete_run_leaves_nothing_on_the_near_disk(run):
  with run.start() as tiers:
    assert save(tiers, 1, 1)
    tiers.finish(complete=True)
    assert list(run.place.iterdir()) == []
  assert manifest.problems(run.remote / "1") == []


def test_a_near_disk_that_cannot_be_written(run):
  run.place.write_text("a file")
  with pytest.raises(ConfigError, match=f"checkpoint.local: {run.place}/run-.*cannot be written"):
    run.start()


def test_a_bucket_is_no_near_disk(run):
  with pytest.raises(ConfigError, match="config.checkpoint.local is 'gs://b/x': name a directory"):
    Tiers(
        Checkpoints(run.remote), "gs://b/x", token=None, retries=1, confirm_owner=lambda: None
    )


def test_a_tier_without_tokens_is_set_aside(run):
  saved(run, 1, 2)
  (run.local / "tokens").write_text("[")
  with run.start() as tiers:
    (note,), step = tiers.recover()
    assert step == 2 and "nobody knows whose it is" in note
  names = sorted(path.name for path in run.place.iterdir())
  assert len(names) == 2 and names[1] == names[0] + ".unknown"
  assert (run.place / names[1] / "2" / manifest.NAME).exists()


@pytest.mark.parametrize(
    "error", [PeerLost("gone"), NonFiniteError("broken")], ids=["a peer", "the numbers"]
)
def test_after_an_error_the_copy_is_left_to_the_next_start(run, error):
  """But where training broke there may be none."""
  began = time.monotonic()
  with pytest.raises(type(error), match=str(error)):
    with run.start() as tiers:
      run.remote.write_text("in the way")
      assert save(tiers, 1, 1)
      tiers.wait()
      threading.Timer(0.5, run.remote.unlink).start()
      raise error
  waited = time.monotonic() - began > 1
  if isinstance(error, NonFiniteError):
    assert waited and manifest.exists(run.remote / "1")
  time.sleep(0.5)


def test_the_tokens_are_those_of_the_last_start(run):
  saved(run, 1)
  first = run.token
  saved(run, 2)
  assert json.loads((run.local / "tokens").read_text()) == [first, run.token]


def test_a_copy_with_another_byte_is_not_committed(run, monkeypatch, capsys):
  copied, copy_file = [], copier._copy_file

  def wrongly(source, target):
    copy_file(source, target)
    if not copied and target.parent.name == "d":
      copied.append(target)
      content = bytearray(target.read_bytes())
      content[0] ^= 1
      target.write_bytes(content)

  monkeypatch.setattr(copier, "_copy_file", wrongly)
  with run.start() as tiers:
    assert save(tiers, 1, 1)
    settle(tiers)
    assert len(copied) == 1 and run.steps() == ([1], [1])
  assert f"d/{copied[0].name} is not as in the original (EIO)" in capsys.readouterr().err
  assert manifest.problems(run.remote / "1") == []


def test_a_slow_copy_fills_no_near_disk(run, monkeypatch):
  """Or memory, where that is the near disk: what is saved meanwhile goes by the policy."""
  reading, goes_on, copy_file = threading.Event(), threading.Event(), copier._copy_file

  def slowly(source, target):
    reading.set()
    assert goes_on.wait(20)
    copy_file(source, target)

  monkeypatch.setattr(copier, "_copy_file", slowly)
  with run.start() as tiers:
    assert save(tiers, 1, 1)
    assert reading.wait(20)
    for step in range(2, 7):
      assert save(tiers, step, 1)
      tiers.wait()
      assert run.steps()[0] == sorted({1, step - 1, step})
    goes_on.set()
    settle(tiers)
    assert run.steps() == ([6], [5, 6])


def test_while_nothing_can_be_copied_the_near_disk_holds_what_the_policy_keeps(run):
  run.retries = 9
  with run.start() as tiers:
    run.remote.write_text("in the way")
    for step in range(1, 7):
      assert save(tiers, step, 1)
      tiers.wait()
    deadline = time.monotonic() + 20
    while len(list(run.local.glob("*/manifest.json"))) > 2 and time.monotonic() < deadline:
      time.sleep(0.02)
    assert sorted(int(p.parent.name) for p in run.local.glob("*/manifest.json")) == [5, 6]
    run.remote.unlink()
    settle(tiers)
    assert run.steps() == ([6], [5, 6])


def test_a_slow_copy_is_said(run, monkeypatch, capsys):
  monkeypatch.setattr(retry, "_SLOW", 0.1)
  copy_file = copier._copy_file

  def slowly(source, target):
    time.sleep(0.3)
    copy_file(source, target)

  monkeypatch.setattr(copier, "_copy_file", slowly)
  with run.start() as tiers:
    assert save(tiers, 1, 1)
    tiers.wait()
    time.sleep(0.2)
    tiers.check()
    settle(tiers)
  assert "A copy has taken 0 s so far" in capsys.readouterr().err

"""Checkpoints in a bucket: Orbax writes through TensorStore, everything else through gcsfs."""

import json
import shutil

from emulator import Fault
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.bucket.failures import BucketError
from vit_jax.bucket.path import BucketPath, place
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.retention import Policy
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.checkpoint.tiers import Tiers
from vit_jax.cli import main
from vit_jax.errors import CheckpointError, ConfigError


@pytest.fixture
def directory(bucket):
  return place(f"gs://{bucket}/run/checkpoints")


def tree(step):
  return {"kernel": jnp.arange(64, dtype=jnp.float32).reshape(8, 8) + step}


def save(checkpoints, step, **metrics):
  meta = {"config": {}, "examples_seen": step, "metrics": metrics, "versions": {}}
  begun = checkpoints.save(step, params=tree(step), training={"ema": tree(-step)}, meta=meta)
  checkpoints.wait()
  return begun


def restored(checkpoints, step):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=device)}
  params, training, meta = checkpoints.restore(step, params=wanted, training={"ema": wanted})
  np.testing.assert_array_equal(params["kernel"], tree(step)["kernel"])
  np.testing.assert_array_equal(training["ema"]["kernel"], tree(-step)["kernel"])
  return meta["examples_seen"] == step


def steps_in(emulator, bucket):
  """The names of directories; marks are there of the steps with a manifest, and of no other."""
  names = emulator.names(bucket, "run/checkpoints/")
  found = {name.split("/")[2] for name in names}
  marks = {name for name in found if name.endswith(".committed")}
  steps = {name for name in found if f"run/checkpoints/{name}/manifest.json" in names}
  assert marks == {f"{name}.committed" for name in steps if name.isdigit()}
  return sorted(found - marks)


def some_data(emulator, bucket, step):
  """An object with arrays of a step."""
  return emulator.names(bucket, f"run/checkpoints/{step}/params/d/")[0]


def test_saved_kept_and_restored(emulator, bucket, directory):
  with Checkpoints(directory, keep_latest=2, best_metric="accuracy") as checkpoints:
    assert checkpoints.steps() == [] and checkpoints.recover() == ([], None)
    for step, accuracy in ((10, 0.9), (20, 0.1), (30, 0.2), (40, 0.3)):
      assert save(checkpoints, step, accuracy=accuracy)
    assert not save(checkpoints, 40)
    assert checkpoints.steps() == [10, 30, 40] and checkpoints.best() == 10
    assert restored(checkpoints, 40)
  assert steps_in(emulator, bucket) == ["10", "30", "40"]
  assert "run/checkpoints/40/commit_success.txt" in emulator.names(bucket)
  with Checkpoints(directory, read_only=True) as checkpoints:
    np.testing.assert_array_equal(
        checkpoints.restore_params(30)[0]["kernel"], tree(30)["kernel"]
    )
    np.testing.assert_array_equal(checkpoints.restore_ema(10)[0]["kernel"], tree(-10)["kernel"])
    assert checkpoints.verify(10) == []


def test_a_flipped_byte_in_any_object_is_found(emulator, bucket, directory):
  with Checkpoints(directory) as checkpoints:
    save(checkpoints, 10)
    for name in emulator.names(bucket, "run/checkpoints/10/"):
      before = emulator.read(bucket, name)
      emulator.flip(bucket, name, len(before) // 2)
      (problem,) = checkpoints.verify(10)
      assert name.removeprefix("run/checkpoints/10/") in problem
      emulator.put(bucket, name, before)
    assert checkpoints.verify(10) == [] and restored(checkpoints, 10)


def test_training_goes_on_below_a_damaged_step(emulator, bucket, directory):
  with Checkpoints(directory, keep_latest=3) as checkpoints:
    for step in (10, 20, 30):
      save(checkpoints, step)
  emulator.flip(bucket, some_data(emulator, bucket, 30))
  emulator.remove(bucket, some_data(emulator, bucket, 20))
  with Checkpoints(directory, read_only=True) as checkpoints:
    with pytest.raises(CheckpointError, match="30 is damaged: params/d/.*its content has changed"):
      checkpoints.restore_params(30)
  damaged = emulator.names(bucket, "run/checkpoints/30/")
  with Checkpoints(directory, keep_latest=3) as checkpoints:
    notes, step = checkpoints.recover()
    assert step == 10 and len(notes) == 2 and notes[0].endswith(f"moved to {directory}/30.corrupt.")
    assert checkpoints.steps() == [10] and restored(checkpoints, 10)
    assert save(checkpoints, 15) and save(checkpoints, 30) and checkpoints.steps() == [10, 15, 30]
    emulator.flip(bucket, some_data(emulator, bucket, 30))
    assert checkpoints.recover().step == 15 and save(checkpoints, 20)
  assert steps_in(emulator, bucket) == ["10", "15", "20", "20.corrupt", "30.corrupt", "30.corrupt2"]
  kept = emulator.names(bucket, "run/checkpoints/30.corrupt/")
  assert kept == [name.replace("/30/", "/30.corrupt/") for name in damaged]


def test_a_local_tier_is_copied_to_the_bucket(emulator, bucket, directory, tmp_path):
  """What others read is the bucket; a lost machine takes nothing with it."""
  token = None
  for lost in (False, False, True):
    with Checkpoints(directory, keep_latest=2) as remote:
      more = {"token": token, "retries": 1, "confirm_owner": lambda: None}
      with Tiers(remote, str(tmp_path), **more) as tiers:
        token = tiers.token
        notes, step = tiers.recover()
        assert not notes and (step is None or restored(tiers, step))
        assert save(tiers, (step or 0) + 1)
        tiers.finish(complete=False)
        assert emulator.names(bucket, f"run/checkpoints/{(step or 0) + 1}/manifest.json")
    if lost:
      shutil.rmtree(tmp_path)
      tmp_path.mkdir()
  with Checkpoints(directory, read_only=True) as checkpoints:
    assert checkpoints.steps() == [2, 3] and checkpoints.verify(3) == []
    np.testing.assert_array_equal(checkpoints.restore_params(3)[0]["kernel"], tree(3)["kernel"])
  with Checkpoints(directory, keep_latest=2) as checkpoints:
    assert checkpoints.recover().step == 3 and restored(checkpoints, 3) and save(checkpoints, 4)


@pytest.mark.parametrize("moment", ["copying", "deleting"])
def test_an_interrupted_quarantine_is_repeated(emulator, bucket, directory, moment, monkeypatch):
  with Checkpoints(directory, keep_latest=3) as checkpoints:
    save(checkpoints, 10)
    save(checkpoints, 20)
  emulator.flip(bucket, some_data(emulator, bucket, 20))
  method, original = {
      "copying": ("copy_to", BucketPath.copy_to), "deleting": ("rmtree", BucketPath.rmtree)
  }[moment]
  calls = iter(range(100))

  def interrupted(path, *arguments):
    if next(calls) == {"copying": 5, "deleting": 0}[moment]:
      raise KeyboardInterrupt
    return original(path, *arguments)

  with monkeypatch.context() as patch, Checkpoints(directory) as checkpoints:
    patch.setattr(BucketPath, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
      checkpoints.recover()
  with Checkpoints(directory) as checkpoints:
    assert checkpoints.recover().step == 10 and save(checkpoints, 15)
  assert steps_in(emulator, bucket) == ["15", "20.corrupt"]


def test_what_was_never_committed_goes(emulator, bucket, directory):
  with Checkpoints(directory, keep_latest=3) as checkpoints:
    save(checkpoints, 10)
    save(checkpoints, 20)
    emulator.remove(bucket, "run/checkpoints/20/manifest.json")
    emulator.remove(bucket, "run/checkpoints/20.committed")
    emulator.put(bucket, "run/checkpoints/30/params/d/x", b"1")  # Orbax was killed in the middle
    assert checkpoints.steps() == [10]
    notes, step = checkpoints.recover()
    assert step == 10 and len(notes) == 2 and steps_in(emulator, bucket) == ["10"]
    assert save(checkpoints, 11) and checkpoints.steps() == [10, 11]


def test_a_kill_in_the_first_save_leaves_an_empty_place(emulator, bucket, directory):
  emulator.put(bucket, "run/checkpoints/5/params/d/x", b"1")
  with Checkpoints(directory) as checkpoints:
    (note,), step = checkpoints.recover(strict=True)
    assert step is None and "whose save never finished" in note and not checkpoints.is_lost()
    checkpoints.forget_gone()
    assert save(checkpoints, 5) and steps_in(emulator, bucket) == ["5"]


def test_a_lost_manifest_is_damage(emulator, bucket, directory):
  with Checkpoints(directory, keep_latest=3) as checkpoints:
    save(checkpoints, 10)
    save(checkpoints, 20)
    emulator.remove(bucket, "run/checkpoints/20/manifest.json")
    (note,), step = checkpoints.recover()
    assert step == 10 and "manifest.json cannot be read" in note and "20.corrupt" in note
    assert save(checkpoints, 20) and steps_in(emulator, bucket) == ["10", "20", "20.corrupt"]
    emulator.flip(bucket, some_data(emulator, bucket, 20))
    assert checkpoints.recover().step == 10  # what was set aside before stays as it is
    assert steps_in(emulator, bucket) == ["10", "20.corrupt", "20.corrupt2"]
    assert "run/checkpoints/20.corrupt/manifest.json" not in emulator.names(bucket)


def test_a_lost_step_is_said(emulator, bucket, directory):
  with Checkpoints(directory, keep_latest=3) as checkpoints:
    save(checkpoints, 10)
    save(checkpoints, 20)
    for name in emulator.names(bucket, "run/checkpoints/20/"):
      emulator.remove(bucket, name)
    with pytest.raises(CheckpointError, match="Step 20, the newest .* is gone, and --strict"):
      checkpoints.recover(strict=True)
    (note,), step = checkpoints.recover()
    assert step == 10 and note == f"Step 20 was committed in {directory}, and is gone."
    checkpoints.forget_gone()
    assert save(checkpoints, 20) and steps_in(emulator, bucket) == ["10", "20"]


def test_a_bucket_that_does_not_answer_is_no_damage(emulator, bucket, directory, hasty):
  with Checkpoints(directory) as checkpoints:
    save(checkpoints, 10)
    emulator.faults.append(Fault(f"GET .*{bucket}.*_METADATA", status=503))
    with pytest.raises(BucketError, match=r"busy or failing \(503\)"):
      checkpoints.verify(10)
    with pytest.raises(CheckpointError, match=r"cannot be put in order: .*busy or failing \(503\)"):
      checkpoints.recover()
    emulator.faults.clear()
    assert checkpoints.recover() == ([], 10)
  assert steps_in(emulator, bucket) == ["10"]


def test_a_refused_save_is_one_paragraph(emulator, bucket, directory):
  with Checkpoints(directory) as checkpoints:
    save(checkpoints, 10)
    emulator.faults.append(Fault(f"POST .*{bucket}.*/params/", status=403))
    with pytest.raises(CheckpointError) as caught:
      save(checkpoints, 20)
    emulator.faults.clear()
    text = str(caught.value)
    assert text.startswith(f"Saving step 20 to {directory}/20 failed: access is denied (403): give")
    assert "Step 10 is there still" in text and checkpoints.steps() == [10]
    checkpoints.recover()
    assert save(checkpoints, 20)


def test_nothing_is_committed_by_who_lost_the_run(emulator, bucket, directory):
  def refuse():
    raise ConfigError("another process has it")

  checkpoints = Checkpoints(directory, confirm_owner=refuse)
  with pytest.raises(ConfigError, match="another process has it"):
    save(checkpoints, 10)
  checkpoints.close()
  assert checkpoints.steps() == []


def test_listed_verified_and_pruned_by_the_command(emulator, bucket, directory, capsys):
  RunDirectory(directory.parent).write_info({
      "requested": {}, "classes": [], "fingerprint": "f", "total_steps": 40, "environment": {},
      "best_metric": None, "retention": Policy(2).to_json(),
  })
  with Checkpoints(directory, keep_latest=9) as checkpoints:
    for step in (10, 20, 30):
      save(checkpoints, step)
  emulator.put(bucket, "run/checkpoints/40/params/d/x", b"12345")

  def verb(action, *options):
    with pytest.raises(SystemExit) as left:
      main(["checkpoint", action, f"gs://{bucket}/run", *options])
    return left.value.code, capsys.readouterr().out

  rows = json.loads(verb("list", "--json")[1])
  assert [(row["step"], row["state"]) for row in rows] == [
      (40, "uncommitted"), (30, "committed"), (20, "committed"), (10, "committed")
  ]
  assert rows[0]["bytes"] == 5 and rows[1]["bytes"] > 100
  name = some_data(emulator, bucket, 30)
  emulator.flip(bucket, name)
  code, out = verb("verify")
  assert code == 5 and f"step 30: DAMAGED: {name.partition('/30/')[2]}: its" in out
  emulator.flip(bucket, name)
  assert verb("prune")[0] == 0 and steps_in(emulator, bucket) == ["20", "30", "40"]
  assert "run/.lock" not in emulator.names(bucket)

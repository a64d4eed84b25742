"""Saving, retention, restoring; on eight host devices."""

import json
import pathlib
import threading
import time

from etils import epath
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from small_saves import listed

from vit_jax.checkpoint import manifest
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.retention import Every
from vit_jax.errors import CheckpointError, ConfigError, NonFiniteError, WriteFailed


def make_state(seed=0):
  """Parameters and an optimizer state with the containers that optax uses."""
  keys = jax.random.split(jax.random.key(seed))
  params = {
      "head": {
          "kernel": jax.random.normal(keys[0], (16, 8)), "bias": jnp.ones(8, jnp.bfloat16),
      },
      "class_token": jax.random.normal(keys[1], (1, 1, 16)),
  }
  mask = {"head": {"kernel": True, "bias": False}, "class_token": False}
  optimizer = optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.masked(optax.add_decayed_weights(0.1), mask),
      optax.adamw(1e-3),
  )
  training = {
      "step": jnp.int32(seed), "opt_state": optimizer.init(params), "ema": None,
      "objective_state": {},
  }
  return params, training


def make_meta(step, **metrics):
  return {
      "config": {"seed": 1}, "examples_seen": 2**40 + step, "metrics": metrics, "versions": {},
  }


def save(checkpoints, step, **metrics):
  params, training = make_state(step)
  meta = make_meta(step, **metrics)
  return checkpoints.save(step, params=params, training=training, meta=meta)


def abstract(tree, sharding):
  return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
  )


def on_one_device():
  return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def assert_equal(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  jax.tree.map(np.testing.assert_array_equal, left, right)


def test_restores_the_same_bits_structure_and_meta(tmp_path):
  params, training = make_state(3)
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    assert checkpoints.steps() == [] and checkpoints.latest() is None
    assert checkpoints.recover() == ([], None)
    meta = make_meta(3, accuracy=0.5, loss=float("nan"))
    assert checkpoints.save(3, params=params, training=training, meta=meta)
    checkpoints.wait()
    assert checkpoints.steps() == [3] and checkpoints.verify(3) == []
    device = on_one_device()
    restored = checkpoints.restore(
        3, params=abstract(params, device), training=abstract(training, device)
    )
  assert_equal(restored[0], params)
  assert_equal(restored[1], training)
  assert restored[2] == make_meta(3, accuracy=0.5, loss=None)


def test_restores_onto_another_mesh(tmp_path):
  mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
  params, training = make_state()
  params["head"]["kernel"] = jax.device_put(
      params["head"]["kernel"], NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
  )
  other = NamedSharding(
      jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,)), PartitionSpec()
  )
  target = abstract(params, other)
  kernel = NamedSharding(other.mesh, PartitionSpec(None, "fsdp"))
  target["head"]["kernel"] = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=kernel)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, params=params, training=training, meta=make_meta(1))
    restored, _, _ = checkpoints.restore(
        1, params=target, training=abstract(training, other)
    )
  assert restored["head"]["kernel"].sharding == kernel
  assert restored["class_token"].sharding == other
  assert_equal(restored, params)


def test_a_reader_takes_the_parameters_alone(tmp_path):
  params, _ = make_state(4)
  with Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 4)
  with Checkpoints(tmp_path, read_only=True) as reader:
    restored, meta = reader.restore_params(4)
    with pytest.raises(ValueError, match="reading only"):
      save(reader, 5)
  assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(restored))
  assert restored["head"]["bias"].dtype == jnp.bfloat16
  assert_equal(restored, params)
  assert meta["examples_seen"] == 2**40 + 4


def test_a_reader_of_nothing(tmp_path):
  reader = Checkpoints(tmp_path / "absent", read_only=True, best_metric="accuracy")
  assert (reader.steps(), reader.latest(), reader.best()) == ([], None, None)
  with pytest.raises(CheckpointError, match="7 is no committed .*steps: none"):
    reader.restore_params(7)
  assert not (tmp_path / "absent").exists()


def test_donating_the_state_during_a_save_does_not_change_what_is_saved(tmp_path):
  add_one = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  params = {"kernel": jnp.full((512, 1024), 10.0)}
  training = {"trace": jnp.full((512, 1024), 20.0)}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, params=params, training=training, meta=make_meta(1))
    for _ in range(20):
      params, training = add_one(params), add_one(training)
    target = abstract((params, training), on_one_device())
    restored = checkpoints.restore(1, params=target[0], training=target[1])
  assert np.all(restored[0]["kernel"] == 10) and np.all(restored[1]["trace"] == 20)


def test_retention_keeps_the_newest_and_the_best(tmp_path):
  accuracy = {1: 0.1, 2: 0.9, 3: 0.9, 4: 0.3, 5: float("nan")}
  with Checkpoints(tmp_path, keep_latest=2, best_metric="accuracy") as checkpoints:
    for step, value in accuracy.items():
      assert save(checkpoints, step, accuracy=value)
    assert save(checkpoints, 6)
    checkpoints.wait()
    assert checkpoints.best() == 2
    assert checkpoints.steps() == [2, 5, 6] and checkpoints.latest() == 6
  assert listed(tmp_path) == ["2", "5", "6"]


def test_saving_a_committed_step_again_does_nothing(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    assert save(checkpoints, 1) and not save(checkpoints, 1)
    manifest = (tmp_path / "1" / "manifest.json").stat().st_mtime_ns
  with Checkpoints(tmp_path) as checkpoints:
    assert not save(checkpoints, 1)
  assert (tmp_path / "1" / "manifest.json").stat().st_mtime_ns == manifest


def test_a_save_below_the_newest_step_is_an_error(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 20)
    with pytest.raises(CheckpointError, match="refused to save step 10 .* later step, 20"):
      save(checkpoints, 10)


def test_leaves_that_do_not_fit_are_named(tmp_path):
  params, training = make_state()
  with Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
    wanted = {
        "head": {"kernel": jnp.ones((16, 10)), "bias": jnp.ones(8)}, "pre_logits": jnp.ones(3),
    }
    device = on_one_device()
    with pytest.raises(CheckpointError) as caught:
      checkpoints.restore(
          1, params=abstract(wanted, device), training=abstract(training, device)
      )
  text = str(caught.value)
  assert "params/pre_logits: missing in the checkpoint" in text
  assert "params/class_token: only in the checkpoint" in text
  assert "params/head/kernel: float32[16, 8] in the checkpoint, float32[16, 10] in this" in text
  assert "params/head/bias: bfloat16[8] in the checkpoint, float32[8] in this run" in text


def test_meta_is_as_it_was_at_the_call(tmp_path):
  meta = make_meta(1)
  params, training = make_state()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, params=params, training=training, meta=meta)
    meta["config"]["seed"] = 2
  manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
  assert manifest["config"] == {"seed": 1} and manifest["step"] == 1
  hashed = set(manifest["files"])
  present = {
      path.relative_to(tmp_path / "1").as_posix()
      for path in (tmp_path / "1").rglob("*")
      if path.is_file()
  }
  assert hashed == present - {"manifest.json"}


def test_what_a_manifest_says(tmp_path):
  began = time.time()
  with Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 7)
  said = json.loads((tmp_path / "7" / "manifest.json").read_text())
  assert set(said) == {
      "step", "time", "trees", "files", "manifest_sha256", "config", "examples_seen", "metrics",
      "versions",
  }
  assert began <= said["time"] <= time.time()
  assert said["trees"]["params"] == {
      "class_token": [[1, 1, 16], "float32"], "head/bias": [[8], "bfloat16"],
      "head/kernel": [[16, 8], "float32"],
  }
  moments = [path for path in said["trees"]["training"] if path.endswith("mu/head/kernel")]
  assert len(moments) == 1 and "step" in said["trees"]["training"]


def rewrite(directory, change):
  """Changes a manifest as if it had been written so."""
  content = manifest.read(epath.Path(directory))
  files = content.pop("files")
  change(content)
  manifest.write(epath.Path(directory), content)
  assert manifest.read(epath.Path(directory))["files"] == files


def test_an_older_manifest_is_read(tmp_path):
  params, training = make_state(4)
  with Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 4)
  rewrite(tmp_path / "4", lambda content: [content.pop(name) for name in ("time", "trees")])
  with Checkpoints(tmp_path, keep_every=Every(seconds=9.0)) as checkpoints:
    assert checkpoints.recover() == ([], 4) and checkpoints.verify(4) == []
    device = on_one_device()
    restored = checkpoints.restore(
        4, params=abstract(params, device), training=abstract(training, device)
    )
    assert_equal(restored[0], params)
    assert save(checkpoints, 5)
    checkpoints.wait()
    assert checkpoints.steps() == [5]


def test_what_was_not_written_whole_is_not_restored(tmp_path):
  """Every file is as it was written, but they are not the arrays that were to be saved."""
  with Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 4)
  rewrite(tmp_path / "4", lambda content: content["trees"]["params"].update(lost=[[3], "float32"]))
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.verify(4) == []
    with pytest.raises(CheckpointError, match="holds other params than its manifest.json lists"):
      checkpoints.restore_params(4)


def test_the_first_of_each_interval_stays(tmp_path):
  with Checkpoints(tmp_path, keep_every=Every(steps=10)) as checkpoints:
    for step in (4, 8, 12, 16, 20, 24):
      save(checkpoints, step)
    checkpoints.wait()
    assert checkpoints.steps() == [12, 20, 24]


def test_a_relative_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with Checkpoints(pathlib.Path("here")) as checkpoints:
    save(checkpoints, 1)
  assert (tmp_path / "here" / "1" / "manifest.json").exists()


def test_hashing_keeps_no_training_waiting(tmp_path, monkeypatch):
  """`save` returns while it has not begun; another thread does it."""
  threads, may_go_on, measured = [], threading.Event(), manifest._measured

  def waits(file):
    threads.append(threading.current_thread().name)
    assert may_go_on.wait(20)
    return measured(file)

  monkeypatch.setattr(manifest, "_measured", waits)
  with Checkpoints(tmp_path) as checkpoints:
    assert save(checkpoints, 1) and not threads
    checkpoints.check()
    assert checkpoints.saving and checkpoints.steps() == []
    may_go_on.set()
    checkpoints.wait()
    assert checkpoints.steps() == [1]
  assert threads and not any("Main" in name for name in threads)


def test_a_directory_in_the_place_of_the_runs_is_not_written(tmp_path):
  """What is mounted there is gone, and something has made the directory anew."""
  run, away = tmp_path / "run", tmp_path / "away"
  with Checkpoints(run / "checkpoints") as checkpoints:
    save(checkpoints, 1)
    checkpoints.wait()
    run.rename(away)
    with pytest.raises(WriteFailed, match="No such file or directory .ENOENT."):
      save(checkpoints, 2)
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(WriteFailed, match="another directory has taken its place .ENOENT."):
      save(checkpoints, 2)
    assert not any((run / "checkpoints").iterdir())
    (run / "checkpoints").rmdir()
    run.rmdir()
    away.rename(run)
    assert save(checkpoints, 2)
    checkpoints.wait()
    assert checkpoints.steps() == [2]


def test_what_cannot_be_deleted_keeps_nothing_else(tmp_path, capsys):
  with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
    save(checkpoints, 1)
    checkpoints.wait()
    (tmp_path / "1" / "manifest.json").unlink()
    (tmp_path / "1" / "manifest.json" / "in the way").mkdir(parents=True)
    for step in (2, 3):
      save(checkpoints, step)
      checkpoints.wait()
    assert checkpoints.steps() == [1, 3]
  assert "warning: an old checkpoint was not deleted: " in capsys.readouterr().err


def test_what_ended_a_run_is_not_replaced_by_a_save_that_fails(tmp_path, capsys):
  with pytest.raises(NonFiniteError, match="it broke"):
    with Checkpoints(tmp_path) as checkpoints:
      save(checkpoints, 1)
      checkpoints.wait()
      save(checkpoints, 2)
      (tmp_path / "2" / "manifest.json.tmp").mkdir(parents=True, exist_ok=True)
      raise NonFiniteError("it broke")
  assert "warning: Saving step 2 to " in capsys.readouterr().err


def test_who_may_no_longer_write_neither_begins_nor_removes(tmp_path):
  """Another process has taken over, and may be writing the same step."""
  owned = [True]

  def confirm():
    if not owned[0]:
      raise ConfigError("another has it")

  with Checkpoints(tmp_path, confirm_owner=confirm) as checkpoints:
    save(checkpoints, 1)
    checkpoints.wait()
    owned[0] = False
    with pytest.raises(ConfigError, match="another has it"):
      save(checkpoints, 2)
    assert not (tmp_path / "2").exists()
    owned[0] = True
    save(checkpoints, 2)
    owned[0] = False
    with pytest.raises(ConfigError, match="another has it"):
      checkpoints.wait()
    assert (tmp_path / "2" / "params").exists() and checkpoints.steps() == [1]


def test_a_step_that_was_not_written_whole_is_not_committed(tmp_path, monkeypatch):
  """Orbax says that it has finished, and an array is not among what it lists."""
  finished = ocp.CheckpointManager.wait_until_finished

  def forgetful(manager):
    finished(manager)
    for path in tmp_path.glob("2/params/_METADATA"):
      content = json.loads(path.read_text())
      content["tree_metadata"].popitem()
      path.write_text(json.dumps(content))

  monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", forgetful)
  with Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
    checkpoints.wait()
    save(checkpoints, 2)
    with pytest.raises(WriteFailed, match="not written whole"):
      checkpoints.wait()
    assert checkpoints.steps() == [1]

import time

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vit_jax.checkpoint.late_writes import Gate, make_handler
from vit_jax.checkpoint.manager import Checkpoints

TREE = {"a": jnp.arange(1000.0), "b": {"c": jnp.ones((3, 4))}}


@pytest.fixture
def gate():
  return Gate()


@pytest.fixture
def manager(tmp_path, gate):
  with ocp.CheckpointManager(tmp_path, item_handlers=make_handler(gate)) as found:
    yield found


def save(manager, step):
  assert manager.save(step, args=ocp.args.PyTreeSave(TREE))


def test_nothing_is_written_before_save_is_through(tmp_path, monkeypatch):
  begun, seen = ocp.CheckpointManager.save, []

  def slowly(self, step, **more):
    result = begun(self, step, **more)
    time.sleep(0.3)
    seen.append({path.name for path in tmp_path.rglob("*") if path.is_file()})
    return result

  monkeypatch.setattr(ocp.CheckpointManager, "save", slowly)
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    assert checkpoints.save(1, params=TREE, training=TREE, meta={})
  assert seen == [{"_CHECKPOINT_METADATA"}]  # by the thread that trains
  restored = ocp.PyTreeCheckpointer().restore(tmp_path / "checkpoints" / "1" / "params")
  np.testing.assert_array_equal(restored["a"], TREE["a"])  # Orbax alone reads it
  np.testing.assert_array_equal(restored["b"]["c"], TREE["b"]["c"])


def test_the_gate_opens_also_after_an_error_and_stands_open(gate, manager):
  with pytest.raises(KeyError), gate:
    save(manager, 1)
    raise KeyError
  manager.wait_until_finished()
  save(manager, 2)
  manager.wait_until_finished()
  assert manager.all_steps() == [1, 2]

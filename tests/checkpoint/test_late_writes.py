import time

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vit_jax.checkpoint.late_writes import Gate, make_handler

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


def test_nothing_is_written_before_the_gate_opens(tmp_path, gate, manager):
  with gate:
    save(manager, 1)
    time.sleep(0.3)
    assert [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert not [path for path in tmp_path.rglob("default/*")]
  manager.wait_until_finished()
  restored = ocp.PyTreeCheckpointer().restore(tmp_path / "1" / "default")  # Orbax alone reads it
  np.testing.assert_array_equal(restored["a"], TREE["a"])
  np.testing.assert_array_equal(restored["b"]["c"], TREE["b"]["c"])


def test_the_gate_opens_also_after_an_error_and_stands_open(gate, manager):
  with pytest.raises(KeyError), gate:
    save(manager, 1)
    raise KeyError
  manager.wait_until_finished()
  save(manager, 2)
  manager.wait_until_finished()
  assert manager.all_steps() == [1, 2]

"""Two processes that share a directory of checkpoints."""

import os
import socket
import subprocess
import sys

import pytest
from small_saves import listed

from vit_jax.checkpoint.processes import _who

WORK = """
import pathlib, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.preemption import StopSignal
from vit_jax.errors import CheckpointError

directory, me = pathlib.Path(sys.argv[3]), jax.process_index()
mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
rows = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
state = {"kernel": jax.make_array_from_callback((8, 3), sharding, lambda index: rows[index])}
target = {"kernel": jax.ShapeDtypeStruct((8, 3), np.float32, sharding=sharding)}

def save(step):
  meta = {"config": {}, "examples_seen": step, "metrics": {"a": -step}, "versions": {}}
  return checkpoints.save(step, params=state, training=state, meta=meta)

checkpoints = Checkpoints(directory, keep_latest=2, best_metric="a")
assert checkpoints.recover().step is None
for step in (1, 2, 3, 4):
  assert save(step)
  assert not save(step)
checkpoints.wait()
jax.experimental.multihost_utils.sync_global_devices("saved")
assert checkpoints.steps() == [1, 3, 4], checkpoints.steps()
jax.experimental.multihost_utils.sync_global_devices("seen")
if me == 0:
  path = next((directory / "4" / "params" / "d").iterdir())
  path.write_bytes(b"x" + path.read_bytes()[1:])
try:
  checkpoints.restore(4, params=target, training=target)
  raise AssertionError("damage not seen")
except CheckpointError as error:
  assert ("is damaged" in str(error)) == (me == 0)
notes, step = checkpoints.recover()
assert step == 3 and len(notes) == (1 - me)
params, training, meta = checkpoints.restore(3, params=target, training=target)
for shard in training["kernel"].addressable_shards:
  np.testing.assert_array_equal(shard.data, rows[shard.index])
assert meta["examples_seen"] == 3
assert save(4)
checkpoints.close()
with StopSignal() as stop:
  assert not stop.at(5)
"""


@pytest.mark.multiprocess
def test_process_0_decides_and_the_others_follow(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  processes = [
      subprocess.Popen(
          [sys.executable, "-c", WORK, address, str(index), str(tmp_path)],
          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
          env={**os.environ, "XLA_FLAGS": ""},
      )
      for index in range(2)
  ]
  said = [process.communicate(timeout=90)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
  assert listed(tmp_path) == ["1", "3", "4", "4.corrupt"]


ABSENT = """
import sys, time
import jax
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(sys.argv[1], num_processes=3, process_id=int(sys.argv[2]))
from vit_jax.checkpoint.processes import meet
from vit_jax.errors import PeerLost

meet("the start", seconds=30)
if jax.process_index() != 1:
  try:
    meet("the save of step 7", seconds=2)
    raise AssertionError("nobody was missed")
  except PeerLost as error:
    assert error.exit_code == 75
    said = str(error)
  assert "process 1 did not come within 2 s to 'the save of step 7 (1)'" in said, said
else:
  time.sleep(4)
jax.distributed.shutdown()
"""


@pytest.mark.multiprocess
def test_who_does_not_come_to_a_barrier_is_named():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  processes = [
      subprocess.Popen(
          [sys.executable, "-c", ABSENT, address, str(index)], env={**os.environ, "XLA_FLAGS": ""},
          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      )
      for index in range(3)
  ]
  said = [process.communicate(timeout=90)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(said)


@pytest.mark.parametrize("said, who", [
    ("DEADLINE_EXCEEDED: Barrier timed out. Id: b 1::0.\n# of tasks that reached the barrier: 1/3.\n"
     "The first task at the barrier: 0. Some timed out task names:\n2\n1\n\n\nRPC: /xla",
     "processes 1, 2 did not come"),
    ("Some timed out task names:\n/job:jax_worker/replica:0/task:12\n", "process 12 did not come"),
    ("INTERNAL: Barrier failed because: task is set to ERROR: Task 2 heartbeat timeout.\n\nRPC: /x",
     "the processes could not come (INTERNAL: Barrier failed because: task is set to ERROR: Task 2 "
     "heartbeat timeout.)"),
], ids=["two", "a long name", "another error"])
def test_who_is_missing_is_read_from_the_error(said, who):
  assert _who(said) == who

"""Files really are flipped, cut, removed and added, processes killed, the disk full."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_saves import listed, make, save

from vit_jax.checkpoint import manifest
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.errors import CheckpointError


def files_of(directory):
  return sorted(path for path in directory.rglob("*") if path.is_file())


def flip(path, position, mask=1):
  content = bytearray(path.read_bytes())
  content[position] ^= mask
  path.write_bytes(content)


def restore(checkpoints, step):
  state = make(step, 4)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  target = {"kernel": jax.ShapeDtypeStruct((4, 1024), jnp.float32, sharding=device)}
  params, training, meta = checkpoints.restore(step, params=target, training=target)
  np.testing.assert_array_equal(params["kernel"], state["kernel"])
  np.testing.assert_array_equal(training["kernel"], state["kernel"])
  assert meta["examples_seen"] == step


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
  """Steps 10 and 20."""
  directory = tmp_path_factory.mktemp("pristine")
  with Checkpoints(directory, keep_latest=2) as checkpoints:
    save(checkpoints, 10, 4)
    save(checkpoints, 20, 4)
  return directory


@pytest.fixture
def directory(pristine, tmp_path):
  return pathlib.Path(shutil.copytree(pristine, tmp_path / "checkpoints"))


def test_a_flipped_bit_in_any_file_is_found_and_named(directory):
  dice = random.Random(0)
  files = files_of(directory / "20")
  assert len(files) > 10
  with Checkpoints(directory, read_only=True) as checkpoints:
    for path in files:
      for _ in range(8):
        position, mask = dice.randrange(path.stat().st_size), 1 << dice.randrange(8)
        flip(path, position, mask)
        (problem,) = checkpoints.verify(20)
        assert path.relative_to(directory / "20").as_posix() in problem
        with pytest.raises(CheckpointError, match="20 is damaged: "):
          checkpoints.restore_params(20)
        flip(path, position, mask)
    assert checkpoints.verify(20) == []
    restore(checkpoints, 20)


def test_truncated_missing_and_extra_files_are_named(directory):
  short, absent = sorted((directory / "20" / "params" / "d").iterdir())[0], "_METADATA"
  with short.open("r+b") as file:
    file.truncate(10)
  (directory / "20" / "params" / absent).unlink()
  (directory / "20" / "training" / "d" / "extra").write_text("")
  with Checkpoints(directory, read_only=True) as checkpoints:
    problems = "\n".join(checkpoints.verify(20))
    with pytest.raises(CheckpointError, match="missing; .*not in the manifest; .*10 bytes"):
      restore(checkpoints, 20)
  assert "params/_METADATA: missing" in problems
  assert "training/d/extra: not in the manifest" in problems
  assert f"params/d/{short.name}: 10 bytes instead of " in problems


def test_training_goes_on_below_a_damaged_step(directory):
  for path in files_of(directory / "20"):
    flip(path, 0)
  with Checkpoints(directory, keep_latest=2) as checkpoints:
    notes, step = checkpoints.recover()
    assert step == 10 and checkpoints.steps() == [10]
    assert len(notes) == 1 and "Step 20 is damaged" in notes[0] and "20.corrupt" in notes[0]
    restore(checkpoints, 10)
    assert save(checkpoints, 15, 4)
    assert save(checkpoints, 20, 4)
    checkpoints.wait()
    assert checkpoints.steps() == [15, 20]
    flip(files_of(directory / "20")[3], 0)
    assert checkpoints.recover().step == 15  # Orbax's own view of the steps follows.
    assert save(checkpoints, 18, 4)
  assert listed(directory) == ["15", "18", "20.corrupt", "20.corrupt2"]


def test_strict_goes_on_from_no_older_step(directory):
  damaged = files_of(directory / "20")[3:6]
  for path in damaged:
    flip(path, 0)
  with Checkpoints(directory, keep_latest=2) as checkpoints:
    with pytest.raises(CheckpointError, match="Step 20, the newest .* --strict") as caught:
      checkpoints.recover(strict=True)
    for path in damaged:
      assert path.relative_to(directory / "20").as_posix() in str(caught.value)
    assert checkpoints.steps() == [10, 20]
    for path in damaged:
      flip(path, 0)
    assert checkpoints.recover(strict=True) == ([], 20)


def test_without_any_good_step(directory):
  for step in ("10", "20"):
    (directory / step / "params" / "_METADATA").unlink()
  with Checkpoints(directory) as checkpoints:
    notes, step = checkpoints.recover()
    assert step is None and len(notes) == 2 and checkpoints.steps() == []
    assert save(checkpoints, 1, 4)


def test_what_was_never_committed_goes(directory):
  (directory / "20.committed").unlink()
  (directory / "20" / "manifest.json").unlink()
  (directory / "30.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
  (directory / "notes.txt").write_text("mine")
  with Checkpoints(directory) as checkpoints:
    assert checkpoints.steps() == [10] and checkpoints.latest() == 10
    notes, step = checkpoints.recover()
    assert step == 10 and len(notes) == 2
    assert listed(directory) == ["10", "notes.txt"]
    assert save(checkpoints, 11, 4)


@pytest.mark.parametrize("strict", [False, True])
def test_a_lost_manifest_is_damage(directory, strict):
  """Not the end of an interrupted save: of a single step all would be lost without a word."""
  (directory / "20" / "manifest.json").unlink()
  with Checkpoints(directory) as checkpoints:
    assert checkpoints.steps() == [10]
    with pytest.raises(CheckpointError, match="20 is damaged: .*manifest.json cannot be read"):
      checkpoints.restore_params(20)
    if strict:
      with pytest.raises(CheckpointError, match="Step 20, the newest .*manifest.json cannot be"):
        checkpoints.recover(strict=True)
      assert (directory / "20" / "params").exists()
      return
    (note,), step = checkpoints.recover()
    assert step == 10 and "manifest.json cannot be read" in note and "20.corrupt" in note
    assert save(checkpoints, 20, 4)
  assert listed(directory) == ["20", "20.corrupt"]


def test_a_step_without_its_manifest_takes_no_other_ones_place(directory, capsys):
  with Checkpoints(directory, keep_latest=2) as checkpoints:
    assert checkpoints.saved().keys() == {10, 20}
    (directory / "20" / "manifest.json").unlink()
    save(checkpoints, 30, 4)
    checkpoints.wait()
    assert checkpoints.steps() == [10, 30]
    assert "Step 20 has disappeared" in capsys.readouterr().err
    (note,), step = checkpoints.recover()  # though below what is good
    assert step == 30 and "20.corrupt" in note
  assert listed(directory) == ["10", "20.corrupt", "30"]


def test_a_lost_step_is_said(directory):
  shutil.rmtree(directory / "20")
  with Checkpoints(directory, keep_latest=2) as checkpoints:
    with pytest.raises(CheckpointError, match="Step 20, the newest .*, is gone, and --strict"):
      checkpoints.recover(strict=True)
    (note,), step = checkpoints.recover()
    assert step == 10 and note == f"Step 20 was committed in {directory}, and is gone."
    assert checkpoints.recover() == ([note], 10)  # until it was said
    checkpoints.forget_gone()
    assert checkpoints.recover(strict=True) == ([], 10) and save(checkpoints, 20, 4)
  assert listed(directory) == ["10", "20"]


def test_all_lost_is_no_new_directory(directory):
  for step in ("10", "20"):
    shutil.rmtree(directory / step)
  with Checkpoints(directory) as checkpoints:
    for _ in range(2):
      notes, step = checkpoints.recover()
      assert len(notes) == 2 and step is None and checkpoints.is_lost()


def test_steps_without_a_mark_get_one(directory):
  """As after a kill between manifest and mark, and in runs of versions that knew no marks."""
  for step in ("10", "20"):
    (directory / f"{step}.committed").unlink()
  with Checkpoints(directory, keep_latest=2) as checkpoints:
    assert checkpoints.steps() == [10, 20] and checkpoints.recover() == ([], 20)
  assert listed(directory) == ["10", "20"]


@pytest.mark.parametrize("moment", ["marked", "unmarked", "renamed"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_kill_while_a_step_is_set_aside(directory, moment, lost):
  """It stays damaged, and is said to be, at the next start."""
  flip(files_of(directory / "20" / "params")[0], 0)
  if lost:
    (directory / "20" / "manifest.json").unlink()
  if moment == "unmarked" and not lost:
    (directory / "20.committed").unlink()
  if moment == "renamed":
    (directory / "20").rename(directory / "20.corrupt")
    if not lost:
      (directory / "20.committed").unlink()
  with Checkpoints(directory) as checkpoints:
    notes, step = checkpoints.recover()
    assert step == 10 and len(notes) == (0 if moment == "renamed" and not lost else 1)
    checkpoints.forget_gone()
    assert checkpoints.recover() == ([], 10)
  assert listed(directory) == ["10", "20.corrupt"]


def test_a_kill_while_a_step_is_deleted(directory):
  """Half of it is no step; before the manifest goes it is one still."""
  (directory / "20.committed").unlink()
  with Checkpoints(directory, keep_latest=2) as checkpoints:
    assert checkpoints.recover() == ([], 20)
    (directory / "20.committed").unlink()
    (directory / "20" / "manifest.json").unlink()
    (note,), step = checkpoints.recover(strict=True)
    assert step == 10 and "whose save never finished" in note
  assert listed(directory) == ["10"]


def test_a_disk_without_room_for_the_mark_takes_the_step(tmp_path):
  (tmp_path / "10.committed").mkdir()
  with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
    save(checkpoints, 10, 4)
    checkpoints.wait()
    assert checkpoints.steps() == [10]
    restore(checkpoints, 10)


def test_a_vanished_directory_is_a_checkpoint_error(directory):
  checkpoints = Checkpoints(directory)
  save(checkpoints, 30, 4)
  checkpoints.wait()
  shutil.rmtree(directory)
  directory.write_text("in the way")
  with pytest.raises(CheckpointError, match=r"step 31 .*ENOTDIR|step 31 .*EEXIST"):
    save(checkpoints, 31, 4)
    checkpoints.wait()
  checkpoints.close()


def start(code, *arguments):
  return subprocess.Popen(
      [sys.executable, "-c", code, *map(str, arguments)],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
  )


SAVE_FOR_EVER = """
import sys
import numpy as np
from small_saves import make, save
from vit_jax.checkpoint.manager import Checkpoints

with Checkpoints(sys.argv[1], keep_latest=2) as checkpoints:
  step = checkpoints.recover().step or 0
  if step:
    params, meta = checkpoints.restore_params(step)
    np.testing.assert_array_equal(params["kernel"], make(step, 4096)["kernel"])
    assert meta["examples_seen"] == step
  print(step, flush=True)
  while True:
    step += 1
    save(checkpoints, step, 4096)
"""


def in_the_middle(directory, moment):
  """Whether the directory shows the moment to strike."""
  if moment == "uncommitted":
    steps = [path for path in directory.iterdir() if path.name.isdigit()]
    return any(not (path / "manifest.json").exists() for path in steps)
  return any("tmp" in path.name for path in directory.iterdir())


@pytest.mark.slow
def test_sigkill_in_the_middle_of_saves_loses_nothing_committed(tmp_path):
  committed = []
  for moment in ("writing", "uncommitted", "writing", "uncommitted"):
    process = start(SAVE_FOR_EVER, tmp_path)
    line = process.stdout.readline()
    assert line, process.stderr.read()
    # It went on from the newest step that was committed when its predecessor was killed.
    assert int(line) == max(committed, default=0)
    deadline = time.monotonic() + 20
    while Checkpoints(tmp_path).latest() in (None, int(line)) or not in_the_middle(
        tmp_path, moment
    ):
      assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    committed = Checkpoints(tmp_path, read_only=True).steps()
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.recover().step == max(committed)
  assert all(name.isdigit() for name in listed(tmp_path))


FILL_THE_DISK = """
import json, resource, sys, time
from small_saves import save
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.errors import CheckpointError

checkpoints = Checkpoints(sys.argv[1], keep_latest=1)
save(checkpoints, 1, 512)
checkpoints.wait()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
errors = []
for step in (2, 3):  # the first seen by check(), the second by the next save
  assert save(checkpoints, step, 512)
  try:
    deadline = time.monotonic() + 20
    while step == 2 and time.monotonic() < deadline:
      checkpoints.check()
      time.sleep(0.01)
    save(checkpoints, 4, 512)
  except CheckpointError as error:
    errors.append(str(error))
steps = checkpoints.steps()
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
save(checkpoints, 3, 512)
checkpoints.close()
print(json.dumps({"errors": errors, "steps": steps, "at last": checkpoints.steps()}))
"""


def test_a_full_disk_is_said_and_costs_only_the_step_being_saved(tmp_path):
  process = start(FILL_THE_DISK, tmp_path)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  result = json.loads(out)
  assert result["errors"] == [
      f"Saving step {step} to {tmp_path / str(step)} failed: File too large (EFBIG). "
      "Step 1 is there still. Make room or restore access there"
      for step in (2, 3)
  ]
  assert result["steps"] == [1] and result["at last"] == [3]
  with Checkpoints(tmp_path) as checkpoints:
    notes, step = checkpoints.recover()
  assert (step, notes) == (3, [])  # nor does a failed save leave anything that fills the disk


@pytest.mark.parametrize("files", [
    {"../outside": {"bytes": 0, "hash": ""}}, {"/etc/passwd": {"bytes": 0, "hash": ""}},
    {"a": {}}, {"a": 3}, ["a"], None,
], ids=["outside", "from the root", "no size", "no file", "a list", "nothing"])
def test_a_manifest_that_is_well_hashed_and_means_no_good(directory, files):
  """As somebody would write it who means harm; nothing outside of the step is read."""
  text = manifest._text({"step": 1, "files": files})
  (directory / "1").mkdir(exist_ok=True)
  (directory / "1" / manifest.NAME).write_text(text)
  with pytest.raises(CheckpointError, match="manifest.json"):
    manifest.read(directory / "1")


def test_a_file_that_no_listing_shows_by_default(directory):
  """Such as what an editor leaves."""
  (directory / "20" / "params" / "kept~").write_text("more")
  assert manifest.problems(directory / "20") == ["params/kept~: not in the manifest"]


@pytest.fixture
def open_to_all(pristine):
  """The two steps where every user may look; root reads whatever the permissions are."""
  with tempfile.TemporaryDirectory() as place:
    os.chmod(place, 0o777)
    path = pathlib.Path(shutil.copytree(pristine, pathlib.Path(place) / "checkpoints"))
    path.chmod(0o777)
    yield path


@contextlib.contextmanager
def as_nobody():
  root = os.geteuid() == 0
  if root:
    os.seteuid(65534)
  try:
    yield
  finally:
    if root:
      os.seteuid(0)


@pytest.mark.parametrize("name", ["params/_METADATA", "manifest.json", "params", "", ".."])
@pytest.mark.parametrize("strict", [False, True])
def test_what_may_not_be_read_is_not_damaged(open_to_all, name, strict):
  """Nothing is set aside or removed: it may all be as it was."""
  files, withdrawn = files_of(open_to_all), (open_to_all / "20" / name).resolve()
  with as_nobody(), Checkpoints(open_to_all) as checkpoints:
    assert checkpoints.recover().step == 20
  withdrawn.chmod(0)
  with as_nobody(), Checkpoints(open_to_all) as checkpoints:
    with pytest.raises(CheckpointError, match="cannot be put in order: .*Permission denied"):
      checkpoints.recover(strict=strict)
  withdrawn.chmod(0o755 if withdrawn.is_dir() else 0o644)
  assert files_of(open_to_all) == files
  with Checkpoints(open_to_all) as checkpoints:
    assert checkpoints.recover().step == 20


def test_a_link_to_nothing_is_not_an_empty_directory(directory, tmp_path):
  """As where the disk that it leads to is not mounted."""
  directory.rename(tmp_path / "disk")
  directory.symlink_to(tmp_path / "disk")
  with Checkpoints(directory) as checkpoints:
    assert checkpoints.recover().step == 20
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match="No such file"):
      checkpoints.recover()


def test_lost_is_where_all_were_set_aside(directory):
  with Checkpoints(directory) as checkpoints:
    assert not checkpoints.is_lost()
    for step in ("10", "20"):
      flip(directory / step / "manifest.json", 5)
    assert checkpoints.recover().step is None
    assert checkpoints.is_lost()
    shutil.rmtree(directory)
    assert not checkpoints.is_lost()

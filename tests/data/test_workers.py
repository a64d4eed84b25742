"""Worker processes change nothing but the speed, and never fail in silence."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import small_source
from small_source import N, SmallSource
from vit_jax.data import workers as workers_lib
from vit_jax.data.augment import TrainTransform
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.pipeline import eval_batches, train_batches
from vit_jax.data.preprocess import Preprocessing
from vit_jax.data.sampling import mix
from vit_jax.errors import DataError, WorkerLost

TRANSFORM = TrainTransform(
    image_size=12, crop_min_area=0.3, rand_augment="2,15", random_erasing=0.5
)


def batches(source=SmallSource(), *, start=0, shard=0, shards=1, workers=0, bad=None, repeats=1):
  return train_batches(
      source, batch_size=8, seed=1, start=start, shard=shard, shards=shards, transform=TRANSFORM,
      threads=0, workers=workers, bad=bad or BadRecords(), repeats=repeats,
  )


def take(count, *args, **kwargs):
  stream = batches(*args, **kwargs)
  try:
    return list(itertools.islice(stream, count))
  finally:
    stream.close()


def evaluated(source, *, workers, batch_size=8, bad=None):
  return list(eval_batches(
      source, batch_size=batch_size, shard=0, shards=1, preprocessing=Preprocessing(image_size=12),
      threads=0, workers=workers, bad=bad or BadRecords(),
  ))


def assert_same(left, right):
  assert len(left) == len(right)
  for one, other in zip(left, right):
    assert sorted(one) == sorted(other) == ["image", "label", "mask"]
    for key, value in one.items():
      assert value.dtype == other[key].dtype and type(other[key]) is np.ndarray
      np.testing.assert_array_equal(value, other[key], key)


def joined(parts):
  """Global batches of what each shard has."""
  return [
      {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
      for batches in zip(*parts)
  ]


def ended(pids, seconds=20):
  """Whether none of the processes is there any more, within some time."""
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    if not any(map(alive, pids)):
      return True
    time.sleep(0.05)
  return False


def alive(pid):
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except (FileNotFoundError, ProcessLookupError):
    return False
  return state != "Z"


def pids_in(directory):
  return [int(name) for name in os.listdir(directory)]


QUICK = {(0, 2), (0, 4), (1, 1), (2, 2), (3, 1)}


@pytest.mark.parametrize("workers, shards", [
    pytest.param(workers, shards, marks=() if (workers, shards) in QUICK else pytest.mark.slow)
    for workers in range(4) for shards in (1, 2, 4)
])
def test_the_stream_does_not_depend_on_workers_or_hosts(workers, shards):
  source = SmallSource(broken=(5,))
  whole = take(7, source)
  assert_same(whole, joined(
      [take(7, source, shard=shard, shards=shards, workers=workers) for shard in range(shards)]
  ))


@pytest.mark.parametrize("step, workers, shards", [(1, 2, 1), (4, 3, 1), (10**9, 1, 2)])
def test_a_restart_may_change_workers_and_hosts(step, workers, shards):
  begun = take(3, start=8 * step)
  if step < 5:
    assert_same(begun, take(step + 3)[step:])
  assert_same(begun, joined([
      take(3, start=8 * step, shard=shard, shards=shards, workers=workers)
      for shard in range(shards)
  ]))


def test_repeats_and_mixtures_in_workers():
  assert_same(take(5, repeats=3), take(5, repeats=3, workers=2))
  source = mix([SmallSource(), SmallSource(broken=(1,))], [1, 0.5], name="m", split="train", seed=3)
  assert_same(take(5, source), take(5, source, workers=2))


@pytest.mark.parametrize("batch_size, workers", [(4, 3), (16, 5)])
def test_evaluation_in_workers_sees_everything_once(batch_size, workers):
  found = evaluated(SmallSource(), batch_size=batch_size, workers=workers)
  assert_same(evaluated(SmallSource(), batch_size=batch_size, workers=0), found)
  assert sum(batch["mask"].sum() for batch in found) == N


def test_batches_outlive_the_workers():
  # They lie in shared memory, and a device may use them where they are.
  stream = batches(workers=2)
  first = next(stream)
  assert not first["image"].flags.owndata  # not copied
  view, on_device = first["image"][:2], jax.device_put(first["image"])
  del first
  for _ in range(4):
    next(stream)
  stream.close()
  expected = take(1)[0]["image"]
  np.testing.assert_array_equal(view, expected[:2])
  np.testing.assert_array_equal(on_device, expected)


def test_unreadable_images_in_workers_are_listed_once(tmp_path, capsys):
  source, file = SmallSource(broken=(3, 11)), tmp_path / "bad_records.jsonl"
  bad = BadRecords(file)
  streamed = take(9, source, workers=2, bad=bad)
  labels, masks = (np.concatenate([batch[key] for batch in streamed]) for key in ("label", "mask"))
  np.testing.assert_array_equal(masks, np.where(np.isin(labels, (3, 11)), 0, 1))
  assert (masks == 0).sum() >= 6
  evaluated(source, workers=2, bad=bad)
  listed = [json.loads(line) for line in file.read_text().splitlines()]
  assert sorted(line["name"] for line in listed) == ["11.jpg", "3.jpg"]
  assert all("not an image" in line["reason"] for line in listed) and bad.count == 2
  assert len(capsys.readouterr().err.splitlines()) == 2


def test_too_many_unreadable_images_end_the_stream():
  bad = BadRecords(max_fraction=0.1)
  stream = batches(SmallSource(broken=(2, 3, 5, 7)), workers=1, bad=bad)
  next(stream), next(stream)  # less than an epoch says nothing yet
  with pytest.raises(DataError, match=r"\d of 24 images .*max_bad_fraction=0.1 .*\.jpg: not"):
    next(stream)
  with pytest.raises(DataError, match="of 24 images"):
    next(stream)


def test_pads_are_no_examples_that_were_seen():
  bad = BadRecords(max_fraction=0.05)
  with pytest.raises(DataError, match="2 of 23 images"):
    evaluated(SmallSource(broken=(0, 22)), workers=0, batch_size=64, bad=bad)


def test_a_killed_worker_ends_the_stream(tmp_path):
  stream = batches(SmallSource(pids=str(tmp_path)), workers=3)
  for _ in range(6):
    next(stream)
  pids = pids_in(tmp_path)
  assert len(pids) == 3 and os.getpid() not in pids
  expected, got = take(40), 6
  os.kill(pids[1], signal.SIGKILL)
  begun = time.monotonic()
  with pytest.raises(WorkerLost, match="killed by SIGKILL.*config.input.workers"):
    while True:
      assert_same([expected[got]], [next(stream)])
      got += 1
  assert time.monotonic() - begun < 10
  assert WorkerLost.exit_code == 75  # a launcher starts it again
  for _ in range(2):
    with pytest.raises(WorkerLost, match="killed by SIGKILL"):
      next(stream)
  assert ended(pids)


def test_a_worker_killed_before_its_first_batch(tmp_path):
  stream = batches(SmallSource(pids=str(tmp_path), slow=0.5), workers=1)
  stream._iterator._iterator.start_prefetch()
  killer = subprocess.Popen([
      sys.executable, "-c",
      "import os, sys, time\n"
      "while not os.listdir(sys.argv[1]): time.sleep(.05)\n"
      "os.kill(int(os.listdir(sys.argv[1])[0]), 9)", str(tmp_path),
  ])
  with pytest.raises(WorkerLost, match="killed by SIGKILL"):
    next(stream)
  assert killer.wait() == 0


def test_workers_ignore_what_the_main_process_decides_on(tmp_path):
  stream = batches(SmallSource(pids=str(tmp_path)), workers=1)
  taken = [next(stream)]
  for number in (signal.SIGINT, signal.SIGTERM):
    os.kill(pids_in(tmp_path)[0], number)
  taken += [next(stream) for _ in range(4)]
  stream.close()
  assert_same(take(5), taken)
  assert ended(pids_in(tmp_path))


def test_an_error_that_cannot_be_sent_is_told_all_the_same():
  with pytest.raises(DataError, match="Unsendable: of no return"):
    take(9, SmallSource(fails=4), workers=2)


def test_workers_start_no_backend_but_may_use_the_cpu():
  with pytest.raises(ValueError, match=r"started \[\] may cpu"):
    take(1, small_source.Backends(), workers=1)


@pytest.mark.parametrize("said, told, exit_code", [
    ("with exit code -7. Search", "killed by SIGBUS, /dev/shm is too small", 3),
    ("with exit code -9. Search", "killed by SIGKILL, perhaps for want of memory", 75),
    ("with exit code 1. Search", "ended with exit code 1", 3),
])
def test_what_is_told_of_a_dead_worker(said, told, exit_code):
  """Only who was killed is worth another start."""
  death = workers_lib._death(f"Worker process was terminated unexpectedly {said} the logs")
  assert told in str(death) and death.exit_code == exit_code


def test_no_worker_outlives_a_killed_main_process(tmp_path):
  main = subprocess.Popen(
      [sys.executable, small_source.__file__, str(tmp_path)], stdout=subprocess.PIPE, text=True,
      start_new_session=True,
  )
  try:
    assert main.stdout.readline() == "ready\n"
    pids = pids_in(tmp_path)
    assert len(pids) == 2 and all(map(alive, pids))
  finally:
    main.kill()
    main.wait()
  assert ended(pids, seconds=5)

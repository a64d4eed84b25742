"""The training stream is a function of (seed, position); evaluation sees everything once."""

import io
import itertools
import threading
import time

import cv2
import grain
import numpy as np
from PIL import Image
import pytest

from vit_jax.data.augment import TrainTransform
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.pipeline import eval_batches, train_batches
from vit_jax.data.preprocess import Preprocessing
from vit_jax.data.source import ArraySource
from vit_jax.errors import ConfigError, DataError

N = 23
FAR = 10**9 * 10**3 + 7  # beyond 2**31 examples, and no multiple of anything here


def encoded(i):
  noise = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(cv2.GaussianBlur(noise, (5, 5), 0)).save(buffer, "JPEG")
  return buffer.getvalue()


class Files:
  """A source of encoded images, which counts its reads."""

  name, split, classes = "files", "train", tuple(map(str, range(N)))
  max_labels = 1

  def __init__(self, broken=(), fails=None):
    self.data = [b"no image" if i in broken else encoded(i) for i in range(N)]
    self.fails, self.reads, self.lock = fails, 0, threading.Lock()

  def __len__(self):
    return N

  def record(self, index):
    with self.lock:
      self.reads += 1
    if index == self.fails:
      raise ZeroDivisionError(f"record {index}")
    return {"image": self.data[index], "label": index, "name": f"{index}.jpg"}


def arrays(size=8, count=N):
  """Noise without a black pixel; the label of each image is its index."""
  images = np.random.default_rng(0).integers(1, 256, (count, size, size, 3), dtype=np.uint8)
  return ArraySource(
      "arrays", "train", tuple(map(str, range(count))), images, np.arange(count, dtype=np.int32)
  )


STREAMS = {
    "files": (Files(), TrainTransform(image_size=16, crop_min_area=0.3)),
    "arrays by record": (arrays(), TrainTransform(image_size=8, crop_min_area=0.3)),
    "arrays gathered": (arrays(), TrainTransform(image_size=8, crop="pad", crop_padding=2)),
}
each_stream = pytest.mark.parametrize("stream", STREAMS)


def take(
    stream, count, *, batch_size=8, seed=1, start=0, shard=0, shards=1, threads=0, bad=None,
    repeats=1,
):
  source, transform = STREAMS[stream] if isinstance(stream, str) else stream
  batches = train_batches(
      source, batch_size=batch_size, seed=seed, start=start, shard=shard, shards=shards,
      transform=transform, threads=threads, bad=BadRecords() if bad is None else bad,
      repeats=repeats,
  )
  taken = list(itertools.islice(batches, count))
  batches.close()
  return taken


def joined(batches):
  return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def assert_same(left, right):
  for key in ("image", "label", "mask"):
    np.testing.assert_array_equal(left[key], right[key], key)


@each_stream
def test_shapes_and_types(stream):
  size = STREAMS[stream][1].image_size
  (batch,) = take(stream, 1, shard=1, shards=2)
  assert sorted(batch) == ["image", "label", "mask"]
  assert batch["image"].shape == (4, size, size, 3) and batch["image"].dtype == np.uint8
  assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
  assert batch["mask"].dtype == np.float32 and (batch["mask"] == 1).all()


@each_stream
def test_each_epoch_visits_every_example_once_in_its_own_order(stream):
  labels = joined(take(stream, 3 * N // 4 + 1, batch_size=4))["label"]
  orders = [labels[i * N : (i + 1) * N].tolist() for i in range(3)]
  for order in orders:
    assert sorted(order) == list(range(N))
  assert orders[0] != orders[1] != orders[2] and orders[0] != sorted(orders[0])
  other = joined(take(stream, 6, batch_size=4, seed=2))["label"]
  assert other[:N].tolist() != orders[0]


@each_stream
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_matter(stream, threads):
  assert_same(joined(take(stream, 6)), joined(take(stream, 6, threads=threads)))


@each_stream
@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("start", [0, 5, FAR])
def test_shards_reassemble_to_the_global_batch(stream, shards, start):
  whole = take(stream, 4, start=start)
  parts = [
      take(stream, 4, start=start, shard=shard, shards=shards, threads=shard % 2)
      for shard in range(shards)
  ]
  for i, batch in enumerate(whole):
    assert_same(batch, joined([part[i] for part in parts]))


@each_stream
@pytest.mark.parametrize("start", [1, 8, 20, N, 5 * N + 3])
def test_a_restart_continues_the_stream(stream, start):
  whole = joined(take(stream, (start + 24) // 8 + 1))
  rest = joined(take(stream, 3, start=start))
  assert_same({k: v[start : start + 24] for k, v in whole.items()}, rest)


@each_stream
def test_another_batch_size_continues_the_stream(stream):
  twelves = joined(take(stream, 2, start=FAR, batch_size=12))
  assert_same(joined(take(stream, 3, start=FAR)), twelves)


@each_stream
@pytest.mark.parametrize("start", [10**9, FAR, 2**53 + 1])
def test_a_far_start_is_exact_and_costs_nothing(stream, start):
  source = STREAMS[stream][0]
  reads = getattr(source, "reads", 0)
  begun = time.perf_counter()
  far = take(stream, 2, start=start)
  assert time.perf_counter() - begun < 2
  assert getattr(source, "reads", 0) - reads <= 16
  # One further is the same stream, one example on.
  assert_same(
      {k: v[1:] for k, v in joined(far).items()},
      {k: v[:15] for k, v in joined(take(stream, 2, start=start + 1)).items()},
  )
  # Whole epochs are still permutations.
  epoch = -(-start // N) * N
  labels = joined(take(stream, 3, start=epoch))["label"][:N]
  assert sorted(labels.tolist()) == list(range(N))


@each_stream
def test_augmentation_depends_on_the_epoch_and_the_seed(stream):
  def crops(seed):
    """The images of one example in its first epochs."""
    stream_ = joined(take(stream, 4 * N // 8 + 1, seed=seed))
    return [stream_["image"][i].tobytes() for i in np.flatnonzero(stream_["label"] == 3)]

  first = crops(1)
  assert len(first) >= 4 and len(set(first)) >= 3
  assert set(first) != set(crops(2))


def test_grain_gives_each_position_a_generator_of_its_own():
  # What the pipeline builds on: a generator is a function of (seed, index before slicing).
  draws = lambda dataset, indices: [dataset[i] for i in indices]
  dataset = grain.MapDataset.range(5).shuffle(seed=3).repeat().random_map(
      lambda _, rng: rng.integers(2**62), seed=9
  )
  plain = draws(dataset, range(20))
  assert len(set(plain)) == 20
  assert draws(dataset, reversed(range(20))) == plain[::-1]
  assert draws(dataset[7:], range(13)) == plain[7:]
  assert draws(dataset[FAR:], range(5)) == draws(dataset, range(FAR, FAR + 5))


def test_gathered_crops_are_windows():
  source, transform = STREAMS["arrays gathered"]
  batch = joined(take("arrays gathered", 200))
  padded = np.zeros((N, 12, 12, 3), np.uint8)
  padded[:, 2:10, 2:10] = source.images
  counts = np.zeros((5, 5, 2), int)
  for image, label in zip(batch["image"], batch["label"]):
    upright, whole = (image, image[:, ::-1]), padded[label]
    matches = [
        (top, left, flip)
        for top in range(5) for left in range(5) for flip in range(2)
        if np.array_equal(upright[flip], whole[top : top + 8, left : left + 8])
    ]
    assert len(matches) == 1
    counts[matches[0]] += 1
  # 1 600 draws: 64 a corner and 800 mirrored, within five standard deviations.
  assert np.abs(counts.sum(axis=2) - 64).max() < 40
  assert abs(counts[..., 1].sum() - 800) < 100
  # Corner and mirror are independent of each other.
  assert np.abs(counts - 32).max() < 29


def test_gathered_without_augmentation_is_the_set_itself():
  source = arrays()
  transform = TrainTransform(image_size=8, crop="none", flip=False)
  batch = joined(take((source, transform), 4))
  np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])
  larger = TrainTransform(image_size=11, crop="none", flip=False)
  image, label = (joined(take((source, larger), 1))[key][0] for key in ("image", "label"))
  expected = Image.fromarray(source.images[label]).resize((11, 11), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(image, np.asarray(expected))


def test_a_set_of_one_example():
  transform = TrainTransform(image_size=8, crop="none")
  assert joined(take((arrays(count=1), transform), 2))["label"].tolist() == [0] * 16
  transform = TrainTransform(image_size=8)
  assert joined(take((arrays(count=1), transform), 2))["label"].tolist() == [0] * 16


@pytest.mark.parametrize("threads", [0, 2])
def test_unreadable_images_are_masked_and_counted(threads, capsys):
  source, bad = Files(broken=(3, 11)), BadRecords()
  batch = joined(take((source, TrainTransform(image_size=16)), 6, threads=threads, bad=bad))
  broken = np.isin(batch["label"], (3, 11))
  assert broken.sum() >= 4
  np.testing.assert_array_equal(batch["mask"], np.where(broken, 0, 1))
  assert not batch["image"][broken].any()
  assert batch["image"][~broken].reshape((~broken).sum(), -1).any(axis=1).all()
  lines = capsys.readouterr().err.splitlines()
  assert bad.count == len(lines) == 2
  assert all(any(f" {name}: " in line for line in lines) for name in ("3.jpg", "11.jpg"))


@pytest.mark.parametrize("threads", [0, 2])
def test_other_errors_are_raised(threads):
  with pytest.raises(ZeroDivisionError, match="record 4"):
    take((Files(fails=4), TrainTransform(image_size=16)), 6, threads=threads)
  with pytest.raises(ZeroDivisionError, match="record 4"):
    list(evaluated(Files(fails=4), threads=threads))


def test_close_ends_the_threads():
  before = threading.active_count()
  take("files", 2, threads=3)
  end = time.perf_counter() + 5
  while threading.active_count() > before and time.perf_counter() < end:
    time.sleep(0.01)
  assert threading.active_count() <= before


def test_what_cannot_be_divided():
  with pytest.raises(ConfigError, match="batch of 8 .* 3 shards"):
    take("files", 1, shards=3)
  with pytest.raises(ConfigError, match="batch of 8 .* 3 shards"):
    evaluated(Files(), shards=3)


def evaluated(source, *, batch_size=8, shard=0, shards=1, threads=0, bad=None):
  return eval_batches(
      source, batch_size=batch_size, shard=shard, shards=shards, threads=threads,
      preprocessing=Preprocessing(image_size=16, resize="center", short_side=18),
      bad=BadRecords() if bad is None else bad,
  )


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("batch_size", [8, 24, 64])
def test_evaluation_sees_everything_once_in_order(batch_size, threads):
  source = Files()
  preprocessing = Preprocessing(image_size=16, resize="center", short_side=18)
  batches = list(evaluated(source, batch_size=batch_size, threads=threads))
  assert len(batches) == -(-N // batch_size)
  assert all(batch["image"].shape == (batch_size, 16, 16, 3) for batch in batches)
  whole = joined(batches)
  assert whole["label"].dtype == np.int32 and whole["mask"].dtype == np.float32
  np.testing.assert_array_equal(whole["mask"], np.arange(len(whole["mask"])) < N)
  assert whole["label"][:N].tolist() == list(range(N))
  assert not whole["label"][N:].any() and not whole["image"][N:].any()
  for image, data in zip(whole["image"], source.data):
    np.testing.assert_array_equal(
        image, preprocessing.resized(np.asarray(Image.open(io.BytesIO(data))))
    )
  assert source.reads == N


@pytest.mark.parametrize("shards", [2, 4])
def test_evaluation_shards_reassemble(shards):
  whole = list(evaluated(Files()))
  parts = [list(evaluated(Files(), shard=i, shards=shards)) for i in range(shards)]
  assert {len(part) for part in parts} == {3}
  for i, batch in enumerate(whole):
    assert_same(batch, joined([part[i] for part in parts]))


def test_evaluation_of_arrays_and_of_dirt():
  source = arrays(size=16)
  batch = joined(list(eval_batches(
      source, batch_size=10, shard=0, shards=1, preprocessing=Preprocessing(image_size=16),
      threads=0, bad=BadRecords(),
  )))
  np.testing.assert_array_equal(batch["image"][:N], source.images)
  bad = BadRecords()
  batch = joined(list(evaluated(Files(broken=(0, 22)), bad=bad)))
  assert bad.count == 2 and batch["mask"].sum() == N - 2
  assert batch["label"][22] == 22 and batch["mask"][22] == 0 and not batch["image"][22].any()


class SeveralLabels(Files):
  """Image i has the i % 4 labels from i on; every fourth has none."""

  max_labels = 3

  def record(self, index):
    labels = tuple(range(index, index + index % 4))
    return super().record(index) | {"labels": labels, "label": labels[0] if labels else -1}


def test_several_labels_are_padded():
  source = SeveralLabels(broken=(7,))
  stream = (source, TrainTransform(image_size=16))
  batch = joined(take(stream, 1, batch_size=N - 1))
  assert batch["labels"].shape == (N - 1, 3) and batch["labels"].dtype == np.int32
  for labels, label, mask in zip(batch["labels"], batch["label"], batch["mask"]):
    own = range(label, label + label % 4) if label > 0 else ()
    np.testing.assert_array_equal(labels, [*own, *[-1] * (3 - len(own))])
    assert labels[0] == label and mask == (label not in (-1, 7))
  padded = next(evaluated(source, batch_size=2 * N))
  np.testing.assert_array_equal(padded["labels"][N:], [[0, -1, -1]] * N)
  np.testing.assert_array_equal(padded["labels"][7], [7, 8, 9])


def test_more_labels_than_there_is_room_for():
  source = SeveralLabels()
  source.max_labels = 2
  with pytest.raises(DataError, match="3.jpg has 3 labels, more than 2"):
    next(evaluated(source, batch_size=N))

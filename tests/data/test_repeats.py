"""Repeated augmentation: how often, how far apart, and a function of the position alone."""

import collections

import numpy as np
import pytest
from test_pipeline import FAR, N, STREAMS, arrays, assert_same, each_stream, joined, take

from vit_jax.data.augment import TrainTransform
from vit_jax.data.repeats import repeated


@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
@pytest.mark.parametrize("start", [0, 10**15])
def test_copies_are_close_but_never_neighbours(repeats, start):
  start *= 4 * repeats
  order = [repeated(start + i, repeats) for i in range(400 * repeats)]
  assert sorted(order) == sorted(list(range(start // repeats, start // repeats + 400)) * repeats)
  places, partners = collections.defaultdict(list), collections.defaultdict(list)
  for position, place in enumerate(order):
    places[place].append(position)
    partners[place].append(order[position ^ 1])
  for found in places.values():
    assert found[-1] - found[0] < 4 * repeats
    assert min(np.diff(found), default=3) >= 3
  for found in partners.values():
    assert all(one != other for one, other in zip(found, found[1:]))


def test_without_repeats_the_order_is_the_order():
  assert [repeated(i, 1) for i in range(100, 200)] == list(range(100, 200))


@each_stream
def test_every_example_comes_as_often_as_it_is_repeated(stream):
  batch = joined(take(stream, 3 * N, batch_size=4, repeats=3))
  labels = batch["label"]
  # 12 N examples are four permutations, each three times.
  assert collections.Counter(labels.tolist()) == dict.fromkeys(range(N), 12)
  first = collections.Counter(labels[: 3 * N].tolist())
  assert sum(min(count, 3) for count in first.values()) >= 3 * N - 12
  plain = joined(take((STREAMS[stream][0], _record_transform(stream)), 4))["label"]
  repeated_ = joined(take((STREAMS[stream][0], _record_transform(stream)), 12, repeats=3))
  assert repeated_["label"][[0, 1, 2, 3, 12, 13, 14, 15]].tolist() == plain[:8].tolist()


def _record_transform(stream):
  """One that is not gathered, so that the order with and without repeats is comparable."""
  return TrainTransform(image_size=STREAMS[stream][1].image_size, crop_min_area=0.3)


def test_copies_are_augmented_differently():
  batch = joined(take("arrays by record", 3, batch_size=12, repeats=3))
  for label in set(batch["label"][:12].tolist()):
    images = [x.tobytes() for x in batch["image"][:12][batch["label"][:12] == label]]
    assert len(images) == len(set(images)) == 3


@each_stream
@pytest.mark.parametrize("start", [0, 5, FAR])
def test_shards_threads_and_restarts_do_not_matter(stream, start):
  whole = take(stream, 6, start=start, repeats=3)
  parts = [
      take(stream, 6, start=start, shard=shard, shards=2, threads=2 * shard, repeats=3)
      for shard in range(2)
  ]
  for i, batch in enumerate(whole):
    assert_same(batch, joined([part[i] for part in parts]))
  later = take(stream, 3, start=start + 24, repeats=3)
  assert_same(joined(whole[3:]), joined(later))


def test_a_set_of_one_example():
  source = arrays(count=1)
  assert joined(take((source, TrainTransform(image_size=8)), 2, repeats=3))["label"].sum() == 0

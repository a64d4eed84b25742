"""Mixtures and balanced classes: exact over every number of epochs."""

import collections
import json

import numpy as np
from PIL import Image
import pytest

from vit_jax.data.augment import TrainTransform
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.open import open_dataset
from vit_jax.data.pipeline import train_batches
from vit_jax.data.sampling import balance, mix, permuted
from vit_jax.data.source import ArraySource
from vit_jax.errors import ConfigError, DataError


def source(name, labels, classes=("a", "b", "c")):
  images = np.zeros((len(labels), 1, 1, 3), np.uint8)
  return ArraySource(name, "train", classes, images, np.asarray(labels, np.int32))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
def test_permutations(size):
  orders = {tuple(permuted(i, size, (seed, 1)) for i in range(size)) for seed in range(5)}
  assert all(sorted(order) == list(range(size)) for order in orders)
  assert len(orders) == 5 or size < 6


def test_permutations_look_random():
  size, hits = 50, np.zeros((50, 50))
  for seed in range(2000):
    for i in range(size):
      hits[i, permuted(i, size, (seed,))] += 1
  # Chi-squared of 50 x 50 cells with 40 expected in each: 49 x 49 degrees of freedom.
  assert abs(((hits - 40) ** 2 / 40).sum() - 2401) < 5 * (2 * 2401) ** 0.5


@pytest.mark.parametrize("weights", [(1, 1), (2, 0.5), (0.3, 3), (1, 0.01)])
def test_a_mixture_visits_exactly(weights):
  parts = source("x", range(3)), source("y", [0] * 7)
  mixture = mix(parts, weights, name="m", split="train", seed=3)
  counts = [max(1, round(w * n)) for w, n in zip(weights, (3, 7))]
  assert len(mixture) == sum(counts)
  seen = collections.Counter()
  for epoch in range(20):
    drawn = [mixture.locate(epoch, i) for i in range(len(mixture))]
    assert [sum(part == k for part, _ in drawn) for k in (0, 1)] == counts
    seen.update(drawn)
    for part, size in ((0, 3), (1, 7)):
      visits = [seen[part, place] for place in range(size)]
      assert sum(visits) == (epoch + 1) * counts[part] and max(visits) - min(visits) <= 1
      if weights[part] == 1:
        assert set(visits) == {epoch + 1}
  assert [mixture.locate(7, i) for i in range(len(mixture))] == [
      mix(parts, weights, name="m", split="train", seed=3).locate(7, i)
      for i in range(len(mixture))
  ]
  with pytest.raises(IndexError):
    mixture.locate(0, len(mixture))


def test_classes_are_joined_by_name():
  parts = source("x", [0, 1], ("cat", "dog")), source("y", [0, 1], ("cow", "cat"))
  mixture = mix(parts, (1, 1), name="m", split="train", seed=0)
  assert mixture.classes == ("cat", "dog", "cow")
  found = [mixture.classes[mixture.record(i)["label"]] for i in range(4)]
  assert sorted(found[:2]) == ["cat", "dog"] and sorted(found[2:]) == ["cat", "cow"]


def test_what_cannot_be_mixed():
  for weight in (0, -1, float("nan"), float("inf")):
    with pytest.raises(ConfigError, match="the weight of x is"):
      mix([source("x", [0])], [weight], name="m", split="train", seed=0)
  with pytest.raises(DataError, match="x/train is empty"):
    mix([source("x", [])], [1], name="m", split="train", seed=0)


def test_balanced_classes():
  labels = [0] * 17 + [2] * 2 + [0] * 3  # class 1 has no records
  balanced = balance(source("x", labels), seed=1)
  assert len(balanced) == 22 and balanced.classes == ("a", "b", "c")
  seen = collections.Counter()
  for epoch in range(9):
    drawn = [balanced.locate(epoch, i) for i in range(len(balanced))]
    kinds = collections.Counter(labels[i] for i in drawn)
    assert kinds == {0: 11, 2: 11}
    seen.update(drawn)
    for kind in (0, 2):
      visits = [seen[i] for i, label in enumerate(labels) if label == kind]
      assert max(visits) - min(visits) <= 1
  assert balanced.record_at(3, 5)["name"] == f"x/train/{balanced.locate(3, 5)}"


def test_a_file_of_mixtures(tmp_path):
  for folder, labels in (("one", "ab"), ("two", "bc")):
    for label in labels:
      (tmp_path / folder / label).mkdir(parents=True)
      for i in range(6):
        color = (i, ord(label), len(folder))
        Image.new("RGB", (2, 2), color).save(tmp_path / folder / label / f"{folder}{i}.png")
  file = tmp_path / "both.json"
  parts = [
      {"dataset": "folder", "path": "one"},
      {"dataset": "folder", "path": "two", "weight": 0.5, "split": "train[:50%]"},
  ]
  file.write_text(json.dumps(parts))
  dataset = open_dataset("mixture", path=str(file), held_out=0.2)
  assert dataset.classes == ("a", "b", "c")
  train = dataset.splits["train"]
  assert train.counts == (10, 3) and len(dataset.splits["validation"]) == 2
  names = {train.record_at(epoch, i)["name"] for epoch in range(2) for i in range(13)}
  assert len(names) == 16
  file.write_text(json.dumps([parts[0]]))
  assert open_dataset("mixture", path=str(file), held_out=0.2).fingerprint != dataset.fingerprint
  for wrong in ([], {}, [{"path": "x"}], [{"dataset": "folder", "wieght": 1}],
                [{"dataset": "mixture"}]):
    file.write_text(json.dumps(wrong))
    with pytest.raises(ConfigError, match="both.json"):
      open_dataset("mixture", path=str(file), held_out=0.2)


def test_the_training_stream_of_a_mixture_visits_exactly():
  """Through the pipeline: what a label of its own for each record shows."""
  classes = tuple(map(str, range(10)))
  parts = source("x", range(4), classes), source("y", range(4, 10), classes)
  mixture = mix(parts, (0.5, 2), name="m", split="train", seed=3)
  transform = TrainTransform(image_size=8, crop="none", flip=False)
  assert len(mixture) == 14

  def labels(start, steps, shard=0, shards=1):
    stream = train_batches(
        mixture, batch_size=14, seed=1, start=start, shard=shard, shards=shards,
        transform=transform, threads=0, bad=BadRecords(),
    )
    found = [next(stream)["label"] for _ in range(steps)]
    stream.close()
    return np.concatenate(found)

  two = labels(0, 2)
  for start in (0, 14):
    epoch = np.bincount(two[start : start + 14], minlength=10)
    assert epoch[4:].tolist() == [2] * 6 and epoch[:4].sum() == 2
  assert np.bincount(two)[:4].tolist() == [1] * 4
  np.testing.assert_array_equal(labels(14, 1), two[14:])
  halves = [labels(14, 1, shard, 2) for shard in (0, 1)]
  np.testing.assert_array_equal(np.concatenate(halves), two[14:])

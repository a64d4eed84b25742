"""Parts of splits by name, judged by TFDS where it is installed."""

import numpy as np
import pytest

from vit_jax.data.open import open_dataset
from vit_jax.data.source import ArraySource
from vit_jax.data.split import open_split
from vit_jax.errors import ConfigError


def source(size):
  images = np.arange(size, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
  return ArraySource("x", "train", ("a",), images, np.zeros(size, np.int32))


def numbers(part):
  return part.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("size", [1, 7, 100, 133])
@pytest.mark.parametrize("spec", [
    "train[:99%]", "train[99%:]", "train[33%:66%]", "train[-10%:]", "train[:-5]", "train[3:90]",
    "train", "train[:200]", "train[-110:]", "train[12%:-12%]",
])
def test_bounds_are_those_of_tfds(size, spec):
  tfds = pytest.importorskip("tensorflow_datasets")
  info = tfds.core.SplitInfo(name="train", shard_lengths=[size], num_bytes=0)
  splits = {"train": source(size)}
  try:
    instruction = tfds.core.ReadInstruction.from_spec(spec).to_absolute({"train": info})
  except ValueError:
    with pytest.raises(ConfigError, match="k is .* which is (more than there is|empty)"):
      open_split(splits, spec, shuffled=True, key="k")
    return
  wanted = list(range(size))[slice(instruction[0].from_, instruction[0].to)]
  if wanted:
    assert numbers(open_split(splits, spec, shuffled=True, key="k")) == wanted
  else:
    with pytest.raises(ConfigError, match="k is .* which is empty"):
      open_split(splits, spec, shuffled=True, key="k")


def test_parts_of_sorted_data_are_samples_that_share_nothing():
  splits = {"train": source(200)}
  first, second = (
      numbers(open_split(splits, spec, shuffled=False, key="k"))
      for spec in ("train[:90%]", "train[90%:]")
  )
  assert sorted(first + second) == list(range(200)) and len(second) == 20
  assert second == sorted(second) and 60 < np.mean(second) < 140 and max(second) - min(second) > 99


@pytest.mark.parametrize("spec", ["train[", "train[5]", "train[a:b]", "train[1:2:3]", "", "a+b"])
def test_other_forms_are_refused(spec):
  with pytest.raises(ConfigError, match="config.input.split is"):
    open_split({"train": source(9)}, spec, shuffled=True, key="config.input.split")
  with pytest.raises(ConfigError, match="has only train"):
    open_split({"train": source(9)}, "test[:5]", shuffled=True, key="k")


def test_parts_of_a_data_set():
  dataset = open_dataset(
      "digits", path=None, held_out=0.2, split="train[:75%]", evaluation="train[75%:]"
  )
  assert list(dataset.splits) == ["train", "train[75%:]"]
  assert [len(x) for x in dataset.splits.values()] == [1348, 449]
  whole = open_dataset("digits", path=None, held_out=0)
  assert dataset.fingerprint != whole.fingerprint and not dataset.notes
  plain = open_dataset("digits", path=None, held_out=0.2, evaluation="validation")
  assert plain.fingerprint == open_dataset("digits", path=None, held_out=0.2).fingerprint

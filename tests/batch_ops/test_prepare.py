"""Normalised pixels and encoded labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.batch_ops.normalize import normalize
from vit_jax.batch_ops.prepare import prepare_batch

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def batch():
  rng = np.random.default_rng(0)
  return {
      "image": rng.integers(0, 256, (8, 6, 6, 3), dtype=np.uint8),
      "label": np.array([0, 4, 2, 1, 3, 3, 0, 4], np.int32),
      "mask": np.array([1, 1, 1, 0, 1, 1, 1, 1], np.float32),
  }


@pytest.mark.parametrize("statistics", [IMAGENET, HALF], ids=["imagenet", "half"])
def test_every_pixel_value_equals_the_float64_formula(statistics):
  pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
  got = jax.jit(lambda x: normalize(x, **statistics))(pixels)
  wanted = (pixels / 255.0 - np.array(statistics["mean"])) / np.array(statistics["std"])
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_mean_and_deviation_of_a_half_give_minus_one_to_one():
  got = normalize(np.array([[[[0, 255, 128]]]], np.uint8), **HALF)
  np.testing.assert_allclose(got.ravel(), [-1, 1, 2 * 128 / 255 - 1], atol=1e-7)


def test_channels_keep_their_own_statistics():
  got = normalize(np.full((1, 1, 1, 3), 255, np.uint8), (0.0, 0.5, 1.0), (1.0, 0.25, 2.0))
  np.testing.assert_allclose(got.ravel(), [1, 2, 0], atol=1e-6)


def test_without_mixup_labels_are_one_hot_and_no_key_is_needed():
  given = batch()
  got = prepare_batch(given, num_classes=5, **IMAGENET)
  assert set(got) == {"image", "target", "mask"}
  np.testing.assert_array_equal(got["target"], np.eye(5)[given["label"]])
  np.testing.assert_array_equal(got["mask"], given["mask"])
  np.testing.assert_array_equal(got["image"], normalize(given["image"], **IMAGENET))
  assert got["image"].dtype == got["target"].dtype == jnp.float32


def test_mixup_mixes_normalised_images_and_respects_the_mask():
  given = batch()
  plain = prepare_batch(given, num_classes=5, **IMAGENET)
  mixed = prepare_batch(
      given, num_classes=5, mixup_alpha=0.8, key=jax.random.key(3), **IMAGENET
  )
  share = float(mixed["target"][0, 0])
  assert 0.5 <= share < 0.99
  np.testing.assert_allclose(
      mixed["image"][0], share * plain["image"][0] + (1 - share) * plain["image"][1], atol=1e-5
  )
  np.testing.assert_array_equal(mixed["image"][2:4], plain["image"][2:4])
  np.testing.assert_array_equal(mixed["target"][2:4], plain["target"][2:4])

"""A tiny Vision Transformer's features of real digits, over a mesh."""

import jax
import numpy as np
import pytest

from digit_features import data_mesh, digits, on_mesh
from small_models import MODEL, random_params
from vit_jax.errors import ConfigError, DataError, NonFiniteError
from vit_jax.evaluators.features import FeatureExtractor, Features
from vit_jax.models.vit import ViT

DIGITS = MODEL | {"image_size": 8, "patch_size": 2, "num_classes": 0}


def images(count=45):
  values, labels = digits()
  pictures = np.repeat(values[:count].reshape(-1, 8, 8, 1) / 8 - 1, 3, axis=3)
  return {"image": pictures, "label": labels[:count], "mask": np.ones(count, np.float32)}


def of_vit(params, batch):
  return ViT(**DIGITS).apply({"params": params}, batch["image"])


def extractor(columns, features=of_vit):
  return FeatureExtractor(features=features, **on_mesh(data_mesh(), 16, **columns))


def test_features_of_a_mesh_are_those_of_each_image_alone():
  columns, params = images(), random_params(DIGITS)
  got = extractor(columns).run(params)
  assert got.values.dtype == np.float32 and got.values.shape == (45, DIGITS["width"])
  alone = jax.jit(lambda p, image: ViT(**DIGITS).apply({"params": p}, image[None])[0])
  expected = np.stack([alone(params, image) for image in columns["image"]])
  np.testing.assert_allclose(got.values, expected, atol=1e-5)
  assert np.abs(expected[0] - expected[1]).max() > 0.01
  np.testing.assert_array_equal(got.labels, columns["label"])


def test_unreadable_images_are_left_out_and_wrong():
  columns = images()
  columns["mask"][[2, 44]] = 0
  columns["image"][2] = np.nan
  got = extractor(columns, lambda params, batch: batch["image"][:, 0, :, 0]).run({})
  values, labels = got.rows()
  np.testing.assert_array_equal(values, np.delete(columns["image"], [2, 44], axis=0)[:, 0, :, 0])
  assert got.accuracy(labels) == 43 / 45


def test_examples_without_a_label_do_not_count():
  got = Features(
      np.zeros((4, 1), np.float32), np.array([1, -1, 2, 0], np.int32),
      np.array([True, False, True, False]),
  )
  assert got.accuracy(np.array([1, 0])) == 1 / 3


def test_what_cannot_be_measured():
  tokens = lambda params, batch: batch["image"][:, 0] * params
  first = lambda params, batch: tokens(params, batch)[:, 0]
  with pytest.raises(NonFiniteError):
    extractor(images(), first).run(np.float32(np.nan))
  with pytest.raises(ConfigError, match=r"\(16, 8, 3\), not \[B, D\]"):
    extractor(images(), tokens).run(np.float32(1))
  with pytest.raises(DataError, match="no image"):
    extractor(images() | {"mask": np.zeros(45, np.float32)}, first).run(np.float32(1))

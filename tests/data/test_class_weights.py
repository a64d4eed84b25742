"""Weights of classes, judged by scikit-learn."""

import json

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from vit_jax.data.class_weights import class_weights
from vit_jax.data.sampling import balance, mix
from vit_jax.data.source import ArraySource
from vit_jax.data.split import Subset
from vit_jax.errors import ConfigError


def source(labels, classes=("a", "b", "c")):
  images = np.zeros((len(labels), 2, 2, 3), np.uint8)
  return ArraySource("x", "train", classes, images, np.asarray(labels, np.int32))


def test_balanced_as_scikit_learn():
  labels = [0] * 7 + [1] * 2 + [2]
  expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
  np.testing.assert_allclose(class_weights("balanced", source(labels)), expected)
  part = Subset(source(labels + [1, 1]), "train[:10]", range(10))
  np.testing.assert_allclose(class_weights("balanced", part), expected)


def test_a_class_without_images():
  with pytest.raises(ConfigError, match="no image of 'b'"):
    class_weights("balanced", source([0, 2]))


class Unlisted:
  name, split, classes, max_labels = "far away", "train", ("a", "b"), 1


@pytest.mark.parametrize("unlisted", [Unlisted(), Subset(Unlisted(), "train[:1]", range(1))])
def test_labels_that_are_not_listed(unlisted):
  with pytest.raises(ConfigError, match="far away does not list its labels"):
    class_weights("balanced", unlisted)


def test_weights_of_a_file(tmp_path):
  file = tmp_path / "weights.json"
  file.write_text(json.dumps({"c": 2.5, "a": 0}))
  assert class_weights(str(file), source([0])) == (0.0, 1.0, 2.5)


@pytest.mark.parametrize("text, message", [
    ('{"d": 1}', "the class 'd'"), ('{"a": -1}', "weights from 0 up"), ("[1]", "weights from 0"),
    ("{", "cannot be read"), (None, "cannot be read"),
])
def test_files_that_are_refused(tmp_path, text, message):
  file = tmp_path / "weights.json"
  if text is not None:
    file.write_text(text)
  with pytest.raises(ConfigError, match=message):
    class_weights(str(file), source([0]))


def test_what_cannot_be_balanced_twice():
  for drawn in (balance(source([0, 1, 2]), seed=0),
                mix([source([0]), source([1])], [1, 2], name="m", split="train", seed=0)):
    with pytest.raises(ConfigError, match="neither a mixture nor sampled class_balanced"):
      class_weights("balanced", drawn)

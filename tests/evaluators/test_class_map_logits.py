"""Logits of some of a head's classes, by the head that conversion slices."""

import numpy as np
import pytest

from digit_features import data_mesh, digits, on_mesh
from vit_jax.errors import ConfigError
from vit_jax.evaluators.class_map_logits import restricted
from vit_jax.evaluators.classification import Classification
from vit_jax.interop.class_map import slice_head


def logits(params, batch):
  return batch["image"] @ params["head"]["kernel"] + params["head"]["bias"]


def test_as_a_sliced_head():
  """ImageNet-1k's classes of Google's 21843, one of which is not among them."""
  kernel = np.random.default_rng(0).standard_normal((64, 21_843), np.float32)
  # Biases tell the index of the class that was taken.
  params = {"head": {"kernel": kernel, "bias": np.arange(21_843, dtype=np.float32)}}
  model, sliced, _, _ = slice_head({"num_classes": 21_843}, params, None, wanted="imagenet-1k")
  indices = np.maximum(sliced["head"]["bias"], -1).astype(np.int32)
  assert model["num_classes"] == len(indices) == 1000 and sum(indices < 0) == 1
  batch = {"image": digits()[0][:9]}
  got = restricted(logits, indices)(params, batch)
  np.testing.assert_allclose(got, logits(sliced, batch), rtol=1e-5)


def test_classification_of_chosen_classes():
  """A head of 1 + 10 classes in reverse, measured on the ten."""
  values, labels = digits()
  params = np.random.default_rng(0).standard_normal((64, 11)).astype(np.float32)
  given = on_mesh(
      data_mesh(), 128, image=values, label=labels, mask=np.ones(len(labels), np.float32)
  )
  chosen = restricted(lambda p, batch: batch["image"] @ p, np.arange(10, 0, -1))
  got = Classification(name="test", logits=chosen, **given).run(params)
  exact = (values.astype(np.float64) @ params)[:, 1:][:, ::-1]
  assert got["accuracy"] == np.mean(exact.argmax(axis=1) == labels)


@pytest.mark.parametrize(
    "indices, said",
    [([0, -2], "list of indices"), ([0.5], "list of indices"), ([[1]], "list of indices"),
     ([3, 1, 3], "1 indices twice"), ([0, 5], "index 5, the head has 5 classes")],
    ids=["negative", "fraction", "table", "twice", "beyond"],
)
def test_wrong_maps(indices, said):
  with pytest.raises(ConfigError, match=said):
    params = {"head": {"kernel": np.ones((64, 5)), "bias": np.zeros(5)}}
    restricted(logits, indices)(params, {"image": digits()[0][:2]})

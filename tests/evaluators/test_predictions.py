"""Predicted classes and confidences, by float64 NumPy on the digits."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from digit_features import data_mesh, digits, on_mesh
from vit_jax.evaluators.predictions import PredictionCollector


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_class_and_confidence_of_each_example(dtype):
  values, labels = digits()
  params = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32) / 64
  mask = np.ones(len(labels), np.float32)
  labels[7] = -1
  mask[[7, 1000, 1001]] = 0
  given = on_mesh(data_mesh(), 128, image=values, label=labels, mask=mask)
  got = PredictionCollector(
      logits=lambda p, batch: (batch["image"] @ p).astype(dtype), **given
  ).run(params)
  exact = values.astype(np.float64) @ params.astype(np.float64)
  if dtype == jnp.bfloat16:  # rounded before anything is computed of them
    exact = np.asarray(jnp.asarray(exact, dtype), np.float64)
  else:
    np.testing.assert_array_equal(got.predicted, exact.argmax(axis=1))
  confidence = scipy.special.softmax(exact, axis=1).max(axis=1)
  # Where float32 and float64 round to different sides, bfloat16 logits differ by 2^-8.
  np.testing.assert_allclose(
      got.confidence, confidence, rtol=1e-5 if dtype == jnp.float32 else 1e-2
  )
  assert got.confidence.dtype == np.float32
  np.testing.assert_array_equal(got.labels, labels)
  assert np.sum(~got.readable) == 3


def test_a_head_of_sigmoids_is_as_sure_as_its_largest():
  scores = np.array([[0.0, 2.0, -1.0], [-3.0, -4.0, -5.0]], np.float32)
  given = on_mesh(
      data_mesh(), 8, image=scores, label=np.zeros(2, np.int32), mask=np.ones(2, np.float32)
  )
  got = PredictionCollector(
      logits=lambda p, batch: batch["image"], loss_name="sigmoid", **given
  ).run({})
  np.testing.assert_allclose(got.confidence, scipy.special.expit([2.0, -3.0]), rtol=1e-6)


def test_equal_logits_are_the_first_class():
  given = on_mesh(
      data_mesh(), 8, image=np.zeros((3, 4), np.float32), label=np.arange(3, dtype=np.int32),
      mask=np.ones(3, np.float32),
  )
  got = PredictionCollector(logits=lambda p, batch: batch["image"], **given).run({})
  assert got.predicted.tolist() == [0, 0, 0]
  np.testing.assert_array_equal(got.confidence, np.float32(0.25))

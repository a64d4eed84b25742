"""Target probabilities against PyTorch's smoothing and by hand."""

import numpy as np
import pytest
import torch

from vit_jax.batch_ops.prepare import prepare_batch
from vit_jax.batch_ops.targets import multi_hot, one_hot

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def batch(**labels):
  count = len(next(iter(labels.values())))
  return {"image": np.zeros((count, 2, 2, 3), np.uint8), "mask": np.ones(count, np.float32)} | {
      name: np.array(value, np.int32) for name, value in labels.items()
  }


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_equals_pytorchs(smoothing):
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((6, 5)).astype(np.float32)
  label = rng.integers(0, 5, 6)
  target = np.asarray(one_hot(label, 5, smoothing=smoothing))
  np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-6)
  wanted = torch.nn.functional.cross_entropy(
      torch.tensor(logits), torch.tensor(label), label_smoothing=smoothing, reduction="none"
  )
  log_probabilities = torch.log_softmax(torch.tensor(logits), -1).numpy()
  np.testing.assert_allclose(-(target * log_probabilities).sum(axis=1), wanted, rtol=1e-5)


def test_several_labels_and_their_padding():
  labels = [[0, 3, -1], [2, 2, -1], [-1, -1, -1], [4, 1, 0]]
  wanted = np.array([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 1]])
  np.testing.assert_array_equal(multi_hot(np.array(labels), 5), wanted)
  smoothed = multi_hot(np.array(labels), 5, smoothing=0.1)
  for row, own in zip(smoothed, labels):
    # Each label's share as timm's `mixup_target` smooths it.
    expected = sum((one_hot(np.array([x]), 5, smoothing=0.1)[0] for x in set(own) - {-1}),
                   np.zeros(5))
    np.testing.assert_allclose(row, expected, atol=1e-6)
  prepared = prepare_batch(batch(labels=labels), num_classes=5, label_smoothing=0.1, **HALF)
  np.testing.assert_allclose(prepared["target"], smoothed, atol=1e-7)


def test_one_label_is_smoothed_before_mixing():
  prepared = prepare_batch(batch(label=[0, 4]), num_classes=5, label_smoothing=0.1, **HALF)
  np.testing.assert_allclose(
      prepared["target"], [[0.92, 0.02, 0.02, 0.02, 0.02], [0.02, 0.02, 0.02, 0.02, 0.92]],
      atol=1e-6,
  )

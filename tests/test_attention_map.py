"""Attention rollout against its formula, and the pictures made of it."""

import numpy as np
from PIL import Image
import pytest

from vit_jax.attention_map import attention_rollout, overlay, save_attention


def random_attentions(layers, heads, tokens, seed=0):
  logits = np.random.default_rng(seed).normal(size=(layers, heads, tokens, tokens)) * 3
  weights = np.exp(logits)
  return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def rollout(attentions):
  """The whole product in float64, in the order of the paper: rollout_l = A_l rollout_{l - 1}."""
  product = np.eye(attentions.shape[-1])
  for layer in attentions.astype(np.float64):
    mixing = 0.5 * sum(layer) / len(layer) + 0.5 * np.eye(len(product))
    product = (mixing / mixing.sum(-1, keepdims=True)) @ product
  return product


@pytest.mark.parametrize("prefix_tokens", [1, 2, 6])
def test_rollout_of_the_class_token(prefix_tokens):
  attentions = random_attentions(4, 3, prefix_tokens + 6)
  heat = attention_rollout(attentions, prefix_tokens=prefix_tokens, grid=(2, 3))
  assert heat.dtype == np.float32 and heat.shape == (2, 3)
  expected = rollout(attentions)[0, prefix_tokens:].reshape(2, 3)
  np.testing.assert_allclose(heat, expected, rtol=1e-6)


@pytest.mark.parametrize("prefix_tokens", [0, 4])
def test_rollout_without_a_class_token_is_the_mean_of_the_patches(prefix_tokens):
  attentions = random_attentions(3, 2, prefix_tokens + 6)
  heat = attention_rollout(
      attentions, prefix_tokens=prefix_tokens, grid=(3, 2), class_token=False
  )
  expected = rollout(attentions)[prefix_tokens:, prefix_tokens:].mean(0).reshape(3, 2)
  np.testing.assert_allclose(heat, expected, rtol=1e-6)


def test_no_prefix_is_no_class_token():
  attentions = random_attentions(3, 2, 6)
  arguments = {"prefix_tokens": 0, "grid": (2, 3)}
  np.testing.assert_array_equal(
      attention_rollout(attentions, **arguments),
      attention_rollout(attentions, **arguments, class_token=False),
  )


def test_shares_of_all_tokens_sum_to_one():
  attentions = random_attentions(3, 2, 6)
  assert attention_rollout(attentions, prefix_tokens=0, grid=(2, 3)).sum() == pytest.approx(1)
  assert attention_rollout(attentions, prefix_tokens=2, grid=(2, 2)).sum() < 1


def test_attention_to_one_patch_lights_that_patch():
  attentions = np.zeros((2, 2, 13, 13), np.float32)
  attentions[..., 1 + 4 * 1 + 2] = 1  # all tokens look at row 1, column 2
  heat = attention_rollout(attentions, prefix_tokens=1, grid=(3, 4))
  assert np.unravel_index(heat.argmax(), heat.shape) == (1, 2)
  assert heat[1, 2] == pytest.approx(0.75) and np.delete(heat, 6).max() == 0

  picture = overlay(np.full((48, 64, 3), 200, np.uint8), heat)
  assert picture.dtype == np.uint8 and picture.shape == (48, 64, 3)
  square = picture[16:32, 32:48]
  assert square[8, 8].min() >= 185 and square.mean() > 100
  far = picture.copy()
  far[8:40, 24:56] = 0
  assert far.max() == 0


def test_overlay_of_even_heat_is_the_image():
  image = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
  np.testing.assert_array_equal(overlay(image, np.full((2, 3), 0.01)), image)
  assert overlay(image, np.zeros((2, 3))).max() == 0


def test_the_file_has_a_row_for_each_image(tmp_path):
  rng = np.random.default_rng(0)
  pairs = [
      (rng.integers(0, 256, (24, 36, 3), np.uint8), rng.random((2, 3))) for _ in range(3)
  ]
  save_attention(tmp_path / "out.png", pairs)
  picture = np.asarray(Image.open(tmp_path / "out.png"))
  assert picture.shape == (3 * 24, 2 * 36, 3)
  for i, (image, heat) in enumerate(pairs):
    row = picture[24 * i : 24 * (i + 1)]
    np.testing.assert_array_equal(row[:, :36], image)
    np.testing.assert_array_equal(row[:, 36:], overlay(image, heat))


def test_shapes_that_do_not_fit_are_refused():
  attentions = random_attentions(1, 1, 6)
  with pytest.raises(ValueError, match="6 x 6 tokens are not those of 1 tokens and 2 x 3"):
    attention_rollout(attentions, prefix_tokens=1, grid=(2, 3))

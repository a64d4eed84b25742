"""Attention that begins as trained attention looks, against float64 NumPy."""

import jax
import numpy as np
import pytest

from vit_jax.models.vit import ViT

WIDTH, HEADS, DEPTH = 64, 4, 2
MODEL = dict(
    width=WIDTH, depth=DEPTH, mlp_dim=64, num_heads=HEADS, patch_size=8, image_size=16,
    num_classes=3,
)


def new(seed=0, **changed):
  model = ViT(**MODEL | changed)
  images = np.zeros((1, 16, 16, 3), np.float32)
  return jax.device_get(jax.jit(model.init)(jax.random.key(seed), images)["params"])


def kernels(params, block):
  """query, key `[heads, D, d]`, value `[D, D]`, out `[D, D]` of a block, float64."""
  query, key, value, out = (
      np.float64(params["blocks"]["attention"][name]["kernel"][block])
      for name in ("query", "key", "value", "out")
  )
  return (
      query.swapaxes(0, 1), key.swapaxes(0, 1), value.reshape(WIDTH, -1), out.reshape(-1, WIDTH)
  )


@pytest.fixture(scope="module")
def params():
  return new(attention_initialization="mimetic")


def of_moments(noise, deviation):
  """Holds that a symmetric matrix is noise of this deviation, with nothing on its diagonal."""
  side = len(noise)
  np.testing.assert_allclose(noise, noise.T, atol=1e-6)
  upper = noise[np.triu_indices(side, 1)]
  assert upper.std() == pytest.approx(deviation, rel=0.15)
  assert abs(upper.mean()) < 5 * deviation / np.sqrt(upper.size)
  # The variance of a sum of squares is twice that of a sum of products.
  assert abs(np.trace(noise)) / side < 5 * deviation * np.sqrt(2 / side)


@pytest.mark.parametrize("block", range(DEPTH))
def test_query_times_key_is_an_identity_and_noise(params, block):
  query, key, *_ = kernels(params, block)
  products = query @ key.swapaxes(1, 2) / 0.7
  for product in products:
    of_moments(product - np.eye(WIDTH), (WIDTH // HEADS) ** -0.5)
  assert len({product.tobytes() for product in products}) == HEADS


@pytest.mark.parametrize("block", range(DEPTH))
def test_value_times_output_is_a_negative_identity_and_noise(params, block):
  *_, value, out = kernels(params, block)
  of_moments(value @ out / 0.4 + np.eye(WIDTH), WIDTH**-0.5)


def test_nothing_else_differs(params):
  plain = new()
  for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
    other = params
    for part in path:
      other = other[part.key]
    names = [part.key for part in path]
    assert (names[-1] == "kernel" and "attention" in names) != np.array_equal(leaf, other)


def test_blocks_and_seeds_differ(params):
  query, again = (p["blocks"]["attention"]["query"]["kernel"] for p in (
      params, new(seed=1, attention_initialization="mimetic")
  ))
  assert not np.array_equal(query[0], query[1]) and not np.array_equal(query, again)
  scanned = new(attention_initialization="mimetic", scan=True)
  np.testing.assert_array_equal(query, scanned["blocks"]["attention"]["query"]["kernel"])

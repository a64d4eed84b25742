"""Attention against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import attention

dot_product_attention = jax.jit(
    attention.dot_product_attention, static_argnames="implementation"
)


def reference(query, key, value):
  """softmax(q kᵀ / √d) v, one image and one head at a time, float64."""
  query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
  out = np.zeros(query.shape[:3] + value.shape[3:])
  for image in range(query.shape[0]):
    for head in range(query.shape[2]):
      q, k, v = (a[image, :, head] for a in (query, key, value))
      scores = q @ k.T / np.sqrt(q.shape[-1])
      weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
      out[image, :, head] = weights / weights.sum(axis=-1, keepdims=True) @ v
  return out


def random_inputs(shape, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  return [(scale * rng.standard_normal(shape)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("shape", [(2, 17, 3, 8), (1, 1, 2, 4), (3, 50, 1, 64)])
@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_float32_equals_the_formula(shape, implementation):
  inputs = random_inputs(shape)
  got = dot_product_attention(*inputs, implementation=implementation)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, reference(*inputs), atol=2e-6)


def test_large_logits_do_not_overflow():
  inputs = random_inputs((2, 9, 2, 16), scale=60.0)
  got = dot_product_attention(*inputs)
  assert np.all(np.isfinite(got))
  np.testing.assert_allclose(got, reference(*inputs), atol=1e-2)


def test_bfloat16_keeps_its_dtype_and_softmax_precision():
  inputs = [jnp.asarray(a, jnp.bfloat16) for a in random_inputs((2, 33, 4, 16))]
  got = dot_product_attention(*inputs)
  assert got.dtype == jnp.bfloat16
  # bfloat16 has 8 bits: half a unit in the last place of values around 1 is 2e-3.
  np.testing.assert_allclose(np.asarray(got, np.float64), reference(*inputs), atol=1e-2)


def test_gradients_equal_finite_differences_of_the_formula():
  query, key, value = random_inputs((1, 5, 2, 4))
  weight = np.random.default_rng(1).standard_normal(query.shape)
  loss = lambda *inputs: jnp.sum(dot_product_attention(*inputs) * weight)
  gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(query, key, value)
  step = 1e-5
  for index, gradient in enumerate(gradients):
    place = (0, 3, 1, 2)
    shifted = []
    for sign in (1, -1):
      inputs = [a.astype(np.float64) for a in (query, key, value)]
      inputs[index][place] += sign * step
      shifted.append(np.sum(reference(*inputs) * weight))
    assert gradient[place] == pytest.approx((shifted[0] - shifted[1]) / (2 * step), abs=1e-5)

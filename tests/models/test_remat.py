"""What the backward pass computes again changes memory, and no gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.remat import names_of
from vit_jax.models.vit import ViT

MODEL = ViT(
    width=64, depth=2, mlp_dim=256, num_heads=4, patch_size=4, image_size=32, num_classes=5,
    dropout=0.1, stochastic_depth=0.2, scan=True,
)
CHOICES = ("dots", "block", "names:query,key,value,attended", "names:fc1")


def gradient(model):
  """A jitted function of parameters and images."""

  def loss(params, images):
    logits = model.apply({"params": params}, images, train=True, key=jax.random.key(1))
    return jnp.sum(jnp.sin(logits + jnp.arange(5)))

  return jax.jit(jax.grad(loss))


@pytest.fixture(scope="module")
def inputs():
  images = np.random.default_rng(0).standard_normal((8, 32, 32, 3), np.float32)
  params = jax.jit(MODEL.init)(jax.random.key(0), images[:1])["params"]
  params["head"]["kernel"] = jnp.asarray(np.random.default_rng(1).standard_normal((64, 5)))
  return params, images


@pytest.mark.parametrize("remat, scan", [
    ("dots", True), ("block", False),
    *(pytest.param(remat, scan, marks=pytest.mark.slow) for remat in CHOICES
      for scan in (True, False)),
])
def test_gradients_are_the_same(remat, scan, inputs):
  wanted = gradient(MODEL)(*inputs)
  found = gradient(dataclasses.replace(MODEL, remat=remat, scan=scan))(*inputs)
  # A key bias has no gradient but rounding's, so that of all others is the measure.
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * largest, rtol=2e-5), found, wanted
  )


@pytest.mark.parametrize("remat, times", [("dots", 1), ("block", 2), ("names:dropout_mask", 1)])
def test_masks_of_dropout_are_drawn_once_where_they_are_kept(remat, times, inputs):
  """Drawing them again would cost more than the products of small layers."""

  def drawn(remat):
    model = dataclasses.replace(MODEL, remat=remat, stochastic_depth=0.0)
    return str(gradient(model).trace(*inputs).jaxpr).count("random_bits[")

  outside = 1  # that of the position embeddings
  assert drawn("none") > outside
  assert drawn(remat) - outside == times * (drawn("none") - outside)


@pytest.mark.slow
def test_less_is_kept():
  """Bytes that the compiled gradient needs beside its arguments."""
  model = dataclasses.replace(MODEL, depth=12)
  images = jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.float32)
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))

  def taken(remat):
    function = gradient(dataclasses.replace(model, remat=remat))
    compiled = function.lower(params["params"], images).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  none, dots, block = map(taken, ("none", "dots", "block"))
  assert block < 0.5 * dots < 0.5 * 0.5 * none
  query = taken("names:query")
  # A result of a layer is float32 [16, 65, 64].
  assert query - block == pytest.approx(12 * 16 * 65 * 64 * 4, rel=0.1)


@pytest.mark.parametrize("choice, said", [
    ("some", "'some' is none of none, dots, block, names:"),
    ("names:", "'' is none of norm1, query"),
    ("names:query,fc3", "'fc3' is none of"),
])
def test_an_unknown_choice_is_refused(choice, said):
  with pytest.raises(ValueError) as error:
    names_of(choice)
  assert said in str(error.value)

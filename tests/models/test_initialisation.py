"""New parameters, one by one, are from the distributions of Google's ViT.

Read from vit_jax/models_vit.py of google-research/vision_transformer: Glorot-uniform kernels in
attention and MLP, whose biases have a deviation of 1e-6; LeCun-normal patches and pre_logits, by
flax's default; positions of 0.02; the class token, attention's biases and the head start at 0.
"""

import jax
import numpy as np
import pytest

from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.optim.rules import path_of

WIDTH, HIDDEN, CLASSES, PATCH, DEPTH, SIZE = 96, 384, 50, 8, 3, 32


def glorot(inputs, outputs):
  """Uniform up to this bound, hence a deviation of bound / sqrt(3) (Glorot and Bengio, 2010)."""
  bound = np.sqrt(6 / (inputs + outputs))
  return bound / np.sqrt(3), bound


def lecun(inputs):
  """Normal with variance 1 / inputs, cut off at two deviations of what was drawn."""
  deviation = np.sqrt(1 / inputs)
  return deviation, 2 * deviation / 0.87962566103423978


def normal(deviation):
  return deviation, np.inf


ZERO, ONE = (0.0, 0.0), (0.0, 1.0)
WANTED = {
    "patch_embedding/kernel": lecun(PATCH * PATCH * 3), "patch_embedding/bias": ZERO,
    "class_token": ZERO, "position_embedding": normal(0.02),
    **{f"blocks/attention/{name}/kernel": glorot(WIDTH, WIDTH)
       for name in ("query", "key", "value", "out")},
    **{f"blocks/attention/{name}/bias": ZERO for name in ("query", "key", "value", "out")},
    "blocks/mlp/fc1/kernel": glorot(WIDTH, HIDDEN), "blocks/mlp/fc1/bias": normal(1e-6),
    "blocks/mlp/fc2/kernel": glorot(HIDDEN, WIDTH), "blocks/mlp/fc2/bias": normal(1e-6),
    **{f"{name}/scale": ONE for name in ("blocks/norm1", "blocks/norm2", "norm")},
    **{f"{name}/bias": ZERO for name in ("blocks/norm1", "blocks/norm2", "norm")},
    "pre_logits/kernel": lecun(WIDTH), "pre_logits/bias": ZERO,
    "head/kernel": ZERO, "head/bias": ZERO,
}


@pytest.fixture(scope="module", params=[True, False], ids=["scanned", "unrolled"])
def parameters(request):
  """Path to the new parameter in float64; those of blocks have a leading depth."""
  model = ViT(
      width=WIDTH, depth=DEPTH, mlp_dim=HIDDEN, num_heads=4, patch_size=PATCH, image_size=SIZE,
      num_classes=CLASSES, pre_logits=True, scan=request.param,
  )
  new = jax.jit(model.init)(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32))["params"]
  leaves = jax.tree_util.tree_leaves_with_path(new)
  return {path_of(path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def test_there_is_a_line_for_each(parameters):
  assert parameters.keys() == WANTED.keys()


@pytest.mark.parametrize("path", WANTED)
def test_a_new_parameter(path, parameters):
  value, (deviation, bound) = parameters[path], WANTED[path]
  if deviation == 0:  # a constant
    assert (value == bound).all()
    return
  # Five times the error of a deviation that is measured on so many numbers.
  assert value.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * value.size))
  assert abs(value.mean()) < 5 * deviation / np.sqrt(value.size)
  assert np.abs(value).max() <= bound * (1 + 1e-6)
  if np.isfinite(bound):
    assert np.abs(value).max() > 0.98 * bound  # it is reached: neither normal nor narrower
  if path.startswith("blocks/"):
    assert len({block.tobytes() for block in value}) == DEPTH


def test_the_head_may_start_at_a_bias():
  """-10 for the sigmoids of ImageNet-21k (recipes of big_vision)."""
  model = ViT(
      width=32, depth=1, mlp_dim=32, num_heads=2, patch_size=8, image_size=16, num_classes=CLASSES
  )
  objective = Supervised(model, loss_name="sigmoid", head_bias=-10.0)
  params, _ = objective.init(jax.random.key(0), {"image": np.zeros((1, 16, 16, 3), np.float32)})
  assert (np.asarray(params["head"]["bias"]) == -10).all()

"""An export is trained on in PyTorch as here: one SGD step, compared tensor by tensor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALLER, random_params, write

from vit_jax.interop import huggingface
from vit_jax.interop.tensor_table import leaves
from vit_jax.models.reconstruction import masked_l1
from vit_jax.models.vit import ViT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

RATE = 0.1
MODELS = {
    "ViTForImageClassification": {},
    "ViTForMaskedImageModeling": {
        "num_classes": 0, "pooling": "none", "pixel_decoder": True, "mask_token": True,
    },
    "DeiTForImageClassification": {"distillation_token": True},
    "IJepaForImageClassification": {"class_token": False, "pooling": "gap"},
    "ViTModel": {"num_classes": 0, "pre_logits": True},
    "Dinov2Model": {"num_classes": 0, "layer_scale": 0.5, "mask_token": True},
}
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((6, 16, 16, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 4, 0])
MASK = RNG.random((6, 16)) < 0.5
# What a model without a loss of its own is trained towards.
TARGET = RNG.standard_normal((6, 32)).astype(np.float32)


def draw(model):
  """Random parameters with norms near one: smaller ones leave query and key no gradient to see."""
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: 1 + leaf / 2 if path[-1].key == "scale" else leaf, random_params(model)
  )


def our_loss(params, model):
  answer = ViT(**model, scan=True).apply(
      {"params": params}, IMAGES, patch_mask=MASK if model["pixel_decoder"] else None
  )
  if model["pixel_decoder"]:
    return masked_l1(IMAGES, answer, MASK, 4)
  if model["num_classes"]:
    return -jnp.mean(jax.nn.log_softmax(answer)[np.arange(6), LABELS])
  return jnp.mean((answer - TARGET) ** 2)


def their_loss(judge, model):
  pixels = torch.from_numpy(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))
  if model["pixel_decoder"]:
    return judge(pixels, bool_masked_pos=torch.from_numpy(MASK)).loss
  answer = judge(pixels)
  if model["num_classes"]:
    return torch.nn.functional.cross_entropy(answer.logits, torch.from_numpy(LABELS))
  return torch.mean((answer.pooler_output - torch.from_numpy(TARGET)) ** 2)


@pytest.mark.parametrize("architecture", [
    name if name.startswith("ViT") else pytest.param(name, marks=pytest.mark.slow)
    for name in MODELS
])
def test_one_sgd_step_is_ours(architecture, tmp_path):
  model = SMALLER | {"gelu": "erf"} | MODELS[architecture]
  exported = tmp_path / "exported"
  before, _ = write(huggingface, exported, model, params=draw(model), architecture=architecture)
  judge = getattr(transformers, architecture).from_pretrained(exported).train()
  loss = their_loss(judge, model)
  loss.backward()
  with torch.no_grad():
    for parameter in judge.parameters():
      if parameter.grad is not None:
        parameter -= RATE * parameter.grad
  judge.save_pretrained(tmp_path / "stepped")
  theirs = dict(leaves(huggingface.read(tmp_path / "stepped").params))

  with jax.default_matmul_precision("highest"):
    value, gradient = jax.value_and_grad(our_loss)(before, model)
  np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
  gradients, moved = dict(leaves(gradient)), 0
  for path, leaf in leaves(before):
    step = RATE * np.asarray(gradients[path])
    difference = np.abs(theirs[path] - (leaf - step)).max()
    assert difference <= 1e-5 * np.abs(leaf).max(), path
    # The step alone: exact but for the rounding of subtracting it from the weights.
    rounding = 4 * np.finfo(np.float32).eps * np.abs(leaf).max()
    stepped = np.abs((leaf - theirs[path]) - step).max()
    assert stepped <= 1e-4 * np.abs(step).max() + rounding, path
    moved += np.abs(step).max() > 1e-4 * np.abs(leaf).max()
  # The step is large enough for the comparison to mean something in nearly every tensor.
  assert moved >= 0.8 * len(gradients)

"""Logits against an independent model with the same weights: Hugging Face's, in PyTorch."""

import jax
import numpy as np
import pytest

from vit_jax.models.variants import variant_shape
from vit_jax.models.vit import ViT

pytestmark = pytest.mark.torch

TINY = {
    "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 4, "patch_size": 4, "image_size": 16,
}
ACTIVATIONS = {"tanh": "gelu_pytorch_tanh", "erf": "gelu"}


def random_params(model):
  """Trained-looking parameters: no kernel, bias, scale or token is zero or one."""
  image = np.zeros((1, model.image_size, model.image_size, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    noise = rng.standard_normal(leaf.shape, np.float32)
    name = path[-1].key
    if name == "kernel":  # of fan-in scale, whatever the layer
      fan_in = leaf.size // (leaf.shape[-1] * (leaf.shape[0] if path[0].key == "blocks" else 1))
      return noise / np.float32(np.sqrt(fan_in))
    return 1 + 0.1 * noise if name == "scale" else 0.1 * noise

  return jax.tree_util.tree_map_with_path(draw, shapes)


def torch_logits(params, images, *, model):
  """The logits of transformers' ViTForImageClassification, which gets these weights."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  width = model.width
  weights = {
      "vit.embeddings.cls_token": params["class_token"],
      "vit.embeddings.position_embeddings": params["position_embedding"],
      "vit.embeddings.patch_embeddings.projection.weight": (
          params["patch_embedding"]["kernel"].transpose(3, 2, 0, 1)
      ),
      "vit.embeddings.patch_embeddings.projection.bias": params["patch_embedding"]["bias"],
      "vit.layernorm.weight": params["norm"]["scale"],
      "vit.layernorm.bias": params["norm"]["bias"],
      "classifier.weight": params["head"]["kernel"].T,
      "classifier.bias": params["head"]["bias"],
  }
  for i in range(model.depth):
    block = jax.tree.map(lambda a: a[i], params["blocks"])
    at = f"vit.encoder.layer.{i}."
    for ours, theirs in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
      weights[f"{at}{theirs}.weight"] = block[ours]["scale"]
      weights[f"{at}{theirs}.bias"] = block[ours]["bias"]
    for name in ("query", "key", "value"):
      part = block["attention"][name]
      weights[f"{at}attention.attention.{name}.weight"] = part["kernel"].reshape(width, width).T
      weights[f"{at}attention.attention.{name}.bias"] = part["bias"].reshape(width)
    out = block["attention"]["out"]
    weights[f"{at}attention.output.dense.weight"] = out["kernel"].reshape(width, width).T
    weights[f"{at}attention.output.dense.bias"] = out["bias"]
    for ours, theirs in (("fc1", "intermediate.dense"), ("fc2", "output.dense")):
      weights[f"{at}{theirs}.weight"] = block["mlp"][ours]["kernel"].T
      weights[f"{at}{theirs}.bias"] = block["mlp"][ours]["bias"]
  config = transformers.ViTConfig(
      hidden_size=width,
      num_hidden_layers=model.depth,
      num_attention_heads=model.num_heads,
      intermediate_size=model.mlp_dim,
      hidden_act=ACTIVATIONS[model.gelu],
      layer_norm_eps=model.layer_norm_epsilon,
      image_size=model.image_size,
      patch_size=model.patch_size,
      num_labels=model.num_classes,
  )
  theirs, info = transformers.ViTForImageClassification.from_pretrained(
      None,
      config=config,
      state_dict={k: torch.from_numpy(np.array(v)) for k, v in weights.items()},
      output_loading_info=True,
  )
  assert not info["missing_keys"] and not info["unexpected_keys"], info
  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    return theirs.eval()(pixels).logits.numpy()


def largest_relative_difference(model, batch):
  params = random_params(model)
  shape = (batch, model.image_size, model.image_size, 3)
  images = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
  with jax.default_matmul_precision("highest"):
    ours = jax.jit(model.apply)({"params": params}, images)
  theirs = torch_logits(params, images, model=model)
  assert np.abs(theirs).max() > 0.1
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize(
    "gelu, epsilon", [("tanh", 1e-6), ("erf", 1e-6), ("erf", 1e-12), ("erf", 1e-2)]
)
def test_tiny_logits_equal_pytorchs(gelu, epsilon):
  model = ViT(**TINY, num_classes=7, gelu=gelu, layer_norm_epsilon=epsilon, scan=True)
  assert largest_relative_difference(model, batch=4) <= 5e-6


def test_b16_logits_equal_pytorchs():
  model = ViT(
      **variant_shape("B/16"), image_size=224, num_classes=1000, gelu="erf",
      layer_norm_epsilon=1e-12, scan=True,
  )
  assert largest_relative_difference(model, batch=1) <= 2e-5

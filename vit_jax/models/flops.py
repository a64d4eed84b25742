"""Analytic cost of a ViT: multiply-accumulates of its matrix products."""

from vit_jax.models.positions import grid
from vit_jax.models.vit import DEFAULTS


def forward_macs(**model) -> int:
  """Multiply-accumulates of one image's forward pass, attention counted in full.

  Takes the attributes of `vit.ViT` (those that cost nothing are ignored).
  """
  model = DEFAULTS | model
  width, hidden = model["width"], model["mlp_dim"]
  rows, columns = grid(model["image_size"], model["patch_size"])
  patches = rows * columns
  prefix = model["class_token"] + model["distillation_token"] + model["register_tokens"]
  tokens = patches + prefix
  mlp = (3 if model["mlp"] == "swiglu" else 2) * width * hidden
  block = tokens * (4 * width**2 + mlp) + 2 * tokens**2 * width
  patch = model["patch_size"] ** 2 * 3 * width
  heads = 2 if model["distillation_head"] else 1
  head = heads * width * model["num_classes"] + (width**2 if model["pre_logits"] else 0)
  if model["pooling"] == "map":  # keys and values of all patches; one query
    head += patches * (2 * width**2 + 2 * width) + 2 * width**2 + 2 * width * hidden
  if model["pixel_decoder"]:
    head += patches * patch
  return patches * patch + model["depth"] * block + head


def training_flops(**model) -> int:
  """Floating-point operations of one image's training step: 2 per multiply-accumulate, and the
  backward pass costs twice the forward (PaLM, arXiv 2204.02311, appendix B)."""
  return 6 * forward_macs(**model)

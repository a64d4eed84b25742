"""Analytic cost of a ViT: multiply-accumulates of its matrix products."""


def forward_macs(
    *, width, depth, mlp_dim, patch_size, image_size, num_classes, pooling="cls",
    pre_logits=False, **_,
) -> int:
  """Multiply-accumulates of one image's forward pass, attention counted in full.

  Takes the attributes of `vit.ViT` (those that cost nothing are ignored).
  """
  patches = (image_size // patch_size) ** 2
  tokens = patches + (pooling == "cls")
  block = tokens * (4 * width**2 + 2 * width * mlp_dim) + 2 * tokens**2 * width
  head = width * num_classes + (width**2 if pre_logits else 0)
  return patches * patch_size**2 * 3 * width + depth * block + head


def training_flops(**model) -> int:
  """Floating-point operations of one image's training step: 2 per multiply-accumulate, and the
  backward pass costs twice the forward (PaLM, arXiv 2204.02311, appendix B)."""
  return 6 * forward_macs(**model)

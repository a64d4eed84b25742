"""A ViT's forward pass that holds one block's parameters at a time, to save memory."""

from flax import linen as nn
import jax
import numpy as np

from vit_jax.models.positions import grid
from vit_jax.models.vit import DESCRIPTION, ViT


def streamed_forward(model, params, images, patch_mask=None) -> dict[str, np.ndarray]:
  """Computes in float32 at the highest matmul precision, a block at a time.

  Args:
    model: a description (`vit.DESCRIPTION`).
    params: nested dict of NumPy arrays, float32 or lower.
    images: float32 `[B, H, W, 3]`, normalised.
    patch_mask: bool `[B, N]`, or None.

  Returns:
    float32 arrays: "outputs", what the model answers; "tokens" `[B, T, D]` after the final norm;
    and where it has a distillation head "class_logits" and "distillation_logits".
  """
  attributes = {key: model[key] for key in DESCRIPTION if key in model}
  attributes |= {"dtype": "float32", "attention": "xla"}
  blocks, rest = params["blocks"], {k: v for k, v in params.items() if k != "blocks"}
  with jax.default_matmul_precision("highest"):
    x = _run(_Embedding(**attributes), rest, images, patch_mask)
    block = jax.jit(_apply_block(ViT(**attributes).block()))
    for layer in range(model["depth"]):
      one = jax.tree.map(lambda leaf: np.asarray(leaf[layer], np.float32), blocks)
      # Dispatch runs ahead of execution: without waiting all blocks would be copied at once.
      x = block(one, x).block_until_ready()
    patches = grid(images.shape[1:3], model["patch_size"])
    outputs, seen = _run(_Answer(**attributes), rest, x, patches)
  return {name: np.asarray(value) for name, value in (seen | {"outputs": outputs}).items()}


def _run(module, params, x, argument):
  """Applies one stage, jitted; `argument` is static where it is a tuple."""
  if isinstance(argument, tuple):
    return jax.jit(lambda p, x: module.apply({"params": p}, x, argument))(params, x)
  return jax.jit(lambda p, x, mask: module.apply({"params": p}, x, mask))(params, x, argument)


def _apply_block(block):
  return lambda params, x: block.apply({"params": params}, x, 0.0, jax.random.key(0))[0]


class _Embedding(ViT):
  """The first stage alone: images to tokens."""

  @nn.compact
  def __call__(self, images, patch_mask):
    return self._embed(images, patch_mask)


class _Answer(ViT):
  """The last stage alone: tokens to (answer, dict of tokens and single logits)."""

  @nn.compact
  def __call__(self, x, patches):
    return self._answer(x, patches)

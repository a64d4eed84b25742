"""timm as a judge of what was written: it is imported, where it is installed, by nobody else."""

import logging
from typing import Mapping

import numpy as np

from vit_jax.interop import timm_architectures

_log = logging.getLogger(__name__)


def import_timm():
  """Returns timm, or None where it is not installed or does not run here (and logs why)."""
  try:
    import timm
    import timm.models
  # Beside a torchvision of another build of torch the import ends in a RuntimeError.
  except (ImportError, RuntimeError) as error:
    _log.info("timm does not judge this export: %s", error)
    return None
  return timm


def forward(network, batches: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
  """Runs a timm model in float32.

  Args:
    network: a `VisionTransformer` of timm with its weights.
    batches: float32 `[B, H, W, 3]` by name.

  Returns:
    For each batch "tokens" `[B, T, D]` (what `forward_features` gives: after the final norm where
    that comes before pooling) and "outputs" (what the model answers), float32.
  """
  import torch

  network = network.float().eval()
  answers = {}
  for name, images in batches.items():
    images = np.ascontiguousarray(np.asarray(images, np.float32).transpose(0, 3, 1, 2))
    with torch.inference_mode():
      tokens = network.forward_features(torch.from_numpy(images))
      answers[name] = {
          "tokens": tokens.numpy(), "outputs": network.forward_head(tokens).numpy()
      }
  return answers


def load_npz(timm, path, model: Mapping, *, half: bool):
  """Lets timm's own reader of Google's .npz files fill a model.

  Args:
    timm: the module.
    path: the .npz.
    model: a description that fits the file; its pre_logits and head are left out where it has
      pre_logits, which timm lacks.
    half: whether the arrays are bfloat16.
  """
  pooling = {"cls": "token", "gap": "avg", "map": "map", "none": ""}[model["pooling"]]
  size = model["image_size"]
  network = timm.create_model(
      "vit_base_patch16_224", device="meta", weight_init="skip",
      img_size=size if isinstance(size, int) else tuple(size), patch_size=model["patch_size"],
      embed_dim=model["width"], depth=model["depth"], num_heads=model["num_heads"],
      mlp_ratio=timm_architectures.mlp_ratio(model["mlp_dim"], model["width"]),
      global_pool=pooling, fc_norm=False,
      class_token=model["class_token"], no_embed_class=not model["class_token_position"],
      num_classes=0 if model["pre_logits"] else model["num_classes"],
      act_layer="gelu_tanh" if model["gelu"] == "tanh" else "gelu",
  ).to_empty(device="cpu")
  from timm.models.vision_transformer import _load_weights

  _load_weights(network, str(path), load_bfloat16=half)
  return network

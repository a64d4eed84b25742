"""What transformers computes with an export, from its files alone."""

import contextlib
import importlib.util
from pathlib import Path
from typing import Mapping

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.interop.huggingface_keys import canonical
from vit_jax.interop.tensor_files import open_tensors, read_json
from vit_jax.interop.tensor_table import first_ten


def judge(directory, batches: Mapping[str, np.ndarray], patch_mask=None) -> dict | None:
  """Lets transformers load a directory and compute what our model answers, in float32.

  Args:
    directory: as `huggingface.write` leaves it.
    batches: float32 images `[B, H, W, 3]` by name.
    patch_mask: bool `[N]` or `[B, N]`, True where a patch is masked, for a class that decodes
      pixels; None masks nothing.

  Returns:
    By batch, float32: "tokens" `[B, T, D]` after the final norm; "outputs", what our model of that
    description answers; of DeiTForImageClassificationWithTeacher "class_logits" and
    "distillation_logits"; of ViTForMaskedImageModeling with a mask its own "loss".  None where
    torch or transformers is not installed.

  Raises:
    CheckpointError: transformers finds tensors missing, unexpected or of another shape.
  """
  if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
    return None
  directory = Path(directory)
  architecture = read_json(directory / "config.json")["architectures"][0]
  model = _load(directory, architecture)
  return {name: _answers(model, images, patch_mask) for name, images in batches.items()}


def _load(directory: Path, architecture: str):
  """Loads the directory's class for inference, and refuses any unclean load."""
  import torch
  import transformers

  options = {}
  if architecture in ("ViTModel", "DeiTModel", "IJepaModel"):
    with open_tensors(directory) as source:
      names = {canonical(name, "vit") for name in source.shapes}
    options = {
        "add_pooling_layer": "pooler.dense.weight" in names,
        "use_mask_token": "embeddings.mask_token" in names,
    }
  with _quiet(transformers.utils.logging):
    model, info = getattr(transformers, architecture).from_pretrained(
        directory, output_loading_info=True, local_files_only=True, dtype=torch.float32, **options
    )
  unclean = [
      f"{kind} {first_ten(map(str, found))}"
      for kind, found in info.items() if found and kind != "error_msgs"
  ] + list(map(str, info.get("error_msgs", ())))
  if unclean:
    raise CheckpointError(
        f"transformers {transformers.__version__} does not load the export cleanly: "
        f"{'; '.join(unclean)}. Do not publish it."
    )
  return model.eval()


@contextlib.contextmanager
def _quiet(logging):
  """Keeps the bars of transformers' loading out of our output."""
  shown = logging.is_progress_bar_enabled()
  logging.disable_progress_bar()
  try:
    yield
  finally:
    if shown:
      logging.enable_progress_bar()


def _answers(model, images: np.ndarray, patch_mask) -> dict[str, np.ndarray]:
  """What a transformers model computes on one batch, under our names."""
  import torch

  options = {}
  if patch_mask is not None:
    mask = np.broadcast_to(patch_mask, (len(images), np.shape(patch_mask)[-1]))
    options["bool_masked_pos"] = torch.from_numpy(mask.copy())
  tokens = []
  # SigLIP's encoder is a module of its own before transformers 5.7.
  encoder = getattr(model.base_model, "vision_model", model.base_model)
  norm = encoder.layernorm if hasattr(encoder, "layernorm") else encoder.post_layernorm
  hook = norm.register_forward_hook(lambda *call: tokens.append(call[-1]))
  pixels = np.ascontiguousarray(np.asarray(images, np.float32).transpose(0, 3, 1, 2))
  try:
    with torch.no_grad():
      answer = model(torch.from_numpy(pixels), **options)
  finally:
    hook.remove()
  found = {"tokens": tokens[0]}
  if "reconstruction" in answer:
    found["outputs"] = answer.reconstruction.permute(0, 2, 3, 1)
    if answer.get("loss") is not None:
      found["loss"] = answer.loss
  elif "logits" in answer:
    found["outputs"] = answer.logits
    if "distillation_logits" in answer:
      found["class_logits"] = answer.cls_logits
      found["distillation_logits"] = answer.distillation_logits
  elif answer.get("pooler_output") is not None:
    found["outputs"] = answer.pooler_output
  elif getattr(model.embeddings, "cls_token", None) is not None:
    found["outputs"] = answer.last_hidden_state[:, 0]
  else:
    found["outputs"] = answer.last_hidden_state.mean(dim=1)
  return {name: value.numpy() for name, value in found.items()}

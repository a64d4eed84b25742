"""Names, shapes and layouts of the tensors of transformers' ViTs, beside ours.

One table serves reading and writing.  The names are those of transformers 4, which every release
reads and 5.x still writes; 5.9 and later use others in memory, and on disk on request.
"""

import math
import re
from typing import Mapping

from vit_jax.interop.tensor_table import Tensor
from vit_jax.models.positions import grid

_QKV = ("query", "key", "value")


def tensors(model: Mapping, model_type: str, stored=()) -> list[Tensor]:
  """Lists the tensors of a model in the form of `huggingface_fit.fit`.

  Args:
    model: a whole description.
    model_type: a key of `huggingface_classes.FAMILIES`; it decides the names.
    stored: canonical names in the file that is read: DINOv2's SwiGLU has one tensor of two halves
      or two, and SigLIP 2's patch embedding is flat.
  """
  if model_type.startswith("siglip"):
    return list(_siglip(model, flat_patches=model_type.startswith("siglip2")))
  dinov2 = model_type.startswith("dinov2")
  halves = any(name.endswith("mlp.gate_proj.weight") for name in stored)
  return [
      *_vit_embeddings(model, mask_token=(1,) * (1 if dinov2 else 2)),
      *(_dinov2_blocks(model, halves) if dinov2 else _vit_blocks(model)),
      *norm("layernorm", ("norm",), model["width"]),
      *_vit_heads(model),
  ]


def dense(name, path, inputs: int, outputs: int, *, layer=None, bias=True, tail=()):
  """Yields weight and bias of a dense layer; `tail` are axes of 1 after those of the weight."""
  shape = (outputs, inputs, *tail)
  yield Tensor(f"{name}.weight", shape, ((*path, "kernel"),), layer, "matrix")
  if bias:
    yield Tensor(f"{name}.bias", (outputs,), ((*path, "bias"),), layer)


def norm(name, path, width: int, *, layer=None):
  """Yields weight and bias of a layer norm."""
  for theirs, ours in (("weight", "scale"), ("bias", "bias")):
    yield Tensor(f"{name}.{theirs}", (width,), ((*path, ours),), layer)


def _patches(name, model, *, flat=False):
  """Yields weight and bias of the patch embedding."""
  width, patch = model["width"], model["patch_size"]
  path = ("patch_embedding",)
  if flat:  # rows, columns, colours of a patch, as in our kernel
    yield from dense(name, path, 3 * patch**2, width)
  else:
    shape = (width, 3, patch, patch)
    yield Tensor(f"{name}.weight", shape, ((*path, "kernel"),), layout="convolution")
    yield Tensor(f"{name}.bias", (width,), ((*path, "bias"),))


def _vit_embeddings(model, *, mask_token: tuple[int, ...]):
  """Yields the tokens and embeddings of ViT, DeiT, I-JEPA and DINOv2; `mask_token` are the axes
  before its width."""
  width = model["width"]
  tokens = {
      "cls_token": ("class_token", model["class_token"], (1, 1)),
      "distillation_token": ("distillation_token", model["distillation_token"], (1, 1)),
      "mask_token": ("mask_token", model["mask_token"], mask_token),
      "register_tokens": (
          "register_tokens", model["register_tokens"], (1, model["register_tokens"])
      ),
  }
  for name, (ours, there, axes) in tokens.items():
    if there:
      yield Tensor(f"embeddings.{name}", (*axes, width), ((ours,),))
  rows = math.prod(grid(model["image_size"], model["patch_size"]))
  rows += model["class_token"] + model["distillation_token"]
  yield Tensor("embeddings.position_embeddings", (1, rows, width), (("position_embedding",),))
  yield from _patches("embeddings.patch_embeddings.projection", model)


def _vit_attention(at, model, layer: int):
  width, path = model["width"], ("blocks", "attention")
  for part in _QKV:
    yield from dense(
        f"{at}.attention.attention.{part}", (*path, part), width, width, layer=layer,
        bias=model["qkv_bias"],
    )
  yield from dense(f"{at}.attention.output.dense", (*path, "out"), width, width, layer=layer)


def _vit_blocks(model):
  width, hidden = model["width"], model["mlp_dim"]
  for i in range(model["depth"]):
    at = f"encoder.layer.{i}"
    yield from norm(f"{at}.layernorm_before", ("blocks", "norm1"), width, layer=i)
    yield from _vit_attention(at, model, i)
    yield from norm(f"{at}.layernorm_after", ("blocks", "norm2"), width, layer=i)
    mlp = ("blocks", "mlp")
    yield from dense(f"{at}.intermediate.dense", (*mlp, "fc1"), width, hidden, layer=i)
    yield from dense(f"{at}.output.dense", (*mlp, "fc2"), hidden, width, layer=i)


def _dinov2_blocks(model, halves: bool):
  width, hidden = model["width"], model["mlp_dim"]
  for i in range(model["depth"]):
    at, mlp = f"encoder.layer.{i}", ("blocks", "mlp")
    yield from norm(f"{at}.norm1", ("blocks", "norm1"), width, layer=i)
    yield from _vit_attention(at, model, i)
    yield Tensor(f"{at}.layer_scale1.lambda1", (width,), (("blocks", "layer_scale1"),), i)
    yield from norm(f"{at}.norm2", ("blocks", "norm2"), width, layer=i)
    if model["mlp"] == "gelu":
      yield from dense(f"{at}.mlp.fc1", (*mlp, "fc1"), width, hidden, layer=i)
      yield from dense(f"{at}.mlp.fc2", (*mlp, "fc2"), hidden, width, layer=i)
    else:
      if halves:
        yield from dense(f"{at}.mlp.gate_proj", (*mlp, "gate"), width, hidden, layer=i)
        yield from dense(f"{at}.mlp.up_proj", (*mlp, "fc1"), width, hidden, layer=i)
      else:
        yield from _fused(f"{at}.mlp.weights_in.", mlp, ("gate", "fc1"), width, hidden, i)
      yield from dense(f"{at}.mlp.weights_out", (*mlp, "fc2"), hidden, width, layer=i)
    yield Tensor(f"{at}.layer_scale2.lambda1", (width,), (("blocks", "layer_scale2"),), i)


def _fused(name, path, parts, inputs: int, outputs: int, layer=None):
  """Yields weight and bias of several dense layers of one size, stacked along their outputs."""
  count = len(parts)
  kernels = tuple((*path, part, "kernel") for part in parts)
  yield Tensor(f"{name}weight", (count * outputs, inputs), kernels, layer, "matrix")
  biases = tuple((*path, part, "bias") for part in parts)
  yield Tensor(f"{name}bias", (count * outputs,), biases, layer)


def _vit_heads(model):
  width, classes = model["width"], model["num_classes"]
  if model["pre_logits"]:
    yield from dense("pooler.dense", ("pre_logits",), width, width)
  if model["pixel_decoder"]:
    pixels = 3 * model["patch_size"] ** 2
    yield from dense("decoder.0", ("pixel_decoder",), width, pixels, tail=(1, 1))
  if model["distillation_head"]:
    yield from dense("cls_classifier", ("head",), width, classes)
    yield from dense("distillation_classifier", ("distillation_head",), width, classes)
  elif classes:
    yield from dense("classifier", ("head",), width, classes)


def _siglip(model, *, flat_patches: bool):
  width, hidden = model["width"], model["mlp_dim"]
  yield from _patches("embeddings.patch_embedding", model, flat=flat_patches)
  rows = math.prod(grid(model["image_size"], model["patch_size"]))
  yield Tensor("embeddings.position_embedding.weight", (rows, width), (("position_embedding",),))
  for i in range(model["depth"]):
    at, attention, mlp = f"encoder.layers.{i}", ("blocks", "attention"), ("blocks", "mlp")
    yield from norm(f"{at}.layer_norm1", ("blocks", "norm1"), width, layer=i)
    for part, name in zip((*_QKV, "out"), ("q_proj", "k_proj", "v_proj", "out_proj")):
      yield from dense(f"{at}.self_attn.{name}", (*attention, part), width, width, layer=i)
    yield from norm(f"{at}.layer_norm2", ("blocks", "norm2"), width, layer=i)
    yield from dense(f"{at}.mlp.fc1", (*mlp, "fc1"), width, hidden, layer=i)
    yield from dense(f"{at}.mlp.fc2", (*mlp, "fc2"), hidden, width, layer=i)
  yield from norm("post_layernorm", ("norm",), width)
  if model["pooling"] == "map":
    path, mlp = ("map_head", "attention"), ("map_head", "mlp")
    yield Tensor("head.probe", (1, 1, width), (("map_head", "probe"),))
    yield from _fused("head.attention.in_proj_", path, _QKV, width, width)
    yield from dense("head.attention.out_proj", (*path, "out"), width, width)
    yield from norm("head.layernorm", ("map_head", "norm"), width)
    yield from dense("head.mlp.fc1", (*mlp, "fc1"), width, hidden)
    yield from dense("head.mlp.fc2", (*mlp, "fc2"), hidden, width)


# Of these the encoder's names stand behind one in models with heads.
_PREFIXES = re.compile(
    r"(?:vit|deit|ijepa|dinov2|dinov2_with_registers|vision_model)\."
)
# Inside of a layer: transformers >= 5.9 in memory (on disk with save_original_format=False) -> 4.
_ATTENTION = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
_MLP = {
    "vit": {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"},
    "dinov2": {"mlp.down_proj": "mlp.weights_out"},
}
_LAYER = re.compile(r"(?:layers|encoder\.layer)\.(\d+)\.(.+)\.(\w+)")


def canonical(name: str, model_type: str) -> str:
  """Turns a name of either generation, with the encoder's prefix or without, into that of a
  table."""
  while match := _PREFIXES.match(name):
    name = name[match.end() :]
  match = _LAYER.fullmatch(name)
  if not match or model_type.startswith("siglip"):
    return name
  layer, part, kind = match.groups()
  part = (_ATTENTION | _MLP["dinov2" if model_type.startswith("dinov2") else "vit"]).get(part, part)
  return f"encoder.layer.{layer}.{part}.{kind}"


def ignored(name: str, model_type: str) -> str | None:
  """What a tensor, by its canonical name, belongs to that this ViT has no use for; None for all
  others."""
  if model_type.startswith("siglip"):
    if name.startswith("text_model."):
      return "the text tower"
    if name in ("logit_scale", "logit_bias"):
      return "the scale and bias of the contrastive loss"
    if name == "embeddings.position_ids":
      return "the numbers of the positions"
  if model_type == "vit_mae" and name.startswith("decoder."):
    return "the pixel decoder"
  return None

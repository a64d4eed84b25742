"""Names, shapes and layouts of a ViT's tensors in timm, and in the code that timm took them from.

One table serves reading and writing.  The names are those of timm 1.0's `VisionTransformer` and
`VisionTransformerDistilled`; DINO, DINOv2, MAE and DeiT are renamed to them on reading.
"""

import re
from typing import Mapping, Sequence

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.interop.tensor_table import Tensor, first_ten
from vit_jax.models.positions import grid


def tensors(model: Mapping) -> list[Tensor]:
  """Lists the tensors of a model in timm's form (see `timm_directory.fit`).

  `pos_embed` is listed without rows of register tokens, which timm has where the class token has
  one: `WithoutRegisterRows` takes them off, `disk_tensors` puts them on.
  """
  width, depth = model["width"], model["depth"]
  heads, patch = model["num_heads"], model["patch_size"]
  qkv = ("query", "key", "value")

  def pair(name, path, shape, *, layer=None, layout="matrix", leaves=("kernel", "bias"), also=()):
    """Weight and bias; `also` are paths of further leaves, concatenated after those of `path`."""
    paths = (path, *also)
    yield Tensor(
        f"{name}.weight", shape, tuple((*p, leaves[0]) for p in paths), layer, layout
    )
    if leaves[1]:
      yield Tensor(f"{name}.bias", shape[:1], tuple((*p, leaves[1]) for p in paths), layer)

  def norm(name, path, size=width, *, layer=None):
    return pair(name, path, (size,), layer=layer, layout="same", leaves=("scale", "bias"))

  def mlp(name, path, *, layer=None, kind="gelu"):
    hidden = model["mlp_dim"]
    if kind == "swiglu":
      yield from pair(
          f"{name}.fc1", (*path, "gate"), (2 * hidden, width), layer=layer,
          also=((*path, "fc1"),),
      )
    else:
      yield from pair(f"{name}.fc1", (*path, "fc1"), (hidden, width), layer=layer)
    yield from pair(f"{name}.fc2", (*path, "fc2"), (width, hidden), layer=layer)

  found = []
  tokens = (
      ("cls_token", "class_token", model["class_token"]),
      ("dist_token", "distillation_token", model["distillation_token"]),
      ("reg_token", "register_tokens", model["register_tokens"]),
  )
  for name, ours, count in tokens:
    if count:
      found.append(Tensor(name, (1, int(count), width), ((ours,),)))
  rows, columns = grid(model["image_size"], patch)
  positions = rows * columns + position_rows(model)
  found.append(Tensor("pos_embed", (1, positions, width), (("position_embedding",),)))
  found += pair(
      "patch_embed.proj", ("patch_embedding",), (width, 3, patch, patch), layout="convolution"
  )
  for i in range(depth):
    at, attention = f"blocks.{i}", ("blocks", "attention")
    found += norm(f"{at}.norm1", ("blocks", "norm1"), layer=i)
    found += pair(
        f"{at}.attn.qkv", (*attention, "query"), (3 * width, width), layer=i,
        leaves=("kernel", "bias" if model["qkv_bias"] else None),
        also=tuple((*attention, part) for part in qkv[1:]),
    )
    if model["qk_norm"]:
      found += norm(f"{at}.attn.q_norm", (*attention, "query_norm"), width // heads, layer=i)
      found += norm(f"{at}.attn.k_norm", (*attention, "key_norm"), width // heads, layer=i)
    found += pair(f"{at}.attn.proj", (*attention, "out"), (width, width), layer=i)
    if model["layer_scale"] is not None:
      found.append(Tensor(f"{at}.ls1.gamma", (width,), (("blocks", "layer_scale1"),), i))
    found += norm(f"{at}.norm2", ("blocks", "norm2"), layer=i)
    found += mlp(f"{at}.mlp", ("blocks", "mlp"), layer=i, kind=model["mlp"])
    if model["layer_scale"] is not None:
      found.append(Tensor(f"{at}.ls2.gamma", (width,), (("blocks", "layer_scale2"),), i))
  found += norm("fc_norm" if model["norm_after_pooling"] else "norm", ("norm",))
  if model["pooling"] == "map":
    attention = ("map_head", "attention")
    found.append(Tensor("attn_pool.latent", (1, 1, width), (("map_head", "probe"),)))
    found += pair("attn_pool.q", (*attention, "query"), (width, width))
    found += pair(
        "attn_pool.kv", (*attention, "key"), (2 * width, width), also=((*attention, "value"),)
    )
    found += pair("attn_pool.proj", (*attention, "out"), (width, width))
    found += norm("attn_pool.norm", ("map_head", "norm"))
    found += mlp("attn_pool.mlp", ("map_head", "mlp"))
  if model["pre_logits"]:  # timm had it until 0.6; only read
    found += pair("pre_logits.fc", ("pre_logits",), (width, width))
  classes = model["num_classes"]
  if classes:
    found += pair("head", ("head",), (classes, width))
  if model["distillation_head"]:
    found += pair("head_dist", ("distillation_head",), (classes, width))
  return found


def position_rows(model: Mapping) -> int:
  """Rows of the position table before the patches' in our tree."""
  rows = bool(model["class_token"]) + bool(model["distillation_token"])
  return rows if model["class_token_position"] else 0


def disk_tensors(model: Mapping, params: Mapping):
  """The tensors as timm has them: {name: shape}, and a function from name to values."""
  table = {tensor.name: tensor for tensor in tensors(model)}
  shapes = {name: tensor.shape for name, tensor in table.items()}
  prefix = position_rows(model)
  registers = model["register_tokens"] if prefix else 0
  count = shapes["pos_embed"][1] + registers
  shapes["pos_embed"] = (1, count, model["width"])

  def values(name: str) -> np.ndarray:
    found = table[name].to_disk(params)
    if name == "pos_embed" and registers:
      rows = np.zeros((1, registers, model["width"]), found.dtype)
      found = np.concatenate([found[:, :prefix], rows, found[:, prefix:]], axis=1)
    return found

  return shapes, values


class WithoutRegisterRows:
  """A source of tensors whose register tokens have taken up their rows of `pos_embed`.

  timm gives registers a position where the class token has one; ours never have one.  Their sum
  is the same float32 addition that timm makes in its forward pass.
  """

  def __init__(self, source, stored: Mapping[str, str], *, prefix: int, registers: int):
    """`prefix` rows belong to class and distillation token, the next `registers` to registers."""
    self.path = source.path
    self._source, self._first, self._last = source, prefix, prefix + registers
    self._positions, self._registers = stored["pos_embed"], stored["reg_token"]
    one, count, width = source.shapes[self._positions]
    self.shapes = {**source.shapes, self._positions: (one, count - registers, width)}

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor as float32."""
    values = self._source.read(name)
    if name == self._positions:
      return np.delete(values, np.s_[self._first : self._last], axis=1)
    if name == self._registers:
      rows = self._source.read(self._positions)[:, self._first : self._last]
      # A zero row changes nothing, not even the sign of a zero.
      return np.where(rows == 0, values, values + rows)
    return values


# Other names of the same thing: DINOv2's, DeiT III's.
_RENAMED = (
    (re.compile(r"register_tokens"), "reg_token"),
    (re.compile(r"blocks\.\d+\.(\d+)\.(.+)"), r"blocks.\1.\2"),  # DINOv2's chunks of blocks
    (re.compile(r"(blocks\.\d+\.mlp)\.w12\.(.+)"), r"\1.fc1.\2"),
    (re.compile(r"(blocks\.\d+\.mlp)\.w3\.(.+)"), r"\1.fc2.\2"),
    (re.compile(r"(blocks\.\d+)\.gamma_([12])"), r"\1.ls\2.gamma"),
)
# Beside the encoder in checkpoints of self-supervised training.
_IGNORED = re.compile(r"mask_token|decoder_.+")
# Tensors of layers that our ViT lacks, and what timm calls the setting.
_FOREIGN = (
    (r"patch_embed\.backbone\..+", "a convolutional stem (a hybrid of ResNet and ViT)"),
    (r"patch_embed\.norm\..+", "embed_norm_layer"),
    (r"patch_embed\.proj\d+\..+|patch_embed\.conv.+", "a convolutional stem"),
    (r"norm_pre\..+", "pre_norm"),
    (r".*rel_pos.*|.*relative_position.*", "relative positions"),
    (r".*rope.*|.*periods", "rotary positions (RoPE)"),
    (r".*\.attn\.norm\..+", "scale_attn_norm"),
    (r".*\.mlp\.norm\..+", "scale_mlp_norm"),
    (r".*\.attn\.[qv]_bias", "BEiT's biases without one for the key"),
    (r".*\.attn\.[qkv]_proj\..+", "separate projections of query, key and value"),
    (r".*\.attn\.lambda_.+", "differential attention"),
    (r".*\.(attns|ffns)\..+|.*\.in_proj\..+", "parallel blocks"),
    (r".*\.mlp\.fc1_[gx]\..+", "SwiGLU with two separate projections (mlp_layer SwiGLU)"),
)


def encoder_names(names: Sequence[str], path) -> tuple[dict[str, str], list[str]]:
  """Finds the encoder among the tensors of a file.

  Args:
    names: of all tensors.
    path: for the errors.

  Returns:
    ({timm's name: name in the file}, lines for the report about what is left out).

  Raises:
    CheckpointError: no ViT, several, one tensor under two names, or layers that ours lacks.
  """
  anchor, report = "patch_embed.proj.weight", []
  prefixes = [name.removesuffix(anchor) for name in names if name.endswith(anchor)]
  if len(prefixes) > 1:  # of DINO's student and teacher the teacher is the one to use
    prefixes = [prefix for prefix in prefixes if "teacher" in prefix] or prefixes
  stem = any("patch_embed.backbone." in name for name in names)
  if len(prefixes) != 1 and not stem:
    problem = (
        f"holds several models, under {first_ten(prefixes)}; save one of them alone"
        if prefixes else
        f"has no tensor {anchor}, so it is no ViT in timm's naming (its tensors are "
        f"{first_ten(names)})"
    )
    raise CheckpointError(f"{path} {problem}.")
  prefix = prefixes[0] if prefixes else ""
  outside = [name for name in names if not name.startswith(prefix)]
  if outside:
    report.append(
        f"read the model under {prefix!r} alone, ignored {len(outside)} other tensors: "
        f"{first_ten(outside)}"
    )
  stored, ignored = {}, []
  for name in names:
    if not name.startswith(prefix):
      continue
    short = name.removeprefix(prefix)
    for pattern, ours in _RENAMED:
      short = pattern.sub(ours, short) if pattern.fullmatch(short) else short
    if _IGNORED.fullmatch(short):
      ignored.append(name)
    elif short in stored:
      raise CheckpointError(
          f"{path} holds one tensor under two names: {stored[short]} and {name}. Remove one."
      )
    else:
      stored[short] = name
  if ignored:
    report.append(f"ignored {first_ten(ignored)}: only self-supervised training uses them")
  _refuse_foreign_layers(stored, path)
  return stored, report


def _refuse_foreign_layers(stored: Mapping[str, str], path) -> None:
  for pattern, setting in _FOREIGN:
    found = [name for name in stored if re.fullmatch(pattern, name)]
    if found:
      raise CheckpointError(
          f"{path} is of a model with {setting}, which this ViT does not have "
          f"({first_ten(stored[name] for name in found)}). Load it with timm."
      )

"""Names of a ViT's arrays in Google's .npz files, of every generation, beside our tree.

One table for all: `canonical` turns any generation's name into big_vision's of today.  Shapes and
axes are Flax's on both sides.

Sources: google-research/vision_transformer (`vit_jax/models_vit.py`, `checkpoint.py`),
google-research/big_vision (`models/vit.py`, `fix_old_checkpoints`).
"""

import re
from typing import Mapping, Sequence

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.interop.tensor_table import Tensor, first_ten, put, take
from vit_jax.models.vit import param_shapes

_PAIR = (("kernel", "kernel"), ("bias", "bias"))
_NORM = (("scale", "scale"), ("bias", "bias"))


def _attention(theirs: str, ours: tuple) -> list:
  return [(f"{theirs}/{part}", (*ours, part), _PAIR) for part in ("query", "key", "value", "out")]


def _mlp(theirs: str, ours: tuple) -> list:
  return [(f"{theirs}/Dense_{i}", (*ours, f"fc{i + 1}"), _PAIR) for i in range(2)]


_BLOCK = (
    ("LayerNorm_0", ("blocks", "norm1"), _NORM),
    *_attention("MultiHeadDotProductAttention_0", ("blocks", "attention")),
    ("LayerNorm_1", ("blocks", "norm2"), _NORM),
    *_mlp("MlpBlock_0", ("blocks", "mlp")),
)
_REST = (
    ("embedding", ("patch_embedding",), _PAIR),
    ("", (), (("cls", "class_token"), ("pos_embedding", "position_embedding"))),
    ("Transformer/encoder_norm", ("norm",), _NORM),
    ("MAPHead_0", ("map_head",), (("probe", "probe"),)),
    *_attention("MAPHead_0/MultiHeadDotProductAttention_0", ("map_head", "attention")),
    ("MAPHead_0/LayerNorm_0", ("map_head", "norm"), _NORM),
    *_mlp("MAPHead_0/MlpBlock_0", ("map_head", "mlp")),
    ("pre_logits", ("pre_logits",), _PAIR),
    ("head", ("head",), _PAIR),
)


def tensors(model: Mapping, *, scanned: bool) -> list[Tensor]:
  """Lists the arrays of a model that these files can hold, under big_vision's names of today.

  Args:
    scanned: whether the blocks are one array each, with a leading depth axis, or one a block.
  """
  shapes = param_shapes(model)
  found = []

  def add(theirs, ours, leaves, layer=None):
    for name, leaf in leaves:
      path = (*ours, leaf)
      if path in shapes:
        shape = shapes[path] if layer is None else shapes[path][1:]
        found.append(Tensor(f"{theirs}/{name}" if theirs else name, shape, (path,), layer))

  for theirs, ours, leaves in _REST:
    add(theirs, ours, leaves)
  for layer in (None,) if scanned else range(model["depth"]):
    for theirs, ours, leaves in _BLOCK:
      number = "" if layer is None else f"_{layer}"
      add(f"Transformer/encoderblock{number}/{theirs}", ours, leaves, layer)
  return found


# The original numbered the modules of a block through, before Linen counted by kind.
_OF_BLOCK = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
}
_BLOCK_NAME = re.compile(r"(Transformer/encoderblock(?:_\d+)?)/([^/]+)/(.+)")
# While ViT-G was developed the attention-pooling head lay at the top.
_INLINED = re.compile(r"probe|(?:MultiHeadDotProductAttention_0|LayerNorm_0|MlpBlock_0)/.+")
_POSITIONS = re.compile(r"Transformer/(?:posembed_input/)?pos_embedding")


def canonical(name: str) -> str:
  """big_vision's name of today for the name of any generation, both without a prefix."""
  if _POSITIONS.fullmatch(name):
    return "pos_embedding"
  if _INLINED.fullmatch(name):
    return f"MAPHead_0/{name}"
  match = _BLOCK_NAME.fullmatch(name)
  if not match:
    return name
  block, module, rest = match.groups()
  return f"{block}/{_OF_BLOCK.get(module, module)}/{rest}"


def original(name: str) -> str:
  """The original's name of an array, the reverse of `canonical`."""
  if name == "pos_embedding":
    return "Transformer/posembed_input/pos_embedding"
  match = _BLOCK_NAME.fullmatch(name)
  if not match:
    return name
  block, module, rest = match.groups()
  number = {new: old for old, new in _OF_BLOCK.items()}
  return f"{block}/{number.get(module, module)}/{rest}"


# Where the encoder lies: of an image and text model, of a training state, of the original's
# optimizer, and alone.
_PREFIXES = ("params/img/", "params/", "opt/target/img/", "opt/target/", "img/", "")


def encoder_names(names: Sequence[str], path) -> tuple[dict[str, str], list[str]]:
  """Finds the image encoder among the arrays of a file.

  Args:
    names: of all arrays.
    path: for the errors.

  Returns:
    ({big_vision's name of today: name in the file}, lines for the report about what is left out).

  Raises:
    CheckpointError: no ViT, a hybrid with a ResNet stem, one array under two names.
  """
  prefix = next((p for p in _PREFIXES if f"{p}embedding/kernel" in names), None)
  if prefix is None:
    raise CheckpointError(
        f"{path} is no ViT of Google's: it has no array embedding/kernel, with or without params/, "
        f"params/img/ or opt/target/ before it. It holds {first_ten(names) or 'no arrays'}."
    )
  # A bare tree may have the optimizer's state beside it.
  mine = [n for n in names if n.startswith(prefix) and (prefix or not n.startswith("opt/"))]
  report = []
  outside = [name for name in names if name not in set(mine)]
  if outside:
    report.append(
        f"ignored {len(outside)} arrays outside of {prefix or 'the encoder'}, such as a text "
        f"encoder or an optimizer's state: {first_ten(outside)}"
    )
  stored = {}
  for name in mine:
    short = canonical(name.removeprefix(prefix))
    if short in stored:
      raise CheckpointError(
          f"{path} holds one array under two names: {stored[short]} and {name}. Remove one."
      )
    stored[short] = name
  stem = [name for name in stored if re.match(r"conv_root/|gn_root/|block\d+/unit", name)]
  if stem:
    raise CheckpointError(
        f"{path} is a hybrid with a ResNet stem ({first_ten(stem)}), which this ViT does not have. "
        "Load it with timm, or take a checkpoint named after its patch size alone (such as B_16)."
    )
  return stored, report


class WithoutClassRow:
  """A source whose table of positions has lost the row of a class token that is not there.

  Before 2022 big_vision made the row also for models that pool by attention, and ignores it.
  """

  def __init__(self, source, name: str):
    self.path, self._source, self._name = source.path, source, name
    one, rows, width = source.shapes[name]
    self.shapes = {**source.shapes, name: (one, rows - 1, width)}

  def read(self, name: str) -> np.ndarray:
    """Reads one array as float32."""
    values = self._source.read(name)
    return values[:, 1:] if name == self._name else values


def with_query_biases(model: Mapping, params: Mapping) -> dict:
  """Gives a model without biases of query, key and value zeros there, which change nothing.

  Args:
    model: its description with qkv_bias set.

  Returns:
    A new tree, sharing the leaves that were there.
  """
  full = {}
  for path, shape in param_shapes(model).items():
    try:
      leaf = take(params, path)
    except KeyError:
      leaf = np.zeros(shape, np.float32)
    put(full, path, leaf)
  return full

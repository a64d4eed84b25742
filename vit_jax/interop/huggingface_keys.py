"""Names, shapes and layouts of a ViT's tensors: ours beside those of Hugging Face.

One table serves reading and writing.  The names are those of transformers 4, which every
release reads and 5.x still writes; 5.9 and later use others in memory, and on disk on request.
"""

import dataclasses
import re
from typing import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor on both sides.

  Attributes:
    name: on disk, without the "vit." of models with a head.
    shape: on disk (PyTorch's order: output before input).
    path: of the leaf in our tree.
    ours: shape of the leaf in our tree, of one layer where `layer` is not None.
    layer: index along the leaf's leading axis, None outside the blocks.
    layout: how the axes relate: "same" up to a reshape, "matrix" (transposed), "convolution"
      (ours height, width, in, out; theirs out, in, height, width).
  """

  name: str
  shape: tuple[int, ...]
  path: tuple[str, ...]
  ours: tuple[int, ...]
  layer: int | None = None
  layout: str = "same"

  def to_disk(self, params: Mapping) -> np.ndarray:
    """Takes this tensor from our tree: a view of shape `shape`, in any memory order."""
    leaf = np.asarray(take(params, self.path))
    leaf = leaf if self.layer is None else leaf[self.layer]
    if self.layout == "convolution":
      return leaf.transpose(3, 2, 0, 1)
    if self.layout == "matrix":
      return leaf.reshape(self.shape[::-1]).T
    return leaf.reshape(self.shape)

  def from_disk(self, values: np.ndarray) -> np.ndarray:
    """Turns values of shape `shape` into a view of shape `ours`."""
    if self.layout == "convolution":
      return values.transpose(2, 3, 1, 0)
    if self.layout == "matrix":
      return values.T.reshape(self.ours)
    return values.reshape(self.ours)


def tensors(model: Mapping) -> list[Tensor]:
  """Lists the tensors of a class-token ViT: encoder, then pooler or classifier if it has one.

  Args:
    model: needs width, depth, mlp_dim, num_heads, patch_size, image_size, num_classes and
        pre_logits.
  """
  width, hidden, patch = model["width"], model["mlp_dim"], model["patch_size"]
  heads = (model["num_heads"], width // model["num_heads"])
  tokens = (model["image_size"] // patch) ** 2 + 1
  token, positions = (1, 1, width), (1, tokens, width)

  def matrix(name, path, ours, bias, *, layer=None):
    """A dense layer with kernel `ours` and bias `bias`; the two split the kernel's axes."""
    outputs = int(np.prod(bias))
    inputs = int(np.prod(ours)) // outputs
    yield Tensor(
        f"{name}.weight", (outputs, inputs), (*path, "kernel"), ours, layer, "matrix"
    )
    yield Tensor(f"{name}.bias", (outputs,), (*path, "bias"), bias, layer)

  def norm(name, path, *, layer=None):
    for theirs, ours in (("weight", "scale"), ("bias", "bias")):
      yield Tensor(f"{name}.{theirs}", (width,), (*path, ours), (width,), layer)

  projection = "embeddings.patch_embeddings.projection"
  found = [
      Tensor("embeddings.cls_token", token, ("class_token",), token),
      Tensor("embeddings.position_embeddings", positions, ("position_embedding",), positions),
      Tensor(
          f"{projection}.weight", (width, 3, patch, patch), ("patch_embedding", "kernel"),
          (patch, patch, 3, width), layout="convolution",
      ),
      Tensor(f"{projection}.bias", (width,), ("patch_embedding", "bias"), (width,)),
  ]
  for i in range(model["depth"]):
    at, attention = f"encoder.layer.{i}", ("blocks", "attention")
    found += norm(f"{at}.layernorm_before", ("blocks", "norm1"), layer=i)
    for part in ("query", "key", "value"):
      found += matrix(
          f"{at}.attention.attention.{part}", (*attention, part), (width, *heads), heads,
          layer=i,
      )
    found += matrix(
        f"{at}.attention.output.dense", (*attention, "out"), (*heads, width), (width,), layer=i
    )
    found += norm(f"{at}.layernorm_after", ("blocks", "norm2"), layer=i)
    mlp = ("blocks", "mlp")
    found += matrix(
        f"{at}.intermediate.dense", (*mlp, "fc1"), (width, hidden), (hidden,), layer=i
    )
    found += matrix(f"{at}.output.dense", (*mlp, "fc2"), (hidden, width), (width,), layer=i)
  found += norm("layernorm", ("norm",))
  if model["pre_logits"]:
    found += matrix("pooler.dense", ("pre_logits",), (width, width), (width,))
  if model["num_classes"]:
    classes = model["num_classes"]
    found += matrix("classifier", ("head",), (width, classes), (classes,))
  return found


# Inside a layer: transformers >= 5.9 in memory (on disk with save_original_format=False) -> 4.
_NEW_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_LAYER = re.compile(r"(?:layers|encoder\.layer)\.(\d+)\.(.+)\.(weight|bias)")


def canonical(name: str) -> str:
  """Turns a name of either generation, with "vit." or without, into that of `Tensor.name`."""
  name = name.removeprefix("vit.")
  match = _LAYER.fullmatch(name)
  if not match:
    return name
  layer, part, kind = match.groups()
  return f"encoder.layer.{layer}.{_NEW_NAMES.get(part, part)}.{kind}"


def take(tree: Mapping, path: tuple[str, ...]):
  """The leaf at `path` of a nested dict."""
  for key in path:
    tree = tree[key]
  return tree


def leaves(tree: Mapping, path: tuple[str, ...] = ()):
  """Yields (path, leaf) of a nested dict."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from leaves(value, (*path, key))
    else:
      yield (*path, key), value


def leaf_shapes(model: Mapping) -> dict[tuple[str, ...], tuple[int, ...]]:
  """Shapes of the leaves of our tree by path, the blocks' with their leading depth axis."""
  return {
      t.path: t.ours if t.layer is None else (model["depth"], *t.ours) for t in tensors(model)
  }

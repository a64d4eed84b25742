"""From a parameter's path to its sharding: ordered rules, the first match wins, none may be left.

FSDP shards one large axis of every kernel over `fsdp`; tensor parallelism splits heads and the
MLP's hidden axis over `tensor` (Megatron-LM, arXiv 1909.08053, section 3).  The leading axis of
`blocks/` is depth and never sharded.  Optimizer moments carry the path of their parameter as a
suffix, so the same rules place them.
"""

import dataclasses
import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

RULES = (
    (r"patch_embedding/kernel", P(None, None, None, "fsdp")),
    (r"blocks/attention/(query|key|value)/kernel", P(None, "fsdp", "tensor")),
    (r"blocks/attention/(query|key|value)/bias", P(None, "tensor")),
    (r"blocks/attention/out/kernel", P(None, "tensor", None, "fsdp")),
    (r"blocks/mlp/(fc1|gate)/kernel", P(None, "fsdp", "tensor")),
    (r"blocks/mlp/(fc1|gate)/bias", P(None, "tensor")),
    (r"blocks/mlp/fc2/kernel", P(None, "tensor", "fsdp")),
    (r"map_head/attention/(query|key|value)/kernel", P("fsdp", "tensor")),
    (r"map_head/attention/(query|key|value)/bias", P("tensor")),
    (r"map_head/attention/out/kernel", P("tensor", None, "fsdp")),
    (r"map_head/mlp/fc1/kernel", P("fsdp", "tensor")),
    (r"map_head/mlp/fc1/bias", P("tensor")),
    (r"map_head/mlp/fc2/kernel", P("tensor", "fsdp")),
    (r"pre_logits/kernel", P("fsdp")),
    (r"(head|distillation_head|pixel_decoder)/kernel", P("fsdp", "tensor")),
    (r"(head|distillation_head|pixel_decoder)/bias", P("tensor")),
    # Vectors of the width and the embeddings: small, used everywhere, whole everywhere.
    (r"(norm1|norm2|norm|query_norm|key_norm)/(scale|bias)", P()),
    (r"blocks/layer_scale[12]", P()),
    (r"(patch_embedding|attention/out|fc2|pre_logits)/bias", P()),
    (r"(class|distillation|mask)_token|register_tokens|position_embedding|map_head/probe", P()),
)


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where one leaf lies: path, shape, dtype, the rule's axes and those that had to be dropped."""

  path: str
  shape: tuple[int, ...]
  dtype: str
  spec: P
  dropped: tuple[str, ...]


def path_name(path) -> str:
  """Joins a jax key path with slashes: `blocks/mlp/fc1/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def place(tree, mesh: Mesh) -> list[Placement]:
  """Matches every leaf of an (abstract) state with the rules, in the order of `jax.tree.leaves`.

  A mesh axis that does not divide its dimension is dropped for that leaf and reported.  Leaves
  with one element (step, counts) are replicated without a rule.

  Raises:
    ValueError: leaves that no rule matches, all named.
  """
  placements, unmatched = [], []
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = path_name(path)
    if leaf.size <= 1:
      spec = P()
    else:
      found = [s for pattern, s in RULES if re.search(rf"(^|/)({pattern})$", name)]
      if not found:
        unmatched.append(name)
        continue
      spec = found[0]
    placements.append(_fit(name, leaf, spec, mesh))
  if unmatched:
    raise ValueError(f"no sharding rule in {__name__}.RULES matches: {', '.join(unmatched)}")
  return placements


def _fit(name, leaf, spec, mesh) -> Placement:
  """Drops the axes of `spec` that do not divide their dimension of `leaf`."""
  axes, dropped = [], []
  for axis, size in zip(spec, leaf.shape):
    if axis is not None and size % mesh.shape[axis]:
      dropped.append(f"{axis}={mesh.shape[axis]} does not divide {size}")
      axis = None
    axes.append(axis)
  return Placement(name, leaf.shape, str(leaf.dtype), P(*axes), tuple(dropped))


def shardings(tree, mesh: Mesh):
  """Returns a tree like `tree` of `NamedSharding`s (see `place` for the errors)."""
  leaves = [NamedSharding(mesh, placement.spec) for placement in place(tree, mesh)]
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def placement_table(placements: list[Placement]) -> str:
  """A line a leaf: path, shape, axes, and what was dropped."""
  width = max(len(p.path) for p in placements)
  lines = []
  for p in placements:
    shape = "x".join(map(str, p.shape)) or "scalar"
    spec = "(" + ", ".join(str(axis) for axis in p.spec) + ")" if any(p.spec) else "whole"
    note = f"   [{'; '.join(p.dropped)}]" if p.dropped else ""
    lines.append(f"  {p.path:<{width}}  {shape:<18} {spec}{note}")
  return "\n".join(lines)

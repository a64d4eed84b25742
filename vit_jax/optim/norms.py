"""Lengths of gradients, parameters or updates, block by block."""

import jax
import jax.numpy as jnp

from vit_jax.optim.rules import path_of


def norms_by_block(tree) -> dict[str, jax.Array]:
  """The l2 norms of a tree shaped like the parameters; pure, to be called inside a jitted step.

  Args:
    tree: nested dict of arrays of any float dtype; leaves under `blocks` are `[depth, ...]`.

  Returns:
    float32 scalars, squares being summed in float32: `block_00`, `block_01`, ... of all that one
    block holds, each other top-level name as it stands in the tree (`patch_embedding`, `head`), and
    `all`, the norm of the whole tree.
  """
  squares = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    top = path_of(path[:1])
    axes = tuple(range(1 if top == "blocks" else 0, leaf.ndim))
    square = jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes)
    squares[top] = squares.get(top, 0.0) + square
  whole = sum(jnp.sum(square) for square in squares.values())
  blocks = squares.pop("blocks", ())
  named = {f"block_{i:02d}": blocks[i] for i in range(len(blocks))} | squares
  return {name: jnp.sqrt(square) for name, square in (named | {"all": whole}).items()}

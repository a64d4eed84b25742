"""Norms by block against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.vit import param_shapes
from vit_jax.optim.norms import norms_by_block

MODEL = {
    "width": 32, "depth": 3, "mlp_dim": 64, "num_heads": 4, "patch_size": 4, "image_size": 16,
    "num_classes": 10,
}


def random_tree(seed, scale=1.0, model=MODEL):
  rng = np.random.default_rng(seed)
  tree = {}
  for path, shape in param_shapes(model).items():
    node = tree
    for name in path[:-1]:
      node = node.setdefault(name, {})
    node[path[-1]] = (scale * rng.standard_normal(shape)).astype(np.float32)
  return tree


def reference(tree, depth):
  """Float64, a list of vectors for each name."""
  vectors = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    leaf = np.asarray(leaf).astype(np.float64)
    if path[0].key == "blocks":
      for i in range(depth):
        vectors.setdefault(f"block_{i:02d}", []).append(leaf[i].ravel())
    else:
      vectors.setdefault(path[0].key, []).append(leaf.ravel())
  everything = [np.concatenate(parts) for parts in vectors.values()]
  return {name: np.linalg.norm(np.concatenate(parts)) for name, parts in vectors.items()} | {
      "all": np.linalg.norm(np.concatenate(everything))
  }


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_norms_equal_numpys(scale):
  tree = random_tree(0, scale)
  got = jax.jit(norms_by_block)(tree)
  wanted = reference(tree, 3)
  assert got.keys() == wanted.keys() == {
      "patch_embedding", "class_token", "position_embedding", "block_00", "block_01", "block_02",
      "norm", "head", "all",
  }
  for name, norm in got.items():
    assert norm.shape == () and norm.dtype == jnp.float32
    assert float(norm) == pytest.approx(wanted[name], rel=1e-6)


def test_bfloat16_is_summed_in_float32():
  """Ones in bfloat16 stop adding up at 256."""
  tree = {"blocks": {"a": jnp.ones((2, 10_000), jnp.bfloat16)}, "b": jnp.ones(40_000, jnp.bfloat16)}
  norms = jax.jit(norms_by_block)(tree)
  assert {name: float(norm) for name, norm in norms.items()} == pytest.approx(
      {"block_00": 100.0, "block_01": 100.0, "b": 200.0, "all": 60_000**0.5}, rel=1e-6
  )


def test_many_blocks_keep_their_numbers_and_a_tree_needs_none():
  norms = jax.jit(norms_by_block)({"blocks": {"a": jnp.arange(12.0)}, "head": jnp.ones(4)})
  names = [f"block_{i:02d}" for i in range(12)]
  assert set(norms) == {*names, "head", "all"}
  assert [float(norms[name]) for name in names] == list(range(12))
  assert {name: float(norm) for name, norm in norms_by_block({"w": jnp.array(-3.0)}).items()} == {
      "w": 3.0, "all": 3.0
  }


def test_a_number_that_is_not_finite_shows_in_its_block_alone():
  tree = random_tree(1)
  tree["blocks"]["mlp"]["fc1"]["bias"][1, 0] = np.nan
  norms = jax.jit(norms_by_block)(tree)
  assert {name for name, norm in norms.items() if not np.isfinite(norm)} == {"block_01", "all"}

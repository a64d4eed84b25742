"""Sharding rules: complete for a real training state, dropped where they do not divide."""

import functools

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from vit_jax.models.variants import variant_shape
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.optim.optimizer import make_optimizer
from vit_jax.parallel import sharding
from vit_jax.parallel.mesh import create_mesh
from vit_jax.step import init_state


def abstract_state(*, optimizer="adamw", image_size=32, **model):
  objective = Supervised(ViT(**model, image_size=image_size, scan=True))
  chain = make_optimizer(
      optimizer, schedule=lambda step: 1e-3, b1=0.9, b2=0.999, momentum=0.9, weight_decay=0.1,
      weight_decay_mask="kernel$", clip_global_norm=1.0,
  )
  image = np.zeros((1, image_size, image_size, 3), np.float32)
  init = functools.partial(init_state, objective, chain, batch={"image": image})
  return jax.eval_shape(init, jax.random.key(0))


B16 = variant_shape("B/16") | {"num_classes": 1000}
# What Megatron-style tensor parallelism and FSDP split of B/16; the rest is whole.
SPLIT = {
    "patch_embedding/kernel": P(None, None, None, "fsdp"),
    "blocks/attention/query/kernel": P(None, "fsdp", "tensor", None),
    "blocks/attention/key/kernel": P(None, "fsdp", "tensor", None),
    "blocks/attention/value/kernel": P(None, "fsdp", "tensor", None),
    "blocks/attention/query/bias": P(None, "tensor", None),
    "blocks/attention/key/bias": P(None, "tensor", None),
    "blocks/attention/value/bias": P(None, "tensor", None),
    "blocks/attention/out/kernel": P(None, "tensor", None, "fsdp"),
    "blocks/mlp/fc1/kernel": P(None, "fsdp", "tensor"),
    "blocks/mlp/fc1/bias": P(None, "tensor"),
    "blocks/mlp/fc2/kernel": P(None, "tensor", "fsdp"),
    "head/kernel": P("fsdp", "tensor"),
    "head/bias": P("tensor"),
    "pre_logits/kernel": P("fsdp", None),
}


def padded(spec, ndim):
  return tuple(spec) + (None,) * (ndim - len(spec))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd"},
        {"pooling": "gap", "class_token": False, "pre_logits": True},
        {"num_classes": 0},
    ],
    ids=str,
)
def test_every_leaf_of_a_training_state_has_its_rule(changes):
  state = abstract_state(**(B16 | changes))
  placements = sharding.place(state, create_mesh(replica=2, fsdp=2, tensor=2))
  assert len(placements) == len(jax.tree.leaves(state))
  for placement in placements:
    name = "/".join(placement.path.split("/")[1:])  # without "params" or "opt_state"
    found = [spec for path, spec in SPLIT.items() if name.endswith(path)]
    wanted = found[0] if found else P()
    ndim = len(placement.shape)
    assert padded(placement.spec, ndim) == padded(wanted, ndim), placement
    assert not placement.dropped


def test_moments_lie_where_their_parameters_do():
  mesh = create_mesh(replica=2, fsdp=2, tensor=2)
  placements = sharding.place(abstract_state(**B16), mesh)
  of = {p.path: p.spec for p in placements}
  params = {path.removeprefix("params/") for path in of if path.startswith("params/")}
  moments = [path for path in of if "/mu/" in path or "/nu/" in path]
  assert len(moments) == 2 * len(params)
  for path in moments:
    name = path.partition("/mu/")[2] or path.partition("/nu/")[2]
    assert of[path] == of[f"params/{name}"]


def test_shardings_have_the_trees_structure_and_fit_it(mesh):
  state = abstract_state(**B16)
  shardings = sharding.shardings(state, mesh)
  assert jax.tree.structure(shardings) == jax.tree.structure(state)
  for leaf, where in zip(jax.tree.leaves(state), jax.tree.leaves(shardings)):
    assert where.mesh == mesh
    where.shard_shape(leaf.shape)  # raises where it does not divide


def test_fsdp_leaves_each_device_its_share_of_the_parameters():
  mesh = create_mesh(replica=1, fsdp=8, tensor=1)
  params = abstract_state(**B16).params
  shardings = sharding.shardings(params, mesh)
  whole = sum(leaf.size for leaf in jax.tree.leaves(params))
  share = sum(
      np.prod(where.shard_shape(leaf.shape))
      for leaf, where in zip(jax.tree.leaves(params), jax.tree.leaves(shardings))
  )
  assert share / whole == pytest.approx(1 / 8, rel=0.02)


def test_an_unmatched_leaf_is_named():
  mesh = create_mesh(replica=8, fsdp=1, tensor=1)
  tree = {
      "blocks": {"attention": {"gate": np.zeros(4)}}, "head": {"kernel": np.zeros((4, 4))},
      "prompt": np.zeros((2, 4)),
  }
  with pytest.raises(ValueError) as error:
    sharding.shardings(tree, mesh)
  said = str(error.value)
  assert "blocks/attention/gate" in said and "prompt" in said
  assert "head/kernel" not in said and "RULES" in said


def test_a_name_that_only_ends_alike_is_not_matched():
  with pytest.raises(ValueError, match="overhead/kernel"):
    mesh = create_mesh(replica=8, fsdp=1, tensor=1)
    sharding.shardings({"overhead": {"kernel": np.zeros((8, 8))}}, mesh)


def test_axes_that_do_not_divide_are_dropped_and_reported():
  """Three heads and ten classes over four: those axes stay whole, the others are split."""
  mesh = create_mesh(replica=1, fsdp=2, tensor=4)
  state = abstract_state(**variant_shape("Ti/16"), num_classes=10)
  of = {p.path: p for p in sharding.place(state.params, mesh)}
  query = of["blocks/attention/query/kernel"]
  assert query.shape == (12, 192, 3, 64)
  assert padded(query.spec, 4) == (None, "fsdp", None, None)
  assert query.dropped == ("tensor=4 does not divide 3",)
  assert of["head/kernel"].dropped == ("tensor=4 does not divide 10",)
  assert padded(of["head/kernel"].spec, 2) == ("fsdp", None)
  fc1 = of["blocks/mlp/fc1/kernel"]
  assert padded(fc1.spec, 3) == (None, "fsdp", "tensor") and not fc1.dropped

  table = sharding.placement_table(list(of.values()))
  assert len(table.splitlines()) == len(of)
  line = next(line for line in table.splitlines() if " head/kernel " in line)
  assert "192x10" in line and "(fsdp, None)" in line
  assert "[tensor=4 does not divide 10]" in line
  assert "whole" in next(line for line in table.splitlines() if " norm/scale " in line)


def test_scalars_and_counts_are_replicated_without_a_rule():
  mesh = create_mesh(replica=1, fsdp=8, tensor=1)
  placed = sharding.place({"step": np.zeros((), np.int32), "count": np.zeros(1)}, mesh)
  assert [p.spec for p in placed] == [P(), P()]

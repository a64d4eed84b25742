"""Which parameters the rules take, and the table of them."""

import re

import jax
import numpy as np
import pytest

from vit_jax.errors import ConfigError
from vit_jax.models.vit import ViT, param_shapes
from vit_jax.optim.rules import (
    by_path, check_rules, decay_mask, describe, frozen_mask, layer_multipliers, multipliers,
)

MODEL = {
    "width": 8, "depth": 2, "mlp_dim": 16, "num_heads": 2, "patch_size": 4, "image_size": 8,
    "num_classes": 3, "pre_logits": True,
}
# Every parameter a model can have, in three models.
MODELS = {
    "cls": MODEL | {"layer_scale": 0.1, "qk_norm": True, "mlp": "swiglu"},
    "map": MODEL | {"pooling": "map", "register_tokens": 2, "class_token": False},
    "distilled": MODEL | {
        "pre_logits": False, "distillation_token": True, "distillation_head": True,
        "mask_token": True,
    },
    "pixels": MODEL | {
        "pre_logits": False, "num_classes": 0, "pooling": "none", "pixel_decoder": True,
    },
}


def parameters(model=None):
  """Shapes of the parameters, as the model's `init` traced gives them."""
  module = ViT(**(model or MODEL), scan=True)
  image = np.zeros((1, 8, 8, 3), np.float32)
  return jax.eval_shape(module.init, jax.random.key(0), image)["params"]


def flat(tree):
  return {
      "/".join(part.key for part in path): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def test_exactly_the_kernels_of_a_vit_decay():
  params = parameters()
  mask = decay_mask(params, "kernel$")
  assert jax.tree.structure(mask) == jax.tree.structure(params)
  assert {path for path, decays in flat(mask).items() if decays} == {
      "patch_embedding/kernel",
      "blocks/attention/query/kernel",
      "blocks/attention/key/kernel",
      "blocks/attention/value/kernel",
      "blocks/attention/out/kernel",
      "blocks/mlp/fc1/kernel",
      "blocks/mlp/fc2/kernel",
      "pre_logits/kernel",
      "head/kernel",
  }


def test_a_mask_sees_the_whole_path():
  params = {"blocks": {"kernel": 0, "bias": 0}, "head": {"kernel": 0}}
  wanted = {"blocks": {"kernel": True, "bias": True}, "head": {"kernel": False}}
  assert decay_mask(params, "^blocks/") == wanted
  assert frozen_mask(params, "^blocks/") == wanted
  assert not any(jax.tree.leaves(frozen_mask(params, None)))


def test_the_first_rule_that_finds_a_path_counts():
  rules = (("^head/bias", 0.0), ("^head", 10.0), ("kernel$", 0.5))
  got = flat(multipliers(parameters(), learning_rate_rules=rules))
  assert got["head/bias"] == 0 and got["head/kernel"] == 10
  assert got["blocks/mlp/fc1/kernel"] == 0.5 and got["blocks/mlp/fc1/bias"] == 1


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_counted_from_the_embeddings_to_the_heads(name):
  """BEiT's numbering: embeddings 0, blocks 1 and 2, the rest 3."""
  params = parameters(MODELS[name])
  got = flat(multipliers(params, layer_decay=0.5, depth=2))
  first = re.compile("patch_embedding|position_embedding|.*_tokens?$")
  for path, leaf in flat(params).items():
    if path.startswith("blocks/"):
      assert got[path].shape == (2,) + (1,) * (leaf.ndim - 1)
      assert got[path].dtype == np.float32 and got[path].ravel().tolist() == [0.25, 0.5], path
    else:
      assert got[path] == (0.125 if first.match(path) else 1.0), path


def test_a_rule_multiplies_the_layers():
  got = flat(
      multipliers(
          parameters(), learning_rate_rules=(("fc1", 4.0), ("^head", 3.0)), layer_decay=0.5, depth=2
      )
  )
  assert got["blocks/mlp/fc1/kernel"].ravel().tolist() == [1.0, 2.0]
  assert got["head/bias"] == 3.0


def test_twelve_blocks_decay_like_the_published_loop():
  """MAE's `[layer_decay ** (num_layers - i) for i in range(num_layers + 1)]`, num_layers 13."""
  scales = [0.65 ** (13 - i) for i in range(14)]
  blocks = layer_multipliers("blocks/norm1/scale", layer_decay=0.65, depth=12)
  np.testing.assert_allclose(blocks, scales[1:13], rtol=1e-12)
  assert layer_multipliers("class_token", layer_decay=0.65, depth=12) == scales[0]
  assert layer_multipliers("norm/scale", layer_decay=0.65, depth=12) == scales[13]


def test_another_depth_is_noticed():
  with pytest.raises(ValueError, match="blocks/attention/key/bias has 2 blocks, not 3"):
    multipliers(parameters(), layer_decay=0.5, depth=3)


@pytest.mark.parametrize("name", MODELS)
def test_the_table_has_a_line_for_every_parameter(name):
  params = parameters(MODELS[name])
  heading, *lines = describe(
      params, weight_decay_mask="kernel$", learning_rate_rules=(("norm", 2.0),), layer_decay=0.5,
      freeze="^patch_embedding/", depth=2,
  )
  assert heading.split() == ["parameter", "shape", "decays", "rate"]
  shapes = {"/".join(path): shape for path, shape in param_shapes(MODELS[name]).items()}
  assert [line.split()[0] for line in lines] == list(flat(params)) and len(lines) == len(shapes)
  for line in lines:
    path, shape, decays, rate, *frozen = line.split()
    assert shape == "x".join(map(str, shapes[path]))
    assert frozen == (["frozen"] if path.startswith("patch_embedding/") else [])
    assert decays == ("yes" if path.endswith("kernel") and not frozen else "no")
    if frozen:
      assert rate == "-"
    elif path.startswith("blocks/"):
      assert rate == ("0.5..1" if "norm" in path else "0.25..0.5")


def test_the_table_as_numbers():
  params = {"a": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "b": {"kernel": np.zeros(2)}}
  assert by_path(
      params, weight_decay_mask="kernel$", learning_rate_rules=(("^a", 0.5),), freeze="^b"
  ) == {
      "a/bias": {"decays": False, "frozen": False, "rates": [0.5, 0.5]},
      "a/kernel": {"decays": True, "frozen": False, "rates": [0.5, 0.5]},
      "b/kernel": {"decays": False, "frozen": True, "rates": [0.0, 0.0]},
  }


def test_a_table_without_rules():
  lines = describe({"head": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}},
                   weight_decay_mask="kernel$")
  assert lines == [
      "parameter    shape  decays  rate",
      "head/bias    3      no      1",
      "head/kernel  2x3    yes     1",
  ]


@pytest.mark.parametrize(
    "key, changes, text",
    [
        ("weight_decay_mask", {"weight_decay_mask": "kernels$"}, "'kernels$' finds no parameter;"),
        ("freeze", {"freeze": "^patch_embed/"}, "'^patch_embed/' finds no parameter;"),
        ("freeze", {"freeze": "blocks/0/"}, "(blocks are stacked: no path has their number);"),
        (
            "learning_rate_rules", {"learning_rate_rules": (("^head", 2.0), ("heads", 3.0))},
            "'heads' finds no parameter;",
        ),
    ],
    ids=["mask", "freeze", "block number", "rule"],
)
def test_a_rule_that_finds_nothing_names_its_key_and_three_near_paths(key, changes, text):
  params = parameters()
  rules = {"weight_decay_mask": "kernel$"} | changes
  for call in (check_rules, describe):
    with pytest.raises(ConfigError) as refused:
      call(params, **rules)
    message = str(refused.value)
    assert message.startswith(f"config.optimizer.{key}: ") and text in message
    near = message.partition("near it are ")[2].split(", ")
    assert len(near) == 3 and set(near) <= set(flat(params))
  if key == "freeze" and "patch" in changes[key]:
    assert any(path.startswith("patch_embedding/") for path in near)


def test_a_rule_that_others_leave_nothing_is_refused():
  rules = (("^head", 2.0), ("^head/bias", 0.5))
  with pytest.raises(
      ConfigError,
      match="config.optimizer.learning_rate_rules: the rules before '\\^head/bias' take all",
  ):
    check_rules(parameters(), weight_decay_mask="kernel$", learning_rate_rules=rules)


@pytest.mark.parametrize("multiplier", [-0.5, float("nan"), float("inf")])
def test_a_multiplier_is_a_finite_number_from_0(multiplier):
  with pytest.raises(ConfigError, match=f"rate of '\\^head' by {multiplier}; it must be"):
    check_rules(
        parameters(), weight_decay_mask="kernel$", learning_rate_rules=(("^head", multiplier),)
    )


def test_not_everything_can_be_frozen():
  with pytest.raises(ConfigError, match="config.optimizer.freeze '.' finds every parameter"):
    check_rules(parameters(), weight_decay_mask="kernel$", freeze=".")


def test_the_default_mask_may_find_nothing():
  check_rules({"scale": np.ones(2)}, weight_decay_mask="kernel$")

"""The optimizer chains against loops in float64, and which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.models.vit import ViT
from vit_jax.optim.optimizer import decay_mask, make_optimizer

STEPS = 50
SETTINGS = {
    "b1": 0.9, "b2": 0.99, "momentum": 0.8, "weight_decay": 0.3,
    "weight_decay_mask": "kernel$", "clip_global_norm": 1.0,
}
SHAPES = {"head": {"kernel": (5, 3), "bias": (3,)}, "token": (4,)}


def is_shape(x):
  return isinstance(x, tuple)


def rates(step):
  return 0.05 * (1 + step) / STEPS


def problem():
  """Starting parameters and the gradients of every step, a third of them longer than 1."""
  rng = np.random.default_rng(0)
  draw = lambda scale: jax.tree.map(
      lambda shape: (scale * rng.standard_normal(shape)).astype(np.float32), SHAPES,
      is_leaf=is_shape,
  )
  return draw(1.0), [draw(rng.choice([0.02, 0.1, 3.0])) for _ in range(STEPS)]


def trained(name, *, schedule=rates, **changes):
  params, gradients = problem()
  optimizer = make_optimizer(name, schedule=schedule, **(SETTINGS | changes))

  @jax.jit
  def step(params, state, gradient):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for gradient in gradients:
    params, state = step(params, state, gradient)
  return params


def reference(name, *, b1, b2, momentum, weight_decay, weight_decay_mask, clip_global_norm):
  """The published update rules, leaf by leaf, in float64; kernels decay."""
  del weight_decay_mask
  params, gradients = problem()
  leaves, treedef = jax.tree.flatten(params)
  decays = [path[-1].key == "kernel" for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  leaves = [leaf.astype(np.float64) for leaf in leaves]
  first = [np.zeros_like(leaf) for leaf in leaves]
  second = [np.zeros_like(leaf) for leaf in leaves]
  for t, gradient in enumerate(gradients, start=1):
    gradient = [g.astype(np.float64) for g in jax.tree.leaves(gradient)]
    norm = np.sqrt(sum((g**2).sum() for g in gradient))
    if clip_global_norm is not None and norm > clip_global_norm:
      gradient = [g * clip_global_norm / norm for g in gradient]
    for i, g in enumerate(gradient):
      if name == "adamw":
        first[i] = b1 * first[i] + (1 - b1) * g
        second[i] = b2 * second[i] + (1 - b2) * g**2
        update = first[i] / (1 - b1**t) / (np.sqrt(second[i] / (1 - b2**t)) + 1e-8)
      else:
        first[i] = momentum * first[i] + g
        update = first[i]
      if decays[i]:
        update = update + weight_decay * leaves[i]
      leaves[i] = leaves[i] - rates(t - 1) * update
  return jax.tree.unflatten(treedef, leaves)


def assert_close(got, wanted, atol):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, wanted)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"clip_global_norm": None}, {"weight_decay": 0.0}, {"b1": 0.5, "momentum": 0.0}],
    ids=str,
)
def test_fifty_steps_equal_the_float64_loop(name, changes):
  wanted = reference(name, **(SETTINGS | changes))
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
  assert_close(trained(name, **changes), wanted, atol=2e-6 * max(1.0, largest))


@pytest.mark.torch
@pytest.mark.parametrize(
    "name, weight_decay, mask", [("adamw", 0.3, "."), ("adamw", 0.0, "."), ("sgd", 0.0, ".")]
)
def test_fifty_steps_equal_pytorchs(name, weight_decay, mask):
  torch = pytest.importorskip("torch")
  params, gradients = problem()
  theirs = jax.tree.map(lambda a: torch.tensor(a, dtype=torch.float64), params)
  leaves = jax.tree.leaves(theirs)
  if name == "adamw":
    optimizer = torch.optim.AdamW(
        leaves, lr=0.02, betas=(0.9, 0.99), weight_decay=weight_decay, eps=1e-8
    )
  else:
    optimizer = torch.optim.SGD(leaves, lr=0.02, momentum=0.8)
  for gradient in gradients:
    for leaf, g in zip(leaves, jax.tree.leaves(gradient)):
      leaf.grad = torch.tensor(g, dtype=torch.float64)
    optimizer.step()
  ours = trained(
      name, schedule=lambda step: 0.02, weight_decay=weight_decay, weight_decay_mask=mask,
      clip_global_norm=None,
  )
  assert_close(ours, jax.tree.map(lambda a: a.numpy(), theirs), atol=5e-6)


@pytest.mark.parametrize("length, clipped", [(0.5, 0.5), (1.0, 1.0), (40.0, 1.0)])
def test_the_whole_gradient_is_clipped_to_one_length(length, clipped):
  gradient = {"a": np.array([3.0, 0.0], np.float32), "b": {"c": np.array([4.0], np.float32)}}
  gradient = jax.tree.map(lambda g: g * np.float32(length / 5), gradient)
  optimizer = make_optimizer(
      "sgd", schedule=lambda step: 1.0, **(SETTINGS | {"momentum": 0.0, "weight_decay": 0.0})
  )
  params = jax.tree.map(jnp.zeros_like, gradient)
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  np.testing.assert_allclose(updates["a"], [-0.6 * clipped, 0.0], rtol=1e-6)
  np.testing.assert_allclose(updates["b"]["c"], [-0.8 * clipped], rtol=1e-6)


def test_exactly_the_kernels_of_a_vit_decay():
  model = ViT(
      width=8, depth=2, mlp_dim=16, num_heads=2, patch_size=4, image_size=8, num_classes=3,
      pre_logits=True, scan=True,
  )
  image = np.zeros((1, 8, 8, 3), np.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  mask = decay_mask(params, "kernel$")
  assert jax.tree.structure(mask) == jax.tree.structure(params)
  decaying = {
      "/".join(part.key for part in path)
      for path, decays in jax.tree_util.tree_leaves_with_path(mask) if decays
  }
  assert decaying == {
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
  assert decay_mask(params, "^blocks/") == {
      "blocks": {"kernel": True, "bias": True}, "head": {"kernel": False}
  }


def test_the_first_update_uses_the_rate_of_step_zero():
  seen = make_optimizer(
      "sgd", schedule=lambda step: jnp.where(step == 0, 0.0, 1.0), **SETTINGS
  )
  params = {"kernel": np.ones(2, np.float32)}
  gradient = {"kernel": np.full(2, 0.1, np.float32)}
  updates, state = seen.update(gradient, seen.init(params), params)
  np.testing.assert_array_equal(updates["kernel"], 0)
  updates, _ = seen.update(gradient, state, params)
  assert np.all(np.asarray(updates["kernel"]) < 0)


def test_moments_are_float32():
  params = {"kernel": np.ones(2, np.float32)}
  for name in ("adamw", "sgd"):
    state = make_optimizer(name, schedule=rates, **SETTINGS).init(params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert moments and {leaf.dtype for leaf in moments} == {jnp.dtype("float32")}


def test_an_unknown_rule_is_refused():
  with pytest.raises(ValueError, match="unknown optimizer 'adam'"):
    make_optimizer("adam", schedule=rates, **SETTINGS)

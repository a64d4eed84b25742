"""The optimizer chains against loops in float64 and PyTorch; what their state holds."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from vit_jax.errors import ConfigError
from vit_jax.optim.optimizer import make_optimizer
from vit_jax.optim.rules import path_of

STEPS, DEPTH, PEAK = 50, 2, 0.05
SETTINGS = {
    "b1": 0.9, "b2": 0.99, "momentum": 0.8, "weight_decay": 0.3,
    "weight_decay_mask": "kernel$", "clip_global_norm": 1.0,
}
SHAPES = {
    "blocks": {"mlp": {"kernel": (DEPTH, 4, 3), "bias": (DEPTH, 3)}},
    "class_token": (4,),
    "head": {"kernel": (5, 3), "bias": (3,)},
}
RULES = (("^head/bias", 2.0), ("mlp/kernel", 0.5), ("^head", 3.0))
# What RULES and a layer decay of 0.5 mean for two blocks, by hand.
BY_RULE = {"blocks/mlp/kernel": 0.5, "head/bias": 2.0, "head/kernel": 3.0}
BY_LAYER = {
    "blocks/mlp/kernel": [[[0.25]], [[0.5]]], "blocks/mlp/bias": [[0.25], [0.5]],
    "class_token": 0.125,
}
BY_BOTH = BY_LAYER | BY_RULE | {"blocks/mlp/kernel": [[[0.125]], [[0.25]]]}
LAYERS = {"layer_decay": 0.5, "depth": DEPTH}
INDEPENDENT = {"weight_decay_independent": True, "peak_learning_rate": PEAK}


def rates(step):
  return PEAK * (1 + step) / STEPS


def problem():
  """Starting parameters and the gradients of every step, a third of them longer than 1."""
  rng = np.random.default_rng(0)
  draw = lambda scale: jax.tree.map(
      lambda shape: (scale * rng.standard_normal(shape)).astype(np.float32), SHAPES,
      is_leaf=lambda x: isinstance(x, tuple),
  )
  return draw(1.0), [draw(rng.choice([0.02, 0.1, 3.0])) for _ in range(STEPS)]


def flat(tree):
  return {
      "/".join(part.key for part in path): np.asarray(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def trained(name, *, compiled=False, **changes):
  """Parameters after all steps, by path; operation by operation unless `compiled`."""
  params, gradients = problem()
  optimizer = make_optimizer(name, schedule=rates, **(SETTINGS | changes))
  update = jax.jit(optimizer.update) if compiled else optimizer.update
  state = optimizer.init(params)
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return flat(params)


def reference(
    name, *, b1, b2, momentum, weight_decay, clip_global_norm, factors=(), frozen=(),
    independent=False, epsilon=1e-8, store=lambda moment: moment, **_,
):
  """The published update rules, leaf by leaf, in float64; kernels decay."""
  params, gradients = problem()
  params = {path: leaf.astype(np.float64) for path, leaf in flat(params).items()}
  first = {path: np.zeros_like(leaf) for path, leaf in params.items()}
  second = {path: np.zeros_like(leaf) for path, leaf in params.items()}
  for t, gradient in enumerate(gradients, start=1):
    gradient = {
        path: g.astype(np.float64) for path, g in flat(gradient).items() if path not in frozen
    }
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    shrink = min(1.0, clip_global_norm / norm) if clip_global_norm else 1.0
    for path, g in gradient.items():
      factor = np.asarray(dict(factors).get(path, 1.0))
      decay = weight_decay * params[path] if path.endswith("kernel") else 0.0
      g = g * shrink + (decay if name == "adam" else 0.0)
      if name == "sgd":
        moment = momentum * first[path] + g
        update = moment
      else:
        moment = b1 * first[path] + (1 - b1) * g
        second[path] = b2 * second[path] + (1 - b2) * g**2
        update = moment / (1 - b1**t) / (np.sqrt(second[path] / (1 - b2**t)) + epsilon)
      first[path] = store(moment)
      if name != "adam" and not independent:
        update = update + decay
      params[path] = params[path] - rates(t - 1) * factor * update
      if independent:
        params[path] = params[path] - rates(t - 1) / PEAK * decay
  return params


def assert_close(got, wanted, atol):
  assert got.keys() == wanted.keys()
  for path, leaf in wanted.items():
    np.testing.assert_allclose(got[path], leaf, atol=atol, rtol=0, err_msg=path)


def scaled_tolerance(wanted, relative=2e-6):
  return relative * max(1.0, *(np.abs(leaf).max() for leaf in wanted.values()))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"clip_global_norm": None, "weight_decay": 0.0},
        {"b1": 0.5, "momentum": 0.0, "epsilon": 0.1},
    ],
    ids=str,
)
def test_fifty_steps_equal_the_float64_loop(name, changes):
  wanted = reference(name, **(SETTINGS | changes))
  assert_close(trained(name, **changes), wanted, atol=scaled_tolerance(wanted))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(
    "changes, meaning",
    [
        ({"learning_rate_rules": RULES}, {"factors": BY_RULE}),
        (LAYERS | {"learning_rate_rules": RULES}, {"factors": BY_BOTH}),
        (
            LAYERS | {"freeze": "^head"},
            {"factors": BY_LAYER, "frozen": ("head/kernel", "head/bias")},
        ),
    ],
    ids=["rules", "rules and layers", "layers and freeze"],
)
def test_rules_equal_the_float64_loop(name, changes, meaning):
  wanted = reference(name, **SETTINGS, **meaning)
  assert_close(trained(name, **changes), wanted, atol=scaled_tolerance(wanted))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize(
    "changes, meaning",
    [
        ({}, {}),
        (LAYERS | {"learning_rate_rules": RULES}, {"factors": BY_BOTH}),
        ({"freeze": "bias$"}, {"frozen": ("blocks/mlp/bias", "head/bias")}),
    ],
    ids=["alone", "multiplied", "freeze"],
)
def test_independent_decay_equals_the_float64_loop(name, changes, meaning):
  """0.3 a step at the peak; multipliers leave it alone."""
  wanted = reference(name, independent=True, **SETTINGS, **meaning)
  got = trained(name, **INDEPENDENT, **changes)
  assert_close(got, wanted, atol=scaled_tolerance(wanted))


def test_independent_decay_does_not_know_the_peak():
  """Ten times the rate under ten times the peak: what is not trained by gradients is the same."""
  params = {"kernel": np.ones(2, np.float32)}
  gradient = {"kernel": np.zeros(2, np.float32)}
  for peak in (0.01, 0.1):
    optimizer = make_optimizer(
        "adamw", schedule=lambda step: peak / 2, weight_decay_independent=True,
        peak_learning_rate=peak, **SETTINGS,
    )
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.3, rtol=1e-6)


def in_torch(make, *, factors=()):
  """Trains with PyTorch in float64; blocks are tensors of their own, each with its own rate."""
  torch = pytest.importorskip("torch")
  params, gradients = problem()
  pieces = {}
  for path, leaf in flat(params).items():
    factor = np.broadcast_to(dict(factors).get(path, 1.0), leaf.shape)
    for i in range(DEPTH) if path.startswith("blocks") else [...]:
      tensor = torch.tensor(leaf[i].astype(np.float64), requires_grad=True)
      pieces[path, i] = tensor, float(factor[i].flat[0])
  groups = [
      {"params": [tensor], "lr_scale": scale} | ({} if path.endswith("kernel") else
                                                 {"weight_decay": 0.0})
      for (path, _), (tensor, scale) in pieces.items()
  ]
  optimizer = make(torch.optim, groups)
  for t, gradient in enumerate(gradients):
    gradient = flat(gradient)
    for (path, i), (tensor, _) in pieces.items():
      tensor.grad = torch.tensor(gradient[path][i].astype(np.float64))
    for group in optimizer.param_groups:
      group["lr"] = rates(t) * group["lr_scale"]
    optimizer.step()
  stacked = {}
  for (path, i), (tensor, _) in pieces.items():
    stacked.setdefault(path, []).append(tensor.detach().numpy())
  return {path: np.stack(p) if len(p) > 1 else p[0] for path, p in stacked.items()}


@pytest.mark.torch
@pytest.mark.parametrize(
    "changes, factors", [({}, ()), (LAYERS | {"learning_rate_rules": RULES}, BY_BOTH)],
    ids=["one rate", "multipliers"],
)
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_fifty_steps_equal_pytorchs_adam(name, changes, factors):
  make = lambda optim, groups: {"adam": optim.Adam, "adamw": optim.AdamW}[name](
      groups, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.3
  )
  wanted = in_torch(make, factors=factors)
  got = trained(name, clip_global_norm=None, **changes)
  assert_close(got, wanted, atol=scaled_tolerance(wanted, 5e-6))


@pytest.mark.torch
@pytest.mark.parametrize(
    "momentum, weight_decay", [(0.8, 0.0), (0.0, 0.3)],  # with both, PyTorch's decay has momentum
)
@pytest.mark.parametrize(
    "changes, factors", [({}, ()), (LAYERS, BY_LAYER)], ids=["one rate", "multipliers"]
)
def test_fifty_steps_equal_pytorchs_sgd(momentum, weight_decay, changes, factors):
  make = lambda optim, groups: optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)
  wanted = in_torch(make, factors=factors)
  got = trained(
      "sgd", momentum=momentum, weight_decay=weight_decay, clip_global_norm=None, **changes
  )
  assert_close(got, wanted, atol=scaled_tolerance(wanted, 5e-6))


@pytest.mark.parametrize(
    "name, changes",
    [
        ("adam", {}), ("adamw", {}), ("adamw", {"b1": 0.999}), ("sgd", {}),
        ("sgd", {"momentum": 0.999, "clip_global_norm": 0.05}),
    ],
    ids=str,
)
def test_a_bfloat16_moment_is_rounded_once_a_step_and_nothing_else_is(name, changes):
  to_bfloat16 = lambda moment: moment.astype(ml_dtypes.bfloat16).astype(np.float64)
  wanted = reference(name, store=to_bfloat16, **(SETTINGS | changes))
  got = trained(name, moment_dtype="bfloat16", compiled=True, **changes)
  assert_close(got, wanted, atol=scaled_tolerance(wanted, 2e-5))
  exact = reference(name, **(SETTINGS | changes))
  assert max(np.abs(exact[path] - wanted[path]).max() for path in exact) > 2e-4


def state_bytes(state):
  return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    "name, moment_dtype, per_parameter, counts",
    [
        ("adam", None, 8, 2), ("adamw", None, 8, 2), ("adamw", "bfloat16", 6, 2),
        ("sgd", None, 4, 1), ("sgd", "bfloat16", 2, 1),
    ],
)
def test_the_state_has_the_bytes_of_its_moments(name, moment_dtype, per_parameter, counts):
  params, _ = problem()
  settings = SETTINGS | LAYERS | {"learning_rate_rules": RULES, "moment_dtype": moment_dtype}
  state = make_optimizer(name, schedule=rates, **settings).init(params)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert state_bytes(state) == per_parameter * parameters + 4 * counts
  frozen = make_optimizer(name, schedule=rates, freeze="^head", **settings).init(params)
  head = sum(leaf.size for leaf in jax.tree.leaves(params["head"]))
  assert state_bytes(frozen) == per_parameter * (parameters - head) + 4 * counts


def test_a_frozen_parameter_has_no_moments():
  params, _ = problem()
  state = make_optimizer("adamw", schedule=rates, freeze="^head|token", **SETTINGS).init(params)
  moments = {
      jax.tree_util.keystr(path, simple=True, separator="/").partition("/mu/")[2]
      for path, _ in jax.tree_util.tree_leaves_with_path(state)
  }
  assert moments - {""} == {"blocks/mlp/kernel", "blocks/mlp/bias"}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_frozen_parameters_stay_bit_for_bit_and_out_of_the_norm(name):
  params, gradients = problem()
  results = []
  optimizer = make_optimizer(name, schedule=rates, freeze="^head", **SETTINGS)
  update = jax.jit(lambda gradient: optimizer.update(gradient, optimizer.init(params), params)[0])
  for size in (np.float32(0), np.float32(1e6)):
    gradient = gradients[0] | {"head": jax.tree.map(lambda g: g * size, gradients[0]["head"])}
    updates = update(gradient)
    results.append(flat(updates))
    for leaf in jax.tree.leaves(updates["head"]):
      np.testing.assert_array_equal(leaf, 0)
  for path, leaf in results[0].items():
    np.testing.assert_array_equal(leaf, results[1][path])
  assert np.abs(results[0]["blocks/mlp/kernel"]).min() > 0


def test_a_donated_state_keeps_its_shapes_and_compiles_once():
  params, gradients = problem()
  optimizer = make_optimizer(
      "adamw", schedule=rates, moment_dtype="bfloat16", freeze="token", **SETTINGS, **LAYERS,
      learning_rate_rules=RULES, **INDEPENDENT,
  )

  @jax.jit
  def init(params):
    return params, optimizer.init(params)

  def step(params, state, gradient):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  step = jax.jit(step, donate_argnums=(0, 1))
  first = params, state = init(params)
  wanted = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), first)
  for gradient in gradients[:3]:
    params, state = step(params, state, gradient)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (params, state)) == wanted
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
  assert step._cache_size() == 1


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_bits_are_those_of_the_plain_chain(name):
  scale = optax.scale_by_adam(b1=0.9, b2=0.99) if name == "adamw" else optax.trace(decay=0.8)
  decay = optax.add_decayed_weights(
      0.3, lambda params: jax.tree_util.tree_map_with_path(
          lambda path, _: path[-1].key == "kernel", params
      )
  )
  plain = optax.chain(
      optax.clip_by_global_norm(1.0), scale, decay, optax.scale_by_learning_rate(rates)
  )
  ours = make_optimizer(name, schedule=rates, **SETTINGS)
  params, gradients = problem()
  states = [plain.init(params), ours.init(params)]
  for gradient in gradients[:5]:
    both = [
        jax.jit(optimizer.update)(gradient, state, params)
        for optimizer, state in zip((plain, ours), states)
    ]
    states = [state for _, state in both]
    jax.tree.map(np.testing.assert_array_equal, both[0][0], both[1][0])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_no_part_moves_the_state_of_another(name):
  """So that an amended run may begin or end clipping, decay, rules and layer-wise decay."""
  params, _ = problem()
  plain = SETTINGS | {"clip_global_norm": None, "weight_decay": 0.0}
  shapes = {
      json.dumps(changed): {
          # Orbax also compares states without arrays.
          path_of(path): str(jax.tree.map(jnp.shape, leaf)) for path, leaf in
          jax.tree_util.tree_leaves_with_path(
              make_optimizer(name, schedule=rates, **plain | changed).init(params),
              is_leaf=lambda state: state == optax.EmptyState(),
          )
      }
      for changed in (
          {}, {"clip_global_norm": 1.0}, {"weight_decay": 0.1},
          {"learning_rate_rules": [["kernel", 2.0]]},
      )
  }
  first, *others = shapes.values()
  assert first and all(other == first for other in others)


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


@pytest.mark.parametrize(
    "moment_dtype, dtypes", [(None, {"float32"}), ("bfloat16", {"bfloat16", "float32"})]
)
def test_only_the_first_moment_is_smaller(moment_dtype, dtypes):
  params = {"kernel": np.ones(2, np.float32)}
  settings = SETTINGS | {"moment_dtype": moment_dtype}
  adam = make_optimizer("adamw", schedule=rates, **settings).init(params)["scale"]
  assert adam.nu["kernel"].dtype == jnp.float32
  assert {str(adam.mu["kernel"].dtype), str(adam.nu["kernel"].dtype)} == dtypes


def test_an_unknown_optimizer_is_refused():
  with pytest.raises(ValueError, match="unknown optimizer 'lamb'; choose one of .*'adam'"):
    make_optimizer("lamb", schedule=rates, **SETTINGS)


def test_adam_has_no_independent_decay():
  with pytest.raises(
      ConfigError,
      match="config.optimizer.weight_decay_independent .* config.optimizer.name 'adam' .*'adamw'",
  ):
    make_optimizer("adam", schedule=rates, **SETTINGS, **INDEPENDENT)


@pytest.mark.parametrize(
    "changes, missing",
    [
        ({"weight_decay_independent": True}, "needs peak_learning_rate"),
        ({"layer_decay": 0.5}, "layer_decay needs depth"),
    ],
    ids=["peak", "depth"],
)
def test_an_argument_that_another_needs_is_missed(changes, missing):
  with pytest.raises(ValueError, match=missing):
    make_optimizer("adamw", schedule=rates, **SETTINGS, **changes)


def test_init_refuses_a_rule_without_parameters_even_when_traced():
  params, _ = problem()
  optimizer = make_optimizer("adamw", schedule=rates, freeze="^heads/", **SETTINGS)
  with pytest.raises(ConfigError, match="config.optimizer.freeze: '\\^heads/' finds no parameter"):
    jax.eval_shape(optimizer.init, params)

"""The model against a NumPy ViT in float64, and what its options promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vit_jax.models.dropout import dropout, stochastic_depth
from vit_jax.models.vit import ViT

TINY = {
    "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 4, "patch_size": 4, "image_size": 16,
    "num_classes": 10,
}
NO_TOKEN = {"pooling": "gap", "class_token": False}
IMAGES = np.random.default_rng(0).standard_normal((4, 16, 16, 3)).astype(np.float32)


@functools.cache
def shapes_of(**changes):
  model = ViT(**(TINY | changes), scan=True)
  return jax.eval_shape(model.init, jax.random.key(0), IMAGES[:1])["params"]


def random_params(**changes):
  """Parameters all of which matter: no kernel, bias or scale is left at zero or one."""
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    noise = rng.standard_normal(leaf.shape, np.float32)
    return 1 + 0.1 * noise if path[-1].key == "scale" else 0.2 * noise

  return jax.tree_util.tree_map_with_path(draw, shapes_of(**changes))


@functools.cache
def compiled(train, **changes):
  """Of (params, images, key); scanned unless told otherwise, which compiles sooner."""
  model = ViT(**(TINY | {"scan": True} | changes))
  return jax.jit(lambda p, x, key: model.apply({"params": p}, x, train=train, key=key))


def apply(params, images=IMAGES, *, train=False, key=None, **changes):
  return compiled(train, **changes)(params, images, key)


@functools.cache
def initial_params(**changes):
  return jax.jit(ViT(**(TINY | changes)).init)(jax.random.key(5), IMAGES[:1])["params"]


def reference(params, images, *, pooling="cls", pre_logits=False, gelu="tanh", epsilon=1e-6):
  """Section 3.1 of arXiv 2010.11929, image by image, in float64."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

  def norm(x, at):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return centred / deviation * at["scale"] + at["bias"]

  def activation(x):
    if gelu == "erf":
      return x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

  def attention(x, at):
    heads = []
    for h in range(at["query"]["kernel"].shape[1]):
      q, k, v = (
          x @ at[name]["kernel"][:, h] + at[name]["bias"][h]
          for name in ("query", "key", "value")
      )
      weights = scipy.special.softmax(q @ k.T / np.sqrt(q.shape[-1]), axis=-1)
      heads.append(weights @ v @ at["out"]["kernel"][h])
    return sum(heads) + at["out"]["bias"]

  side = p["patch_embedding"]["kernel"].shape[0]
  outputs = []
  for image in images.astype(np.float64):
    tokens = []
    for top in range(0, image.shape[0], side):
      for left in range(0, image.shape[1], side):
        patch = image[top : top + side, left : left + side]
        tokens.append(np.tensordot(patch, p["patch_embedding"]["kernel"], axes=3))
    x = np.stack(tokens) + p["patch_embedding"]["bias"]
    if pooling == "cls":
      x = np.concatenate([p["class_token"][0], x])
    x = x + p["position_embedding"][0]
    for layer in range(p["blocks"]["norm1"]["scale"].shape[0]):
      block = jax.tree.map(lambda a: a[layer], p["blocks"])
      x = x + attention(norm(x, block["norm1"]), block["attention"])
      hidden = norm(x, block["norm2"]) @ block["mlp"]["fc1"]["kernel"]
      hidden = activation(hidden + block["mlp"]["fc1"]["bias"])
      x = x + hidden @ block["mlp"]["fc2"]["kernel"] + block["mlp"]["fc2"]["bias"]
    x = norm(x, p["norm"])
    x = x[0] if pooling == "cls" else x.mean(axis=0)
    if pre_logits:
      x = np.tanh(x @ p["pre_logits"]["kernel"] + p["pre_logits"]["bias"])
    outputs.append(x @ p["head"]["kernel"] + p["head"]["bias"] if "head" in p else x)
  return np.stack(outputs)


@pytest.mark.parametrize("pooling", ["cls", "gap"])
@pytest.mark.parametrize("pre_logits", [False, True])
@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_logits_equal_the_float64_model(pooling, pre_logits, gelu):
  changes = (NO_TOKEN if pooling == "gap" else {}) | {"pre_logits": pre_logits}
  params = random_params(**changes)
  got = apply(params, gelu=gelu, **changes)
  wanted = reference(params, IMAGES, pooling=pooling, pre_logits=pre_logits, gelu=gelu)
  assert got.shape == (4, 10) and got.dtype == jnp.float32
  np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1e-1])
def test_the_layer_norms_use_the_epsilon(epsilon):
  params = random_params()
  got = apply(params, layer_norm_epsilon=epsilon)
  wanted = reference(params, IMAGES, epsilon=epsilon)
  np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("pooling", ["cls", "gap"])
def test_without_classes_the_pooled_features_come_out(pooling):
  changes = NO_TOKEN if pooling == "gap" else {}
  params = random_params(**changes)
  body = {name: leaf for name, leaf in params.items() if name != "head"}
  features = apply(body, num_classes=0, **changes)
  assert features.shape == (4, 32) and features.dtype == jnp.float32
  np.testing.assert_allclose(
      features @ params["head"]["kernel"] + params["head"]["bias"],
      apply(params, **changes),
      atol=1e-5,
  )


def test_options_decide_which_parameters_exist():
  names = lambda **changes: set(shapes_of(**changes))
  usual = {"patch_embedding", "class_token", "position_embedding", "blocks", "norm", "head"}
  assert names() == usual
  assert names(**NO_TOKEN) == usual - {"class_token"}
  assert names(pre_logits=True) == usual | {"pre_logits"}
  assert names(num_classes=0) == usual - {"head"}
  assert shapes_of()["position_embedding"].shape == (1, 17, 32)
  assert shapes_of(**NO_TOKEN)["position_embedding"].shape == (1, 16, 32)


def test_a_new_head_gives_zero_logits():
  np.testing.assert_array_equal(apply(initial_params(scan=True)), 0.0)


def test_blocks_start_different_from_each_other():
  kernel = initial_params(scan=True)["blocks"]["mlp"]["fc1"]["kernel"]
  assert kernel.shape == (2, 32, 64)
  assert not np.any(kernel[0] == kernel[1])


def test_scanned_and_unrolled_models_start_equal():
  params = {scan: initial_params(scan=scan) for scan in (False, True)}
  assert jax.tree.structure(params[False]) == jax.tree.structure(params[True])
  jax.tree.map(np.testing.assert_array_equal, params[False], params[True])


def test_scanned_and_unrolled_models_predict_the_same():
  params = random_params()
  unrolled = apply(params, scan=False)
  np.testing.assert_allclose(
      apply(params, scan=True), unrolled, atol=1e-5 * np.abs(unrolled).max()
  )


def test_scanned_and_unrolled_models_train_the_same():
  """With dropout and stochastic depth on: the random bits must be identical."""
  params, key = random_params(), jax.random.key(7)

  def loss(params, scan):
    model = compiled(True, dropout=0.2, stochastic_depth=0.4, scan=scan)
    logits = model(params, IMAGES, key)
    return jnp.mean(logits**2), logits

  gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  gradients, unrolled = gradient(params, False)
  scanned_gradients, scanned = gradient(params, True)
  # Other random bits would change the logits by about their own size.
  scale = np.abs(unrolled).max()
  assert np.abs(apply(params) - unrolled).max() > 0.1 * scale
  np.testing.assert_allclose(scanned, unrolled, atol=1e-5 * scale)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(gradients))
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest)
  jax.tree.map(close, gradients, scanned_gradients)


def test_bfloat16_computes_close_and_keeps_float32_parameters():
  dtypes = lambda tree: {leaf.dtype for leaf in jax.tree.leaves(tree)}
  assert dtypes(shapes_of(dtype="bfloat16")) == {np.dtype("float32")}
  params = random_params()
  wanted = apply(params)
  logits = apply(params, dtype="bfloat16")
  assert logits.dtype == jnp.float32
  difference = np.abs(logits - wanted).max() / np.abs(wanted).max()
  assert 1e-5 < difference < 0.03
  gradient = jax.grad(lambda p: jnp.sum(apply(p, dtype="bfloat16")))
  assert dtypes(jax.eval_shape(gradient, params)) == {np.dtype("float32")}


def test_evaluation_is_deterministic_and_takes_no_notice_of_rates():
  params = random_params()
  plain = apply(params)
  assert np.abs(plain).max() > 0.1
  for key in (None, jax.random.key(1), jax.random.key(2)):
    got = apply(params, key=key, dropout=0.5, stochastic_depth=0.5)
    np.testing.assert_array_equal(got, plain)


def test_training_is_a_function_of_the_key():
  params = random_params()
  run = lambda seed: apply(params, train=True, key=jax.random.key(seed), dropout=0.5)
  np.testing.assert_array_equal(run(1), run(1))
  assert np.abs(run(1) - run(2)).max() > 0.01


def test_training_needs_a_key():
  with pytest.raises(ValueError, match="needs a key when train=True"):
    apply(random_params(), train=True)


@pytest.mark.parametrize("shape", [(1, 18, 16, 3), (1, 16, 3, 3)])
def test_images_are_whole_patches(shape):
  with pytest.raises(ValueError, match="not a multiple of the patch size 4"):
    apply(random_params(), np.zeros(shape, np.float32))


def test_dropout_zeroes_its_share_and_keeps_the_mean():
  x = np.full((400, 500), 3.0, np.float32)
  rate = 0.3
  got = np.asarray(dropout(x, rate, jax.random.key(0)))
  kept = got != 0
  np.testing.assert_allclose(got[kept], 3.0 / (1 - rate), rtol=1e-6)
  deviation = np.sqrt(rate * (1 - rate) / x.size)
  assert abs(kept.mean() - (1 - rate)) < 4 * deviation
  assert abs(got.mean() - 3.0) < 4 * 3.0 * deviation / (1 - rate)
  # Neighbours in either direction are independent.
  for pairs in (kept[1:] & kept[:-1], kept[:, 1:] & kept[:, :-1]):
    assert abs(pairs.mean() - (1 - rate) ** 2) < 6 * deviation


def test_dropout_of_rate_zero_needs_no_key():
  x = np.ones(3, np.float32)
  assert dropout(x, 0.0, None) is x


def test_stochastic_depth_drops_whole_examples():
  rate = 0.25
  branch = np.random.default_rng(0).uniform(1, 2, (20_000, 2, 3)).astype(np.float32)
  got = np.asarray(stochastic_depth(branch, rate, jax.random.key(0)))
  kept = (got != 0).all(axis=(1, 2))
  assert np.array_equal(kept, (got != 0).any(axis=(1, 2)))
  np.testing.assert_allclose(got[kept], branch[kept] / (1 - rate), rtol=1e-6)
  assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / len(kept))


@pytest.mark.parametrize("function", [dropout, stochastic_depth])
def test_dropped_branches_keep_their_dtype(function):
  x = jnp.ones((8, 4), jnp.bfloat16)
  assert function(x, 0.5, jax.random.key(0)).dtype == jnp.bfloat16


def silent_params(model):
  """Parameters of a model whose branches add nothing, with an identity final norm."""
  images = np.zeros((1, model.image_size, model.image_size, 3), np.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), params)
  params["norm"]["scale"][:] = 1
  return params


@functools.cache
def compiled_training(model):
  return jax.jit(lambda p, x, key: model.apply({"params": p}, x, train=True, key=key))


def train_features(model, params, batch):
  images = np.zeros((batch, model.image_size, model.image_size, 3), np.float32)
  return np.asarray(compiled_training(model)(params, images, jax.random.key(0)))


def test_stochastic_depth_grows_linearly_over_the_blocks():
  """Each branch writes a one into a coordinate of its own.

  After the final norm, a coordinate that nothing wrote to shows where zero went, so every
  branch's value is known up to one factor; the first block's rate is 0, which gives the factor.
  """
  depth, last, batch = 5, 0.4, 4000
  model = ViT(
      width=16, depth=depth, mlp_dim=8, num_heads=1, patch_size=2, image_size=2, num_classes=0,
      stochastic_depth=last, scan=True,
  )
  params = silent_params(model)
  for layer in range(depth):
    params["blocks"]["attention"]["out"]["bias"][layer, 2 * layer] = 1
    params["blocks"]["mlp"]["fc2"]["bias"][layer, 2 * layer + 1] = 1
  features = train_features(model, params, batch)
  written = features - features[:, -1:]
  written = written[:, : 2 * depth] / written[:, :1]
  rates = np.repeat([0.0, 0.1, 0.2, 0.3, 0.4], 2)
  for branch, rate in enumerate(rates):
    kept = written[:, branch] > 0.5
    assert abs(kept.mean() - (1 - rate)) <= 4 * np.sqrt(rate * (1 - rate) / batch)
    np.testing.assert_allclose(written[kept, branch], 1 / (1 - rate), rtol=1e-3)
    np.testing.assert_allclose(written[~kept, branch], 0, atol=1e-3)
  # The two branches of a block, and different blocks, are dropped independently.
  kept = written > 0.5
  together = (kept[:, -1] & kept[:, -2]).mean()
  assert abs(together - 0.6**2) < 4 * np.sqrt(0.36 * 0.64 / batch)


@pytest.mark.parametrize(
    "site, keep", [("positions", 0.7), ("attention out", 0.7), ("fc1", 0.49), ("fc2", 0.7)]
)
def test_dropout_follows_the_dense_layers_and_the_positions(site, keep):
  """The share of ones that survive on the way from one site to the class token."""
  model, params = dropout_model()
  block = params["blocks"]
  if site == "positions":
    params["position_embedding"][:] = 1
  elif site == "attention out":
    block["attention"]["out"]["bias"][:] = 1
  elif site == "fc1":  # passes fc1's dropout, then fc2's
    block["mlp"]["fc1"]["bias"][:] = 1
    block["mlp"]["fc2"]["kernel"][0] = np.eye(16)
  elif site == "fc2":
    block["mlp"]["fc2"]["bias"][:] = 1
  kept = train_features(model, params, batch=500) > 0
  assert abs(kept.mean() - keep) < 4 * np.sqrt(keep * (1 - keep) / kept.size)


def test_no_dropout_follows_the_values_of_attention():
  """The output kernel takes the difference of two values, equal unless one is dropped."""
  model, params = dropout_model()
  attention = params["blocks"]["attention"]
  attention["value"]["bias"][:] = 1
  attention["out"]["kernel"][0, 0, 0, 0] = 1
  attention["out"]["kernel"][0, 1, 0, 0] = -1
  np.testing.assert_allclose(train_features(model, params, batch=500), 0, atol=1e-3)


def dropout_model():
  model = ViT(
      width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=2, image_size=2, num_classes=0,
      dropout=0.3, scan=True,
  )
  return model, silent_params(model)

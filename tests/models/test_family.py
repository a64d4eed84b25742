"""What the members of the family add to the ViT, against a NumPy model in float64."""

import functools

import jax
import numpy as np
import pytest
import scipy.special

from vit_jax.models.positions import resize_position_embedding, sincos2d
from vit_jax.models.reconstruction import masked_l1
from vit_jax.models.streamed import streamed_forward
from vit_jax.models.vit import DEFAULTS, OUTPUTS, ViT, check, param_shapes, position_rows

TINY = {
    "width": 32, "depth": 2, "mlp_dim": 48, "num_heads": 4, "patch_size": 4, "image_size": 16,
    "num_classes": 10,
}
NO_TOKEN = {"class_token": False}
MEMBERS = {
    "plain": {},
    "mean beside a class token": {"pooling": "gap"},
    "norm after pooling": {"pooling": "gap", "norm_after_pooling": True},
    "attention pooling": {"pooling": "map"} | NO_TOKEN,
    "all tokens": {"pooling": "none", "num_classes": 0},
    "big_vision": {"class_token_position": False, "qkv_bias": False},
    "sincos2d": {"position_embedding": "sincos2d", "pooling": "gap"} | NO_TOKEN,
    "sincos2d_mae": {"position_embedding": "sincos2d_mae"},
    "stretched": {"position_embedding": "sincos2d_mae", "position_image_size": (8, 12)},
    "counted anew": {"position_embedding": "sincos2d", "position_image_size": "any"},
    "DeiT": {"distillation_token": True, "distillation_head": True},
    "DeiT's class token alone": {"distillation_token": True},
    "DINOv2": {
        "register_tokens": 3, "layer_scale": 0.1, "mlp": "swiglu", "mask_token": True,
        "num_classes": 0,
    },
    "normed queries and keys": {"qk_norm": True, "layer_norm_epsilon": 1e-3},
    "SimMIM": {"mask_token": True, "pooling": "none", "pixel_decoder": True, "num_classes": 0},
    "wide": {"image_size": (8, 24)},
}


def draw(shapes, *, seed=0):
  """Nested dict of weights all of which matter."""
  rng, params = np.random.default_rng(seed), {}
  for path, shape in shapes.items():
    node = params
    for key in path[:-1]:
      node = node.setdefault(key, {})
    noise = rng.standard_normal(shape, np.float32)
    node[path[-1]] = 1 + 0.1 * noise if path[-1] == "scale" else 0.2 * noise
  return params


def images_for(model, *, size=None, batch=2):
  size = size or model["image_size"]
  height, width = (size, size) if isinstance(size, int) else size
  return np.random.default_rng(9).standard_normal((batch, height, width, 3)).astype(np.float32)


def mask_for(model, images):
  if not model.get("mask_token"):
    return None
  patches = (images.shape[1] // 4) * (images.shape[2] // 4)
  return np.random.default_rng(3).random((len(images), patches)) < 0.4


@functools.cache
def _compiled(names, outputs, scan):
  model = ViT(**TINY | dict(names), scan=scan)
  return jax.jit(
      lambda p, x, mask: model.apply({"params": p}, x, patch_mask=mask, outputs=outputs)
  )


def ours(changes, params, images, mask, *, outputs=(), scan=True):
  with jax.default_matmul_precision("highest"):
    run = _compiled(tuple(changes.items()), outputs, scan)
    return jax.tree.map(np.asarray, run(params, images, mask))


class Reference:
  """arXiv 2010.11929 section 3.1 and the papers named in `models/vit.py`, image by image."""

  def __init__(self, changes, params):
    self.m = {**DEFAULTS, **TINY, **changes}
    self.p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

  def norm(self, x, at):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + self.m["layer_norm_epsilon"]) * at["scale"] + at["bias"]

  def attend(self, queries, x, at):
    heads = []
    for h in range(self.m["num_heads"]):
      q, k, v = (
          source @ at[name]["kernel"][:, h] + (at[name]["bias"][h] if "bias" in at[name] else 0)
          for name, source in (("query", queries), ("key", x), ("value", x))
      )
      if self.m["qk_norm"]:
        q, k = self.norm(q, at["query_norm"]), self.norm(k, at["key_norm"])
      weights = scipy.special.softmax(q @ k.T / np.sqrt(q.shape[-1]), axis=-1)
      heads.append((weights, weights @ v))
    joined = np.einsum("hnd,hdw->nw", np.stack([y for _, y in heads]), at["out"]["kernel"])
    return joined + at["out"]["bias"], np.stack([w for w, _ in heads])

  def mlp(self, x, at, kind):
    y = x @ at["fc1"]["kernel"] + at["fc1"]["bias"]
    if kind == "swiglu":
      gate = x @ at["gate"]["kernel"] + at["gate"]["bias"]
      y = y * gate / (1 + np.exp(-gate))
    else:
      y = y * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return y @ at["fc2"]["kernel"] + at["fc2"]["bias"]

  def tokens(self, image, mask):
    p, size = self.p, self.m["patch_size"]
    rows, columns = image.shape[0] // size, image.shape[1] // size
    patches = [
        image[r * size : (r + 1) * size, c * size : (c + 1) * size].reshape(-1)
        for r in range(rows) for c in range(columns)
    ]
    kernel = p["patch_embedding"]["kernel"]
    x = np.stack(patches) @ kernel.reshape(-1, kernel.shape[-1]) + p["patch_embedding"]["bias"]
    if mask is not None:
      x[mask] = p["mask_token"][0, 0]
    names = [n for n in ("class_token", "distillation_token") if self.m[n]]
    prefix = np.concatenate([p[n][0] for n in names]) if names else np.zeros((0, x.shape[1]))
    table = self.positions(rows, columns)
    over = len(table) - len(x)
    x = x + table[over:]
    prefix = prefix + table[:over] if over else prefix
    registers = p["register_tokens"][0] if self.m["register_tokens"] else prefix[:0]
    return np.concatenate([prefix, registers, x]), len(prefix) + len(registers)

  def positions(self, rows, columns):
    kind, own = self.m["position_embedding"], self.m["image_size"]
    if kind != "learned":
      own = self.m["position_image_size"] or own
    own = (own, own) if isinstance(own, int) else own
    if kind != "learned":
      counted = (rows, columns) if own == "any" else (own[0] // 4, own[1] // 4)
      return sincos2d(kind, rows, columns, self.m["width"], counted=counted).astype(np.float64)
    table = resize_position_embedding(
        self.p["position_embedding"].astype(np.float32), old_grid=(own[0] // 4, own[1] // 4),
        new_grid=(rows, columns), interpolation=self.m["position_interpolation"],
    )
    return table[0].astype(np.float64)

  def __call__(self, image, mask=None):
    """(answer, the extra outputs) of one image."""
    p, x, prefix = self.p, *self.tokens(image.astype(np.float64), mask)
    states, attentions = [x], []
    for layer in range(self.m["depth"]):
      at = jax.tree.map(lambda a: a[layer], p["blocks"])
      normed = self.norm(x, at["norm1"])
      y, weights = self.attend(normed, normed, at["attention"])
      x = x + y * at.get("layer_scale1", 1.0)
      y = self.mlp(self.norm(x, at["norm2"]), at["mlp"], self.m["mlp"])
      x = x + y * at.get("layer_scale2", 1.0)
      states.append(x)
      attentions.append(weights)
    extra = {"hidden_states": np.stack(states), "attentions": np.stack(attentions)}
    if self.m["norm_after_pooling"]:
      extra["tokens"] = x
      feature = self.norm(x[prefix:].mean(0), p["norm"])
    else:
      extra["tokens"] = x = self.norm(x, p["norm"])
      feature = self.pooled(x, prefix)
    return self.heads(x, feature, prefix, image.shape, extra), extra

  def pooled(self, x, prefix):
    if self.m["pooling"] == "map":
      at = self.p["map_head"]
      y, _ = self.attend(at["probe"][0], x[prefix:], at["attention"])
      return (y + self.mlp(self.norm(y, at["norm"]), at["mlp"], "gelu"))[0]
    return x[0] if self.m["pooling"] == "cls" else x[prefix:].mean(0)

  def heads(self, x, feature, prefix, shape, extra):
    p, size = self.p, self.m["patch_size"]
    if self.m["pixel_decoder"]:
      values = x[prefix:] @ p["pixel_decoder"]["kernel"] + p["pixel_decoder"]["bias"]
      out = np.zeros(shape)
      for n, value in enumerate(values):
        r, c = divmod(n, shape[1] // size)
        patch = value.reshape(3, size, size).transpose(1, 2, 0)
        out[r * size : (r + 1) * size, c * size : (c + 1) * size] = patch
      return out
    if self.m["pooling"] == "none":
      return x
    if not self.m["num_classes"]:
      return feature
    logits = feature @ p["head"]["kernel"] + p["head"]["bias"]
    if not self.m["distillation_head"]:
      return logits
    second = x[1] @ p["distillation_head"]["kernel"] + p["distillation_head"]["bias"]
    extra |= {"class_logits": logits, "distillation_logits": second}
    return (logits + second) / 2


def close(got, wanted):
  np.testing.assert_allclose(got, wanted, atol=2e-5 * max(1.0, np.abs(wanted).max()), rtol=0)


@pytest.mark.parametrize("member", MEMBERS)
def test_answer_and_insides_equal_the_float64_model(member):
  changes = MEMBERS[member]
  params = draw(param_shapes(TINY | changes))
  images = images_for(TINY | changes)
  mask = mask_for(changes, images)
  names = OUTPUTS if changes.get("distillation_head") else OUTPUTS[:3]
  answer, extra = ours(changes, params, images, mask, outputs=names)
  reference = Reference(changes, params)
  for n, image in enumerate(images):
    wanted, inside = reference(image, None if mask is None else mask[n])
    close(answer[n], wanted)
    for name in names:
      # Those of every layer lead with the layer.
      got = extra[name][:, n] if name in ("hidden_states", "attentions") else extra[name][n]
      close(got, inside[name])
  np.testing.assert_allclose(extra["attentions"].sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("member", ["plain", "DINOv2", "sincos2d", "stretched", "wide"])
def test_other_image_sizes_are_taken_at_call_time(member):
  changes = MEMBERS[member]
  params = draw(param_shapes(TINY | changes))
  images = images_for(TINY | changes, size=(12, 20))
  reference = Reference(changes, params)
  for n, answer in enumerate(ours(changes, params, images, None)):
    close(answer, reference(images[n])[0])


@pytest.mark.parametrize("member", ["DINOv2", "attention pooling", "DeiT"])
def test_scanned_and_unrolled_are_one_model(member):
  changes = MEMBERS[member]
  params = draw(param_shapes(TINY | changes))
  images = images_for(TINY | changes)
  names = ("hidden_states", "attentions")
  scanned = ours(changes, params, images, None, outputs=names)
  unrolled = ours(changes, params, images, None, outputs=names, scan=False)
  jax.tree.map(close, unrolled, scanned)


def test_initial_values():
  model = ViT(**TINY | {"layer_scale": 0.25, "distillation_token": True, "qk_norm": True})
  params = jax.jit(model.init)(jax.random.key(0), images_for(TINY))["params"]
  np.testing.assert_array_equal(params["blocks"]["layer_scale1"], np.full((2, 32), 0.25))
  np.testing.assert_array_equal(params["blocks"]["attention"]["key_norm"]["scale"], np.ones((2, 8)))
  assert np.abs(params["distillation_token"]).max() > 0


def train(key, **changes):
  params = draw(param_shapes(TINY))
  model = ViT(**TINY | changes, scan=True)
  run = jax.jit(lambda p, x, k: model.apply({"params": p}, x, train=True, key=k))
  return np.asarray(run(params, images_for(TINY), jax.random.key(key)))


@pytest.mark.slow
def test_attention_dropout_draws_from_the_key():
  still = train(0)
  once, again, other = (train(k, attention_dropout=0.5) for k in (0, 0, 1))
  np.testing.assert_array_equal(once, again)
  assert np.abs(once - other).max() > 1e-3 and np.abs(once - still).max() > 1e-3


def test_stochastic_depth_is_linear_or_constant():
  """With a rate of nearly 1 everywhere, "constant" leaves the embedding alone: every block of
  every image is dropped; "linear" always keeps the first block."""
  params = draw(param_shapes(TINY))
  rates = {"stochastic_depth": 0.999999}
  images = images_for(TINY)
  skip = jax.tree.map(np.zeros_like, params["blocks"])
  nothing = ours({}, params | {"blocks": skip}, images, None)
  constant = train(0, stochastic_depth_schedule="constant", **rates)
  close(constant, nothing)
  assert np.abs(train(0, **rates) - nothing).max() > 1e-3


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"class_token": False}, 'pooling "cls" needs class_token'),
        ({"pooling": "gap", "class_token": False, "distillation_token": True},
         "distillation_token needs class_token"),
        ({"distillation_head": True}, "distillation_head needs distillation_token"),
        ({"norm_after_pooling": True}, 'norm_after_pooling needs pooling "gap"'),
        ({"pooling": "none"}, "leaves no feature for a head"),
        ({"pixel_decoder": True, "num_classes": 0}, 'pixel_decoder needs pooling "none"'),
        ({"position_embedding": "sin"}, "position_embedding is 'sin'"),
        ({"width": 30, "num_heads": 2, "position_embedding": "sincos2d"}, "multiple of 4"),
        ({"position_image_size": 32}, "position_image_size is of fixed positions"),
        ({"num_heads": 5}, "not a multiple of num_heads"),
        ({"image_size": 18}, "not a multiple of the patch size"),
    ],
)
def test_contradictions_are_named(changes, said):
  with pytest.raises(ValueError, match=said):
    param_shapes(TINY | changes)


def test_what_cannot_be_asked_is_refused():
  params, images = draw(param_shapes(TINY)), images_for(TINY)
  apply = functools.partial(ViT(**TINY, scan=True).apply, {"params": params}, images)
  with pytest.raises(ValueError, match="patch mask needs a model with a mask token"):
    apply(patch_mask=np.zeros((2, 16), bool))
  with pytest.raises(ValueError, match="unknown outputs .'attention'."):
    apply(outputs=("attention",))
  with pytest.raises(ValueError, match="need a distillation head"):
    apply(outputs=("class_logits",))


def test_shapes_follow_the_description():
  for changes in MEMBERS.values():
    model = ViT(**TINY | changes)
    check(model)
    shapes = param_shapes(TINY | changes | {"dropout": 0.5, "scan": True})
    rows = position_rows(model)
    if model.position_embedding == "learned":
      assert shapes[("position_embedding",)][1] == rows + (16 if model.image_size == 16 else 12)
    else:
      assert ("position_embedding",) not in shapes


@pytest.mark.torch
def test_masked_l1_is_hugging_faces_loss():
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  config = transformers.ViTConfig(
      hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
      image_size=16, patch_size=4, encoder_stride=4,
  )
  model = transformers.ViTForMaskedImageModeling(config).eval()
  images = images_for(TINY)
  mask = mask_for({"mask_token": True}, images)
  with torch.no_grad():
    answer = model(
        torch.from_numpy(images.transpose(0, 3, 1, 2)), bool_masked_pos=torch.from_numpy(mask)
    )
  reconstruction = answer.reconstruction.numpy().transpose(0, 2, 3, 1)
  got = masked_l1(images, reconstruction, mask, 4)
  np.testing.assert_allclose(got, answer.loss.numpy(), rtol=1e-6)


@pytest.mark.parametrize("member", MEMBERS)
def test_streamed_forward_is_the_model(member):
  changes = MEMBERS[member]
  params = draw(param_shapes(TINY | changes))
  images = images_for(TINY | changes)
  mask = mask_for(changes, images)
  names = ("tokens", "class_logits") if changes.get("distillation_head") else ("tokens",)
  answer, extra = ours(changes, params, images, mask, outputs=names)
  got = streamed_forward(DEFAULTS | TINY | changes, params, images, mask)
  close(got["outputs"], answer)
  for name in names:
    close(got[name], extra[name])

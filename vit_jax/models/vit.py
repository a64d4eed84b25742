"""The Vision Transformer (arXiv 2010.11929) and its family as a Linen module over plain pytrees.

The encoder's blocks are one parameter tree stacked along a leading depth axis, run by `lax.scan`
or unrolled: same checkpoint, same random bits.  Parameters (float32), N patches, H heads:

    patch_embedding/{kernel [P, P, 3, D], bias [D]}
    class_token, distillation_token, mask_token [1, 1, D], register_tokens [1, R, D]
    position_embedding [1, N (+ 1 or 2), D]     first the rows of class and distillation token,
                                                then the patches' by rows
    blocks/norm1, blocks/norm2 {scale, bias [L, D]}
    blocks/attention/{query, key, value}/{kernel [L, D, H, D/H], bias [L, H, D/H]}
    blocks/attention/{query_norm, key_norm}/{scale, bias [L, D/H]}
    blocks/attention/out/{kernel [L, H, D/H, D], bias [L, D]}
    blocks/mlp/{fc1, gate}/{kernel [L, D, M], bias [L, M]}, blocks/mlp/fc2/{kernel [L, M, D], ...}
    blocks/layer_scale1, blocks/layer_scale2 [L, D]
    norm/{scale, bias [D]}
    map_head/{probe [1, 1, D], attention/..., norm/..., mlp/...}
    pre_logits/{kernel [D, D], bias [D]}
    head, distillation_head/{kernel [D, classes], bias [classes]}
    pixel_decoder/{kernel [D, 3 * P * P], bias}

each only where the attribute that asks for it is set.
"""

import functools
import json
from typing import Any, Mapping

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.dense import Dense, product, spread
from vit_jax.models.dropout import dropout
from vit_jax.models.layers import Block, MapHead
from vit_jax.models.mimetic import mimetic
from vit_jax.models.positions import counted_grid, grid, resize_position_embedding, sincos2d
from vit_jax.models.reconstruction import pixel_shuffle
from vit_jax.models.remat import remat

POOLINGS = ("cls", "gap", "map", "none")
POSITION_EMBEDDINGS = ("learned", "sincos2d", "sincos2d_mae")
_LECUN = nn.initializers.lecun_normal()
OUTPUTS = ("tokens", "hidden_states", "attentions", "class_logits", "distillation_logits")


class ViT(nn.Module):
  """Images `[B, H, W, 3]` to logits `[B, num_classes]`, or to features where there is no head.

  Attributes:
    width, depth, mlp_dim, num_heads: size of the encoder (`variants.py` names the usual ones).
    patch_size: in pixels.
    image_size: the side in pixels, or (height, width); of the positions.  Images of another size
      are taken too, learned positions then being resampled, fixed ones stretched.
    num_classes: 0 for no head.
    class_token: whether one is prepended.
    distillation_token, distillation_head: a second such token, and a second classifier on it; the
      logits are then the mean of both (DeiT, arXiv 2012.12877).
    register_tokens: how many further tokens without positions (arXiv 2309.16588).
    mask_token: whether there is one, for `patch_mask`.
    pooling: "cls" for the class token, "gap" for the mean over patches, "map" for attention
      pooling over patches, "none" for all tokens.
    norm_after_pooling: the final norm acts on the mean of the patches instead of on each (MAE's
      fine-tuning, timm's fc_norm).
    pre_logits: a dense layer of `width` with tanh before the head (ViT, section 3.1).
    pixel_decoder: a dense layer from each patch token to its pixels; the answer is an image.
    position_embedding: "learned", or fixed: "sincos2d" (big_vision's), "sincos2d_mae" (MAE's).
    class_token_position: whether the learned table has rows for class and distillation token (the
      original), or is added to the patches before these are prepended (big_vision).
    position_image_size: of fixed positions, the image size in pixels (a side, or height and width)
      whose patches they count, stretched over images of another size; None for `image_size`; "any"
      where they count the patches of any image anew (big_vision).
    position_interpolation: of learned ones, a key of `positions.resize_position_embedding`.
    qkv_bias: whether query, key and value have biases.
    qk_norm: layer norm of each head's queries and keys (arXiv 2302.05442).
    layer_scale: its initial value, None for none (arXiv 2103.17239).
    mlp: "gelu", or "swiglu", of which `mlp_dim` is the hidden width (arXiv 2002.05202).
    gelu: "tanh" (approximation) or "erf" (exact).
    layer_norm_epsilon: added to the variance in every layer norm.
    dropout: rate after dense layers and position embeddings, training only.
    attention_dropout: rate on the attention weights, training only.
    stochastic_depth: rate of the last block, training only.
    stochastic_depth_schedule: over the blocks: "linear" from 0, or "constant".
    dtype: of the computation, "bfloat16" or "float32"; parameters, statistics of the norms,
      softmax and logits are float32.
    gradient_dtype: in which the gradients of the parameters are summed over examples and devices.
    scan: run the blocks by `lax.scan` (compile time independent of depth) or unrolled.
    remat: what the backward pass computes again instead of keeping it, see `remat.remat`.
    attention: an implementation of `attention.dot_product_attention`.
    attention_initialization: of the kernels of the blocks' attention, "xavier" (uniform, as
      Google's ViT) or "mimetic" (see `mimetic`).
    place: None, or a function of tokens `[B, T, D]` to the same, called between the blocks: where
      it says how they lie on a mesh, parameters come to them and not they to the parameters.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch_size: int
  image_size: Any
  num_classes: int
  class_token: bool = True
  distillation_token: bool = False
  distillation_head: bool = False
  register_tokens: int = 0
  mask_token: bool = False
  pooling: str = "cls"
  norm_after_pooling: bool = False
  pre_logits: bool = False
  pixel_decoder: bool = False
  position_embedding: str = "learned"
  class_token_position: bool = True
  position_image_size: Any = None
  position_interpolation: str = "bicubic"
  qkv_bias: bool = True
  qk_norm: bool = False
  layer_scale: float | None = None
  mlp: str = "gelu"
  gelu: str = "tanh"
  layer_norm_epsilon: float = 1e-6
  dropout: float = 0.0
  attention_dropout: float = 0.0
  stochastic_depth: float = 0.0
  stochastic_depth_schedule: str = "linear"
  dtype: str = "float32"
  gradient_dtype: str = "float32"
  scan: bool = False
  remat: str = "none"
  attention: str = "auto"
  attention_initialization: str = "xavier"
  place: Any = None

  @nn.compact
  def __call__(
      self, images, *, train: bool = False, key=None, patch_mask=None, outputs: tuple = ()
  ):
    """Runs the model.

    Args:
      images: float `[B, H, W, 3]`, normalised as the model was trained; H and W multiples of the
        patch.
      train: whether dropout and stochastic depth are on.
      key: PRNG key of their bits; needed when `train`.
      patch_mask: bool `[B, H/P * W/P]`, True where the mask token replaces a patch.
      outputs: names of what else is wanted: "tokens" `[B, T, D]` after the final norm,
        "hidden_states" `[L + 1, B, T, D]` before each block and after the last, "attentions"
        float32 `[L, B, heads, T, T]`, "class_logits" and "distillation_logits" of a model with a
        distillation head.  T counts the prefix (class, distillation, registers) and the patches.

    Returns:
      The answer in float32: logits `[B, num_classes]`; without a head the pooled feature
      `[B, D]`, with pooling "none" all tokens `[B, T, D]`, with a pixel decoder the image
      `[B, H, W, 3]`.  With `outputs`, (answer, dict of these).

    Raises:
      ValueError: attributes or arguments that contradict each other.
    """
    check(self)
    if train and key is None:
      raise ValueError("ViT needs a key when train=True")
    if unknown := set(outputs) - set(OUTPUTS):
      raise ValueError(f"unknown outputs {sorted(unknown)}; choose from {OUTPUTS}")
    position_key, encoder_key = jax.random.split(jax.random.key(0) if key is None else key)
    x = self._embed(images, patch_mask)
    x = dropout(x, self.dropout if train else 0.0, position_key)
    x, extra = self._encode(x, train, encoder_key, outputs)
    answer, heads = self._answer(x, grid(images.shape[1:3], self.patch_size))
    if not outputs:
      return answer
    extra |= heads
    if missing := set(outputs) - set(extra):
      raise ValueError(f"{sorted(missing)} need a distillation head, which this model lacks")
    return answer, {name: extra[name] for name in outputs}

  def _embed(self, images, patch_mask):
    """Patches `[B, H, W, 3]` to tokens `[B, T, D]`: the prefix, then the patches by rows."""
    batch, _, _, channels = images.shape
    patch = self.patch_size
    rows, columns = grid(images.shape[1:3], patch)
    # A strided convolution whose windows do not overlap is a matrix product of flattened patches.
    x = images.astype(self.dtype).reshape(batch, rows, patch, columns, patch, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)
    x = _PatchEmbedding(
        self.width, patch, self.dtype, self.gradient_dtype, name="patch_embedding"
    )(x)
    x = self._mask(x, patch_mask)
    normal = nn.initializers.normal(0.02)
    tokens = []
    if self.class_token:
      tokens.append(self._token("class_token", nn.initializers.zeros))
    if self.distillation_token:
      tokens.append(self._token("distillation_token", normal))
    positions = self._positions(rows, columns)
    first = positions.shape[1] - rows * columns
    x = x + self._spread(positions[:, first:], batch)
    prefix = jnp.concatenate(tokens, axis=1) if tokens else None
    if first:
      prefix = prefix + positions[:, :first]
    parts = [] if prefix is None else [prefix]
    if self.register_tokens:
      initial = nn.initializers.normal(1e-6)
      parts.append(self._token("register_tokens", initial, self.register_tokens))
    return jnp.concatenate([self._spread(part, batch) for part in parts] + [x], axis=1)

  def _token(self, name, initializer, count=1):
    return self.param(name, initializer, (1, count, self.width))

  @nn.nowrap
  def _spread(self, tokens, batch: int):
    """Parameters `[1, T, D]` to `[B, T, D]` in the dtype of the computation."""
    return spread(tokens, (batch, *tokens.shape[1:]), self.dtype, self.gradient_dtype)

  def _mask(self, x, patch_mask):
    """Puts the mask token in the place of masked patches."""
    if not self.mask_token:
      if patch_mask is not None:
        raise ValueError("a patch mask needs a model with a mask token")
      return x
    token = self._token("mask_token", nn.initializers.normal(0.02))
    if patch_mask is None:
      return x
    token = spread(token, x.shape, self.dtype, self.gradient_dtype)
    return jnp.where(patch_mask[..., None], token, x)

  def _positions(self, rows: int, columns: int):
    """Position embeddings `[1, (rows of the prefix) + rows * columns, D]`."""
    if self.position_embedding != "learned":
      counted = counted_grid(self.position_image_size, self.image_size, self.patch_size)
      table = sincos2d(self.position_embedding, rows, columns, self.width, counted=counted)
      return jnp.asarray(table)[None]
    trained = grid(self.image_size, self.patch_size)
    count = trained[0] * trained[1] + position_rows(self)
    table = self.param(
        "position_embedding", nn.initializers.normal(0.02), (1, count, self.width)
    )
    return resize_position_embedding(
        table, old_grid=trained, new_grid=(rows, columns),
        interpolation=self.position_interpolation,
    )

  @nn.nowrap
  def block(self, train: bool = False) -> Block:
    """One block, to be applied to a slice of the stacked parameters."""
    return Block(
        num_heads=self.num_heads,
        mlp_dim=self.mlp_dim,
        mlp=self.mlp,
        gelu=self.gelu,
        layer_norm_epsilon=self.layer_norm_epsilon,
        qkv_bias=self.qkv_bias,
        qk_norm=self.qk_norm,
        layer_scale=self.layer_scale,
        dropout=self.dropout if train else 0.0,
        attention_dropout=self.attention_dropout if train else 0.0,
        has_stochastic_depth=train and self.stochastic_depth > 0,
        dtype=self.dtype,
        gradient_dtype=self.gradient_dtype,
        attention=self.attention,
        parent=None,
    )

  def _encode(self, x, train, key, outputs):
    """Runs the stacked blocks over tokens `[B, T, D]`; what `outputs` asks for comes beside."""
    block = self.block(train)

    def init_block(init_key):
      params = block.init(init_key, x[:1], 0.0, jax.random.key(0))["params"]
      if self.attention_initialization == "mimetic":
        params |= {"attention": mimetic(params["attention"], jax.random.fold_in(init_key, 0))}
      elif self.attention_initialization != "xavier":
        raise ValueError(f"unknown attention_initialization {self.attention_initialization!r}")
      return params

    def init_blocks(init_key):
      return jax.vmap(init_block)(jax.random.split(init_key, self.depth))

    params = self.param("blocks", init_blocks)
    start = self.stochastic_depth if self.stochastic_depth_schedule == "constant" else 0.0
    rates = jnp.linspace(start, self.stochastic_depth, self.depth)
    keys = jax.random.split(key, self.depth)
    with_weights, with_states = "attentions" in outputs, "hidden_states" in outputs

    def run_block(x, layer):
      layer_params, rate, layer_key = layer
      x, weights = block.apply({"params": layer_params}, x, rate, layer_key, with_weights)
      x = self._placed(x)
      seen = {"attentions": weights} if with_weights else {}
      return x, seen | ({"hidden_states": x} if with_states else {})

    x = self._placed(x)
    run_block = remat(run_block, self.remat, in_scan=self.scan)
    before = x[None]
    if self.scan:
      x, seen = jax.lax.scan(run_block, x, (params, rates, keys))
    else:
      layers = []
      for layer in zip(_unstack(params, self.depth), rates, keys):
        x, seen = run_block(x, layer)
        layers.append(seen)
      seen = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    if with_states:
      seen["hidden_states"] = jnp.concatenate([before, seen["hidden_states"]])
    return x, seen

  @nn.nowrap
  def _placed(self, x):
    return x if self.place is None else self.place(x)

  def _answer(self, x, patches: tuple[int, int]):
    """Final norm, pooling and heads of `[B, T, D]`: (answer, dict of tokens and single logits)."""
    norm = nn.LayerNorm(epsilon=self.layer_norm_epsilon, dtype=self.dtype, name="norm")
    x = x if self.norm_after_pooling else norm(x)
    seen = {"tokens": x}
    own = x[:, -patches[0] * patches[1] :]
    if self.pixel_decoder:
      dense = Dense(
          3 * self.patch_size**2, "float32", self.gradient_dtype, kernel_init=_LECUN,
          name="pixel_decoder",
      )
      return pixel_shuffle(dense(own), patches, self.patch_size), seen
    if self.pooling == "none":
      return x.astype(jnp.float32), seen
    if self.pooling == "map":
      pooled = MapHead(
          self.num_heads, self.mlp_dim, self.gelu, self.layer_norm_epsilon, self.dtype,
          self.gradient_dtype, name="map_head",
      )(own)
    else:
      pooled = x[:, 0] if self.pooling == "cls" else jnp.mean(own, axis=1, dtype=jnp.float32)
    if self.norm_after_pooling:
      pooled = norm(pooled)
    if self.pre_logits:
      dense = Dense(
          self.width, self.dtype, self.gradient_dtype, kernel_init=_LECUN, name="pre_logits"
      )
      pooled = jnp.tanh(dense(pooled))
    if not self.num_classes:
      return pooled.astype(jnp.float32), seen
    head = functools.partial(
        Dense, self.num_classes, "float32", self.gradient_dtype,
        kernel_init=nn.initializers.zeros,
    )
    logits = head(name="head")(pooled)
    if self.distillation_head:
      second = head(name="distillation_head")(x[:, 1])
      seen |= {"class_logits": logits, "distillation_logits": second}
      logits = (logits + second) / 2
    return logits, seen


# What a checkpoint must say of its model, and what it may leave out.  The other attributes are a
# matter of training and of the machine.
DESCRIPTION = tuple(
    name for name in ViT.__dataclass_fields__
    if name not in (
        "dropout", "attention_dropout", "stochastic_depth", "stochastic_depth_schedule", "dtype",
        "gradient_dtype", "scan", "remat", "attention", "attention_initialization", "place",
        "parent", "name",
    )
)
DEFAULTS = {
    name: ViT.__dataclass_fields__[name].default
    for name in DESCRIPTION[DESCRIPTION.index("class_token") :]
}


def position_rows(model) -> int:
  """Rows of the learned position table before the patches', of a `ViT` or anything like it."""
  rows = bool(model.class_token) + bool(model.distillation_token)
  return rows if model.class_token_position else 0


def check(model) -> None:
  """Holds that the attributes of a `ViT` (or anything like it) go together.

  Raises:
    ValueError: two contradict each other; the text names both.
  """
  rules = (
      (model.pooling in POOLINGS, f"pooling is {model.pooling!r}, not one of {POOLINGS}"),
      (model.position_embedding in POSITION_EMBEDDINGS,
       f"position_embedding is {model.position_embedding!r}, not one of {POSITION_EMBEDDINGS}"),
      (model.width % model.num_heads == 0,
       f"width {model.width} is not a multiple of num_heads {model.num_heads}"),
      (model.pooling != "cls" or model.class_token, 'pooling "cls" needs class_token'),
      (model.class_token or not model.distillation_token,
       "distillation_token needs class_token"),
      (not model.distillation_head or model.distillation_token and model.num_classes
       and model.pooling == "cls" and not model.pre_logits,
       'distillation_head needs distillation_token, num_classes and pooling "cls", and no '
       "pre_logits"),
      (not model.norm_after_pooling or model.pooling == "gap",
       'norm_after_pooling needs pooling "gap"'),
      (model.pooling != "none" or not (model.num_classes or model.pre_logits),
       'pooling "none" leaves no feature for a head or pre_logits'),
      (not model.pixel_decoder or model.pooling == "none", 'pixel_decoder needs pooling "none"'),
      (model.position_embedding == "learned" or model.width % 4 == 0,
       f"{model.position_embedding} needs a width that is a multiple of 4"),
      (model.position_embedding != "learned" or model.position_image_size is None,
       "position_image_size is of fixed positions, and position_embedding is \"learned\""),
  )
  for holds, text in rules:
    if not holds:
      raise ValueError(f"the model contradicts itself: {text}")
  grid(model.image_size, model.patch_size)
  try:
    counted_grid(model.position_image_size, model.image_size, model.patch_size)
  except ValueError as error:
    raise ValueError(f"position_image_size: {error}") from error


def param_shapes(model: Mapping) -> dict[tuple[str, ...], tuple[int, ...]]:
  """Shapes of a model's parameters by path, blocks with their leading depth axis.

  Args:
    model: attributes of `ViT`; those that are not in `DESCRIPTION` change nothing.

  Raises:
    ValueError: see `check`.
  """
  return dict(_param_shapes(json.dumps({k: model[k] for k in DESCRIPTION if k in model})))


@functools.lru_cache(maxsize=16)
def _param_shapes(model: str):
  module = ViT(**json.loads(model), scan=True)
  rows, columns = grid(module.image_size, module.patch_size)
  images = jax.ShapeDtypeStruct(
      (1, rows * module.patch_size, columns * module.patch_size, 3), jnp.float32
  )
  # The seed is abstract too: nothing is computed, no device is started.
  init = lambda seed, images: module.init(jax.random.key(seed), images)["params"]
  params = jax.eval_shape(init, jax.ShapeDtypeStruct((), jnp.uint32), images)
  return [
      (tuple(part.key for part in path), leaf.shape)
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]


class _PatchEmbedding(nn.Module):
  """Flattened patches `[B, N, P * P * 3]` to tokens `[B, N, D]`; the kernel is a convolution's."""

  width: int
  patch_size: int
  dtype: str
  gradient_dtype: str

  @nn.compact
  def __call__(self, x):
    channels = x.shape[-1] // self.patch_size**2
    shape = (self.patch_size, self.patch_size, channels, self.width)
    kernel = self.param("kernel", _LECUN, shape).reshape(-1, self.width)
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    y = product(x, kernel, 1, self.gradient_dtype)
    return y + spread(bias, y.shape, self.dtype, self.gradient_dtype)


def _unstack(tree, depth: int):
  """Splits the leading axis of every leaf; the transpose of `split` is one concatenation, where
  that of indexing is `depth` padded additions."""
  leaves, treedef = jax.tree.flatten(tree)
  layers = zip(*([part[0] for part in jax.lax.split(a, [1] * depth)] for a in leaves))
  return [jax.tree.unflatten(treedef, layer) for layer in layers]

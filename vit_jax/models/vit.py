"""The Vision Transformer (arXiv 2010.11929) as a Linen module over plain pytrees.

The encoder's blocks are one parameter tree stacked along a leading depth axis, run by `lax.scan`
or unrolled: same checkpoint, same random bits.  Parameters (float32):

    patch_embedding/{kernel [P, P, 3, D], bias [D]}
    class_token [1, 1, D]                       with pooling "cls"
    position_embedding [1, N (+ 1), D]          row 0 is the class token's, then row-major patches
    blocks/norm1, blocks/norm2 {scale, bias [L, D]}
    blocks/attention/{query, key, value}/{kernel [L, D, H, D/H], bias [L, H, D/H]}
    blocks/attention/out/{kernel [L, H, D/H, D], bias [L, D]}
    blocks/mlp/fc1/{kernel [L, D, M], bias [L, M]}, blocks/mlp/fc2/{kernel [L, M, D], bias [L, D]}
    norm/{scale, bias [D]}
    pre_logits/{kernel [D, D], bias [D]}        with pre_logits
    head/{kernel [D, classes], bias [classes]}  with num_classes > 0
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.attention import dot_product_attention
from vit_jax.models.dropout import dropout, stochastic_depth

_GELU = {
    # Google's code trains with the tanh approximation, Hugging Face's and timm's default is erf.
    "tanh": functools.partial(jax.nn.gelu, approximate=True),
    "erf": functools.partial(jax.nn.gelu, approximate=False),
}
_XAVIER = nn.initializers.xavier_uniform()


class Attention(nn.Module):
  """Multi-head self-attention, `[B, N, D]` to `[B, N, D]`."""

  num_heads: int
  dtype: str
  implementation: str

  @nn.compact
  def __call__(self, x):
    shape = (self.num_heads, x.shape[-1] // self.num_heads)
    project = functools.partial(
        nn.DenseGeneral, features=shape, dtype=self.dtype, kernel_init=_XAVIER
    )
    query, key, value = (project(name=name)(x) for name in ("query", "key", "value"))
    x = dot_product_attention(query, key, value, implementation=self.implementation)
    return nn.DenseGeneral(
        features=shape[0] * shape[1], axis=(-2, -1), dtype=self.dtype, kernel_init=_XAVIER,
        name="out",
    )(x)


class Mlp(nn.Module):
  """Two dense layers with GELU between, `[B, N, D]` to `[B, N, D]`."""

  hidden: int
  gelu: str
  dropout: float
  dtype: str

  @nn.compact
  def __call__(self, x, *, key):
    dense = functools.partial(
        nn.Dense, dtype=self.dtype, kernel_init=_XAVIER, bias_init=nn.initializers.normal(1e-6)
    )
    width = x.shape[-1]
    x = _GELU[self.gelu](dense(self.hidden, name="fc1")(x))
    x = dropout(x, self.dropout, key)
    return dense(width, name="fc2")(x)


class Block(nn.Module):
  """One pre-norm encoder block.

  Dropout follows every dense layer except query, key and value (ViT, appendix B.1); `drop_rate` is
  this block's stochastic depth, used when `has_stochastic_depth`.
  """

  num_heads: int
  mlp_dim: int
  gelu: str
  layer_norm_epsilon: float
  dropout: float
  has_stochastic_depth: bool
  dtype: str
  attention: str

  @nn.compact
  def __call__(self, x, drop_rate, key):
    keys = jax.random.split(key, 5)
    norm = functools.partial(nn.LayerNorm, epsilon=self.layer_norm_epsilon, dtype=self.dtype)

    y = norm(name="norm1")(x)
    y = Attention(self.num_heads, self.dtype, self.attention, name="attention")(y)
    x = x + self._regularise(y, drop_rate, keys[0], keys[1])

    y = norm(name="norm2")(x)
    y = Mlp(self.mlp_dim, self.gelu, self.dropout, self.dtype, name="mlp")(y, key=keys[2])
    return x + self._regularise(y, drop_rate, keys[3], keys[4])

  def _regularise(self, branch, drop_rate, dropout_key, depth_key):
    branch = dropout(branch, self.dropout, dropout_key)
    if self.has_stochastic_depth:
      branch = stochastic_depth(branch, drop_rate, depth_key)
    return branch


class ViT(nn.Module):
  """Images `[B, H, W, 3]` to logits `[B, num_classes]`, or to features `[B, width]` without a head.

  Attributes:
    width, depth, mlp_dim, num_heads: size of the encoder (`variants.py` names the usual ones).
    patch_size, image_size: in pixels; images are square and a multiple of the patch.
    num_classes: 0 for no head.
    pooling: "cls" for a class token, "gap" for the mean over patches.
    pre_logits: a dense layer of `width` with tanh before the head (ViT, section 3.1).
    gelu: "tanh" (approximation) or "erf" (exact).
    layer_norm_epsilon: added to the variance in every layer norm.
    dropout: rate after dense layers and position embeddings, training only.
    stochastic_depth: rate of the last block, growing linearly from 0, training only.
    dtype: of the computation, "bfloat16" or "float32"; parameters, statistics of the norms,
      softmax and logits are float32.
    scan: run the blocks by `lax.scan` (compile time independent of depth) or unrolled.
    attention: an implementation of `attention.dot_product_attention`.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  patch_size: int
  image_size: int
  num_classes: int
  pooling: str = "cls"
  pre_logits: bool = False
  gelu: str = "tanh"
  layer_norm_epsilon: float = 1e-6
  dropout: float = 0.0
  stochastic_depth: float = 0.0
  dtype: str = "float32"
  scan: bool = False
  attention: str = "auto"

  @nn.compact
  def __call__(self, images, *, train: bool = False, key=None):
    """Runs the model.

    Args:
      images: float `[B, image_size, image_size, 3]`, normalised as the model was trained.
      train: whether dropout and stochastic depth are on.
      key: PRNG key of their bits; needed when `train`.

    Returns:
      float32 logits `[B, num_classes]`, or pooled features `[B, width]` when `num_classes` is 0.
    """
    if train and key is None:
      raise ValueError("ViT needs a key when train=True")
    position_key, encoder_key = jax.random.split(jax.random.key(0) if key is None else key)
    x = self._embed(images)
    x = dropout(x, self.dropout if train else 0.0, position_key)
    x = self._encode(x, train, encoder_key)
    x = nn.LayerNorm(epsilon=self.layer_norm_epsilon, dtype=self.dtype, name="norm")(x)
    x = x[:, 0] if self.pooling == "cls" else jnp.mean(x, axis=1, dtype=jnp.float32)
    if self.pre_logits:
      x = jnp.tanh(nn.Dense(self.width, dtype=self.dtype, name="pre_logits")(x))
    if self.num_classes:
      head = nn.Dense(
          self.num_classes, dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="head"
      )
      x = head(x)
    return x.astype(jnp.float32)

  def _embed(self, images):
    """Patches `[B, H, W, 3]` to tokens `[B, N (+ 1), D]` with positions added."""
    batch, height, width, channels = images.shape
    patch = self.patch_size
    if (height, width) != (self.image_size, self.image_size):
      raise ValueError(f"images are {height}x{width}, the model takes {self.image_size} square")
    rows = height // patch
    # A strided convolution whose windows do not overlap is a matrix product of flattened patches.
    x = images.astype(self.dtype).reshape(batch, rows, patch, rows, patch, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * rows, -1)
    x = _PatchEmbedding(self.width, patch, self.dtype, name="patch_embedding")(x)
    if self.pooling == "cls":
      token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
      x = jnp.concatenate([jnp.tile(token.astype(x.dtype), (batch, 1, 1)), x], axis=1)
    positions = self.param(
        "position_embedding", nn.initializers.normal(0.02), (1, x.shape[1], self.width)
    )
    return x + positions.astype(x.dtype)

  def _encode(self, x, train, key):
    """Runs the stacked blocks over tokens `[B, N, D]`."""
    block = Block(
        num_heads=self.num_heads,
        mlp_dim=self.mlp_dim,
        gelu=self.gelu,
        layer_norm_epsilon=self.layer_norm_epsilon,
        dropout=self.dropout if train else 0.0,
        has_stochastic_depth=train and self.stochastic_depth > 0,
        dtype=self.dtype,
        attention=self.attention,
        parent=None,
    )

    def init_blocks(init_key):
      init_one = lambda k: block.init(k, x[:1], 0.0, jax.random.key(0))["params"]
      return jax.vmap(init_one)(jax.random.split(init_key, self.depth))

    params = self.param("blocks", init_blocks)
    rates = jnp.linspace(0.0, self.stochastic_depth, self.depth)
    keys = jax.random.split(key, self.depth)

    def run_block(x, layer):
      layer_params, rate, layer_key = layer
      return block.apply({"params": layer_params}, x, rate, layer_key), None

    if self.scan:
      return jax.lax.scan(run_block, x, (params, rates, keys))[0]
    for layer in zip(_unstack(params, self.depth), rates, keys):
      x, _ = run_block(x, layer)
    return x


class _PatchEmbedding(nn.Module):
  """Flattened patches `[B, N, P * P * 3]` to tokens `[B, N, D]`; the kernel is a convolution's."""

  width: int
  patch_size: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    channels = x.shape[-1] // self.patch_size**2
    shape = (self.patch_size, self.patch_size, channels, self.width)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    return x @ kernel.reshape(-1, self.width).astype(self.dtype) + bias.astype(self.dtype)


def _unstack(tree, depth: int):
  """Splits the leading axis of every leaf; the transpose of `split` is one concatenation, where
  that of indexing is `depth` padded additions."""
  leaves, treedef = jax.tree.flatten(tree)
  layers = zip(*([part[0] for part in jax.lax.split(a, [1] * depth)] for a in leaves))
  return [jax.tree.unflatten(treedef, layer) for layer in layers]

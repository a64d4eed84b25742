"""Layers of the encoder: attention, MLP, the block of both, and the attention-pooling head."""

import functools

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from vit_jax.models.attention import attention_with_weights, dot_product_attention
from vit_jax.models.dense import Dense, spread
from vit_jax.models.dropout import dropout, stochastic_depth

_GELU = {
    # Google's code trains with the tanh approximation, Hugging Face's and timm's default is erf.
    "tanh": functools.partial(jax.nn.gelu, approximate=True),
    "erf": functools.partial(jax.nn.gelu, approximate=False),
}
# What a block computes, by the names that `remat="names:..."` keeps it under.
NAMES = (
    "norm1", "query", "key", "value", "attended", "attention", "norm2", "fc1", "gate", "hidden",
    "mlp", "dropout_mask",
)


class Attention(nn.Module):
  """Multi-head attention of `queries` `[B, Q, D]` to `x` `[B, N, D]`; self-attention without.

  Returns `[B, Q, D]`, and the weights `[B, heads, Q, N]` where they are asked for (else None).
  """

  num_heads: int
  dtype: str
  gradient_dtype: str = "float32"
  implementation: str = "auto"
  qkv_bias: bool = True
  qk_norm: bool = False
  layer_norm_epsilon: float = 1e-6
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, queries=None, *, key=None, with_weights: bool = False):
    queries = x if queries is None else queries
    shape = (self.num_heads, x.shape[-1] // self.num_heads)
    dense = functools.partial(Dense, dtype=self.dtype, gradient_dtype=self.gradient_dtype)
    project = lambda name, x: checkpoint_name(
        dense(shape, use_bias=self.qkv_bias, name=name)(x), name
    )
    q, k, v = project("query", queries), project("key", x), project("value", x)
    if self.qk_norm:
      norm = functools.partial(
          nn.LayerNorm, epsilon=self.layer_norm_epsilon, dtype=self.dtype
      )
      q, k = norm(name="query_norm")(q), norm(name="key_norm")(k)
    weights = None
    if with_weights or self.dropout:
      y, weights = attention_with_weights(
          q, k, v, dropout_rate=self.dropout, dropout_key=key
      )
    else:
      y = dot_product_attention(q, k, v, implementation=self.implementation)
    y = dense(shape[0] * shape[1], inputs=2, name="out")(checkpoint_name(y, "attended"))
    return checkpoint_name(y, "attention"), weights if with_weights else None


class Mlp(nn.Module):
  """Two dense layers with GELU between, or SwiGLU; `[B, N, D]` to `[B, N, D]`."""

  hidden: int
  gelu: str
  dtype: str
  gradient_dtype: str = "float32"
  dropout: float = 0.0
  kind: str = "gelu"

  @nn.compact
  def __call__(self, x, *, key=None):
    dense = functools.partial(
        Dense, dtype=self.dtype, gradient_dtype=self.gradient_dtype,
        bias_init=nn.initializers.normal(1e-6),
    )
    width = x.shape[-1]
    y = checkpoint_name(dense(self.hidden, name="fc1")(x), "fc1")
    if self.kind == "swiglu":  # GLU Variants Improve Transformer (arXiv 2002.05202), equation 5
      y = jax.nn.silu(checkpoint_name(dense(self.hidden, name="gate")(x), "gate")) * y
    else:
      y = _GELU[self.gelu](y)
    y = checkpoint_name(dropout(y, self.dropout, key), "hidden")
    return checkpoint_name(dense(width, name="fc2")(y), "mlp")


class Block(nn.Module):
  """One pre-norm encoder block.

  Dropout follows every dense layer except query, key and value (ViT, appendix B.1); `drop_rate` is
  this block's stochastic depth, used when `has_stochastic_depth`.
  """

  num_heads: int
  mlp_dim: int
  mlp: str
  gelu: str
  layer_norm_epsilon: float
  qkv_bias: bool
  qk_norm: bool
  layer_scale: float | None
  dropout: float
  attention_dropout: float
  has_stochastic_depth: bool
  dtype: str
  gradient_dtype: str
  attention: str

  @nn.compact
  def __call__(self, x, drop_rate, key, with_weights: bool = False):
    keys = jax.random.split(key, 6 if self.attention_dropout else 5)
    norm = functools.partial(nn.LayerNorm, epsilon=self.layer_norm_epsilon, dtype=self.dtype)

    y = checkpoint_name(norm(name="norm1")(x), "norm1")
    y, weights = Attention(
        self.num_heads, self.dtype, self.gradient_dtype, self.attention, self.qkv_bias,
        self.qk_norm, self.layer_norm_epsilon, self.attention_dropout, name="attention",
    )(y, key=keys[-1], with_weights=with_weights)
    x = x + self._regularise(self._scale(y, "layer_scale1"), drop_rate, keys[0], keys[1])

    y = checkpoint_name(norm(name="norm2")(x), "norm2")
    y = Mlp(
        self.mlp_dim, self.gelu, self.dtype, self.gradient_dtype, self.dropout, self.mlp,
        name="mlp",
    )(y, key=keys[2])
    y = self._scale(y, "layer_scale2")
    return x + self._regularise(y, drop_rate, keys[3], keys[4]), weights

  def _scale(self, branch, name):
    """LayerScale (CaiT, arXiv 2103.17239, section 2)."""
    if self.layer_scale is None:
      return branch
    initial = nn.initializers.constant(self.layer_scale)
    scale = self.param(name, initial, (branch.shape[-1],))
    return branch * spread(scale, branch.shape, self.dtype, self.gradient_dtype)

  def _regularise(self, branch, drop_rate, dropout_key, depth_key):
    branch = dropout(branch, self.dropout, dropout_key)
    if self.has_stochastic_depth:
      branch = stochastic_depth(branch, drop_rate, depth_key)
    return branch


class MapHead(nn.Module):
  """Multi-head attention pooling: a learned probe attends to `[B, N, D]` and gives `[B, D]`.

  Source: Scaling Vision Transformers (arXiv 2106.04560, section 3.2) as big_vision writes it.
  """

  num_heads: int
  mlp_dim: int
  gelu: str
  layer_norm_epsilon: float
  dtype: str
  gradient_dtype: str

  @nn.compact
  def __call__(self, x):
    batch, _, width = x.shape
    probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
    probe = spread(probe, (batch, 1, width), self.dtype, self.gradient_dtype)
    # One query an image: nothing to stream.
    x, _ = Attention(self.num_heads, self.dtype, self.gradient_dtype, "xla", name="attention")(
        x, probe
    )
    y = nn.LayerNorm(epsilon=self.layer_norm_epsilon, dtype=self.dtype, name="norm")(x)
    y = Mlp(self.mlp_dim, self.gelu, self.dtype, self.gradient_dtype, name="mlp")(y)
    return (x + y)[:, 0]

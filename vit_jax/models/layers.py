"""Layers of the encoder: attention, MLP, the block of both, and the attention-pooling head."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.attention import attention_with_weights, dot_product_attention
from vit_jax.models.dropout import dropout, stochastic_depth

_GELU = {
    # Google's code trains with the tanh approximation, Hugging Face's and timm's default is erf.
    "tanh": functools.partial(jax.nn.gelu, approximate=True),
    "erf": functools.partial(jax.nn.gelu, approximate=False),
}
_XAVIER = nn.initializers.xavier_uniform()


class Attention(nn.Module):
  """Multi-head attention of `queries` `[B, Q, D]` to `x` `[B, N, D]`; self-attention without.

  Returns `[B, Q, D]`, and the weights `[B, heads, Q, N]` where they are asked for (else None).
  """

  num_heads: int
  dtype: str
  implementation: str = "auto"
  qkv_bias: bool = True
  qk_norm: bool = False
  layer_norm_epsilon: float = 1e-6
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, queries=None, *, key=None, with_weights: bool = False):
    queries = x if queries is None else queries
    shape = (self.num_heads, x.shape[-1] // self.num_heads)
    project = functools.partial(
        nn.DenseGeneral, features=shape, dtype=self.dtype, kernel_init=_XAVIER,
        use_bias=self.qkv_bias,
    )
    q, k, v = project(name="query")(queries), project(name="key")(x), project(name="value")(x)
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
    y = nn.DenseGeneral(
        features=shape[0] * shape[1], axis=(-2, -1), dtype=self.dtype, kernel_init=_XAVIER,
        name="out",
    )(y)
    return y, weights if with_weights else None


class Mlp(nn.Module):
  """Two dense layers with GELU between, or SwiGLU; `[B, N, D]` to `[B, N, D]`."""

  hidden: int
  gelu: str
  dtype: str
  dropout: float = 0.0
  kind: str = "gelu"

  @nn.compact
  def __call__(self, x, *, key=None):
    dense = functools.partial(
        nn.Dense, dtype=self.dtype, kernel_init=_XAVIER, bias_init=nn.initializers.normal(1e-6)
    )
    width = x.shape[-1]
    y = dense(self.hidden, name="fc1")(x)
    if self.kind == "swiglu":  # GLU Variants Improve Transformer (arXiv 2002.05202), equation 5
      y = jax.nn.silu(dense(self.hidden, name="gate")(x)) * y
    else:
      y = _GELU[self.gelu](y)
    y = dropout(y, self.dropout, key)
    return dense(width, name="fc2")(y)


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
  attention: str

  @nn.compact
  def __call__(self, x, drop_rate, key, with_weights: bool = False):
    keys = jax.random.split(key, 6 if self.attention_dropout else 5)
    norm = functools.partial(nn.LayerNorm, epsilon=self.layer_norm_epsilon, dtype=self.dtype)

    y = norm(name="norm1")(x)
    y, weights = Attention(
        self.num_heads, self.dtype, self.attention, self.qkv_bias, self.qk_norm,
        self.layer_norm_epsilon, self.attention_dropout, name="attention",
    )(y, key=keys[-1], with_weights=with_weights)
    x = x + self._regularise(self._scale(y, "layer_scale1"), drop_rate, keys[0], keys[1])

    y = norm(name="norm2")(x)
    y = Mlp(self.mlp_dim, self.gelu, self.dtype, self.dropout, self.mlp, name="mlp")(y, key=keys[2])
    y = self._scale(y, "layer_scale2")
    return x + self._regularise(y, drop_rate, keys[3], keys[4]), weights

  def _scale(self, branch, name):
    """LayerScale (CaiT, arXiv 2103.17239, section 2)."""
    if self.layer_scale is None:
      return branch
    initial = nn.initializers.constant(self.layer_scale)
    return branch * self.param(name, initial, (branch.shape[-1],)).astype(branch.dtype)

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

  @nn.compact
  def __call__(self, x):
    probe = self.param("probe", _XAVIER, (1, 1, x.shape[-1])).astype(x.dtype)
    probe = jnp.tile(probe, (x.shape[0], 1, 1))
    # One query an image: nothing to stream.
    x, _ = Attention(self.num_heads, self.dtype, "xla", name="attention")(x, probe)
    y = nn.LayerNorm(epsilon=self.layer_norm_epsilon, dtype=self.dtype, name="norm")(x)
    return (x + Mlp(self.mlp_dim, self.gelu, self.dtype, name="mlp")(y))[:, 0]

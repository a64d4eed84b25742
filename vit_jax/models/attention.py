"""Scaled dot-product attention: one function, several implementations of equal result."""

import jax
import jax.numpy as jnp

from vit_jax.models.dropout import dropout

IMPLEMENTATIONS = ("auto", "xla", "cudnn")

# Up to this many tokens the logits of one image and head fit on chip, XLA fuses the softmax into
# them, and an online softmax has nothing to stream.
_SHORT_SEQUENCE = 1024


def dot_product_attention(query, key, value, *, implementation: str = "auto"):
  """Unmasked softmax(q kᵀ / √head_dim) v, the softmax in float32.

  Args:
    query: `[B, Q, heads, head_dim]`.
    key, value: `[B, N, heads, head_dim]`, all of one dtype.
    implementation: "xla", "cudnn" (NVIDIA GPUs, 16-bit dtypes), or "auto": cuDNN for long 16-bit
      sequences on a GPU, XLA otherwise.

  Returns:
    `[B, Q, heads, head_dim]` in the dtype of `value`.

  Raises:
    ValueError: unknown implementation.

  Source: Attention Is All You Need (arXiv 1706.03762), equation 1.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"unknown attention {implementation!r}; choose one of {IMPLEMENTATIONS}")
  if implementation == "auto":
    long = query.shape[1] > _SHORT_SEQUENCE and query.dtype.itemsize == 2
    implementation = "cudnn" if long and jax.default_backend() == "gpu" else "xla"
  if implementation == "cudnn":
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
  return _weighted(attention_weights(query, key), value)


def attention_with_weights(query, key, value, *, dropout_rate: float = 0.0, dropout_key=None):
  """As `dot_product_attention`, with dropout on the weights, and returns the weights too.

  Returns:
    `[B, Q, heads, head_dim]`, and float32 `[B, heads, Q, N]` before dropout (rows sum to 1).
  """
  weights = attention_weights(query, key)
  return _weighted(dropout(weights, dropout_rate, dropout_key), value), weights


def attention_weights(query, key):
  """softmax(q kᵀ / √head_dim) over keys: float32 `[B, heads, Q, N]`."""
  query = query * query.shape[-1] ** -0.5
  logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
  return jax.nn.softmax(logits, axis=-1)


def _weighted(weights, value):
  return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)

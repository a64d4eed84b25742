"""Attention that begins as trained attention looks (Trockman and Kolter, arXiv 2305.09828).

In trained ViTs query times key is near a multiple of the identity, so that a patch attends to those
like it, its neighbours by their positions; value times output is near a negative one.  A model that
begins so learns faster where images are few.
"""

import math

import jax

# What stands before the identity in query times key, and in value times output: the paper's.
_QUERY_KEY, _VALUE_OUT = 0.7, 0.4


def mimetic(attention, key):
  """Replaces the kernels in the parameters of one block's attention; biases stay.

  The paper factors 0.7 (I + Z) for each head, and 0.4 (Z - I) over all, Z normal, by their singular
  values.  Here one normal matrix serves both sides of a product: a head's key is its query, of
  variance 0.7 / d; out is minus the transpose of value, of variance 0.4 / D.  So the products have
  these means, 0.7 I and -0.4 I, and symmetric noise.  Where a head is narrower than the model, the
  paper keeps its largest singular values only, so that its identity is the weaker there.

  Args:
    attention: with the kernels "query", "key" and "value", float32 `[D, heads, d]`, and "out",
      float32 `[heads, d, D]`.
    key: of the random numbers.

  Returns:
    The same parameters with those four kernels.
  """
  shape = width, _, size = attention["query"]["kernel"].shape
  query_key, value_out = jax.random.split(key)
  query = math.sqrt(_QUERY_KEY / size) * jax.random.normal(query_key, shape)
  value = math.sqrt(_VALUE_OUT / width) * jax.random.normal(value_out, shape)
  kernels = {"query": query, "key": query, "value": value, "out": -value.transpose(1, 2, 0)}
  return attention | {name: attention[name] | {"kernel": x} for name, x in kernels.items()}

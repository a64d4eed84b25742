"""Attention alone, forward and backward in bfloat16: the implementations of
`vit_jax.models.attention` side by side at 197 and 1 024 tokens, B/16's 12 heads of 64.

    PYTHONPATH=. python benchmarks/attention.py

Prints a JSON line for each: milliseconds (median of interleaved rounds), TFLOP/s of the
analytic cost, temporary memory as the compiler planned it, and the largest deviation of output
and gradients from float32 at highest precision, as a share of the largest value.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp

from vit_jax.models.attention import dot_product_attention

_HEADS, _HEAD_DIM = 12, 64
# (tokens, images): 224 px and 512 px in patches of 16, about as many logits each.
_SHAPES = ((197, 256), (1024, 32))
_ROUNDS, _ROUND_SECONDS = 7, 0.2


def main():
  on_gpu = jax.default_backend() == "gpu"
  for tokens, images in _SHAPES:
    arrays = _inputs(tokens, images)
    compiled = {}
    for name in ("xla", "cudnn") if on_gpu else ("xla",):
      try:
        compiled[name] = _gradient(name).lower(*arrays).compile()
      except Exception as error:  # A finding about this device, not the end of the others.
        text = str(error).partition("\n")[0]
        _answer(implementation=name, tokens=tokens, refused=f"{type(error).__name__}: {text}")
    times = _interleaved({n: lambda f=f: f(*arrays) for n, f in compiled.items()})
    # Two products in the forward pass, four in the backward; 2 operations each.
    flops = 12 * images * _HEADS * tokens**2 * _HEAD_DIM
    for name, function in compiled.items():
      seconds = statistics.median(times[name])
      _answer(
          implementation=name,
          tokens=tokens,
          images=images,
          milliseconds=seconds * 1e3,
          tflops_per_second=flops / seconds / 1e12,
          temporary_bytes=function.memory_analysis().temp_size_in_bytes,
          deviation=_deviation(name, arrays),
      )


def _answer(**values):
  print(json.dumps({"benchmark": "attention"} | values), flush=True)


def _inputs(tokens: int, images: int):
  """Query, key, value and the gradient of the output, normal, bfloat16."""
  shape = (images, tokens, _HEADS, _HEAD_DIM)
  keys = jax.random.split(jax.random.key(0), 4)
  return [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]


def _gradient(implementation: str):
  """A jitted function of (query, key, value, gradient) to the output and three gradients."""

  def function(query, key, value, gradient):
    attend = lambda *qkv: dot_product_attention(*qkv, implementation=implementation)
    out, backward = jax.vjp(attend, query, key, value)
    return out, *backward(gradient)

  return jax.jit(function)


def _interleaved(functions) -> dict[str, list[float]]:
  """Seconds a call, a list over rounds for each function; every round runs all of them."""
  calls = {}
  for name, function in functions.items():
    jax.block_until_ready(function())
    begin = time.perf_counter()
    jax.block_until_ready(function())
    calls[name] = max(1, round(_ROUND_SECONDS / (time.perf_counter() - begin)))
  times = {name: [] for name in functions}
  for _ in range(_ROUNDS):
    for name, function in functions.items():
      begin = time.perf_counter()
      for _ in range(calls[name]):
        result = function()
      jax.block_until_ready(result)
      times[name].append((time.perf_counter() - begin) / calls[name])
  return times


def _deviation(implementation: str, arrays) -> float:
  """Of the first two images, against the XLA implementation in float32."""
  few = [a[:2] for a in arrays]
  with jax.default_matmul_precision("highest"):
    wanted = _gradient("xla")(*(a.astype(jnp.float32) for a in few))
  got = _gradient(implementation)(*few)
  return max(
      float(jnp.max(jnp.abs(g.astype(jnp.float32) - w)) / jnp.max(jnp.abs(w)))
      for g, w in zip(got, wanted)
  )


if __name__ == "__main__":
  main()

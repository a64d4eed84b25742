"""vit_jax: train Vision Transformers in JAX at any scale, and publish them.

`vit_jax.load(REF)` is imported on first use, so that `import vit_jax` costs nothing and
starts no device.  (Its module has another name: a module of the same would take its place.)
"""

__version__ = "0.1.0"
__all__ = ["load"]


def __dir__():
  return sorted({*globals(), *__all__})


def __getattr__(name):
  if name == "load":
    from vit_jax.loading import load

    return load
  raise AttributeError(f"module 'vit_jax' has no attribute {name!r}")

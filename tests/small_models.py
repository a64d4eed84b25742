"""Models so small that a test can make many, with weights so large that every setting shows."""

import jax
import numpy as np

from vit_jax.interop.tensor_table import put
from vit_jax.models.vit import DEFAULTS, ViT, param_shapes

MODEL = {
    **DEFAULTS, "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 4, "patch_size": 8,
    "image_size": 32, "num_classes": 5, "gelu": "tanh", "layer_norm_epsilon": 1e-6,
}
SMALLER = MODEL | {"patch_size": 4, "image_size": 16}
NO_CLASS_TOKEN = {"class_token": False, "pooling": "gap"}
MAP = {"class_token": False, "pooling": "map"}
LABELS = ("ant", "bee", "cat", "dog", "elk")
PREPROCESSING = {
    "image_size": 32, "resize": "center", "short_side": 36, "interpolation": "bicubic",
    "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.25, 0.2], "exif_orientation": True,
}
# timm's arguments of a model of the same sizes, for `create_model`.
TINY = {
    "model_name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "embed_dim": 32,
    "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 5,
}


def random_params(model):
  """Every parameter from a normal distribution of deviation 0.2, norms and biases too."""
  rng, params = np.random.default_rng(0), {}
  for path, shape in param_shapes(model).items():
    put(params, path, rng.standard_normal(shape, np.float32) * np.float32(0.2))
  return params


def images_of(model, count=2):
  """Noise of the model's image size."""
  size = model["image_size"]
  sides = (size, size) if isinstance(size, int) else tuple(size)
  return np.random.default_rng(1).standard_normal((count, *sides, 3), np.float32)


def forward(model, params):
  """Our answer on `images_of(model)`, and the tokens."""
  with jax.default_matmul_precision("highest"):
    outputs, seen = ViT(**model).apply({"params": params}, images_of(model), outputs=("tokens",))
  return np.asarray(outputs), np.asarray(seen["tokens"])


def write(module, directory, model, **options):
  """Lets a format write a model with random parameters; returns (params, report)."""
  params = options.pop("params", None) or random_params(model)
  directory.mkdir(exist_ok=True)
  options = {"preprocessing": None, "labels": None} | options
  return params, module.write(directory, model=model, params=params, **options)


def assert_same(found, expected):
  """Equal trees, leaf by leaf."""
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)

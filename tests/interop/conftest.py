"""A ViT small enough to convert many times, with weights so large that every setting shows."""

import json

import numpy as np
import pytest

from vit_jax.interop.huggingface import write
from vit_jax.interop.tensor_table import put
from vit_jax.models.vit import DEFAULTS, param_shapes

MODEL = DEFAULTS | {
    "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 4, "patch_size": 4, "image_size": 16,
    "num_classes": 5, "gelu": "tanh", "layer_norm_epsilon": 1e-6,
}
PREPROCESSING = {
    "image_size": 16, "resize": "squash", "short_side": None, "interpolation": "bilinear",
    "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2], "exif_orientation": True,
}


def _random_params(model):
  """Every parameter from a normal distribution of deviation 0.2, norms and biases too."""
  rng = np.random.default_rng(0)
  params = {}
  for path, shape in param_shapes(model).items():
    put(params, path, rng.standard_normal(shape, np.float32) * np.float32(0.2))
  return params


@pytest.fixture
def model():
  return dict(MODEL)


@pytest.fixture
def preprocessing():
  return dict(PREPROCESSING)


@pytest.fixture
def random_params():
  return _random_params


@pytest.fixture
def params(model):
  return _random_params(model)


@pytest.fixture
def export(tmp_path, preprocessing):
  """Writes a model into a directory of the test, random parameters unless some are given."""

  def export(model, name="export", **options):
    options = {"preprocessing": preprocessing, "labels": None} | options
    params = options.pop("params", None) or _random_params(model)
    (tmp_path / name).mkdir()
    write(tmp_path / name, model=model, params=params, **options)
    return tmp_path / name

  return export


@pytest.fixture
def edit_json():
  """Changes keys of a JSON file; a value of None removes the key."""

  def edit(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

  return edit


@pytest.fixture
def edit_tensors():
  """Passes the tensors of a safetensors file, by name, through a function."""
  from safetensors.numpy import load_file, save_file

  def edit(path, function):
    tensors = function(dict(load_file(path)))
    tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})

  return edit

"""Small models and their exports to Hugging Face directories, as fixtures."""

import json

import numpy as np
import pytest
import small_models

from vit_jax.interop import huggingface

PREPROCESSING = {
    "image_size": 16, "resize": "squash", "short_side": None, "interpolation": "bilinear",
    "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2], "exif_orientation": True,
}


@pytest.fixture
def model():
  return dict(small_models.SMALLER)


@pytest.fixture
def preprocessing():
  return dict(PREPROCESSING)


@pytest.fixture
def random_params():
  return small_models.random_params


@pytest.fixture
def params(model):
  return small_models.random_params(model)


@pytest.fixture
def export(tmp_path, preprocessing):
  """Writes a model into a directory of the test, random parameters unless some are given."""

  def export(model, name="export", **options):
    options = {"preprocessing": preprocessing} | options
    small_models.write(huggingface, tmp_path / name, model, **options)
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

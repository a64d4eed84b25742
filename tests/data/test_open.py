"""Data sets by name."""

from PIL import Image
import pytest

from vit_jax.data.open import open_dataset
from vit_jax.errors import ConfigError, DataError


def test_names(tmp_path):
  assert open_dataset("digits", path=None, held_out=0.2).name == "digits"
  for i in range(6):
    (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
    Image.new("RGB", (3, 3), (i, 0, 0)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
  dataset = open_dataset("folder", path=str(tmp_path), held_out=0.1)
  assert dataset.classes == ("a", "b")


def test_wrong_names_and_paths(tmp_path):
  with pytest.raises(ConfigError, match="'digit'.*'digits'"):
    open_dataset("digit", path=None, held_out=0.1)
  with pytest.raises(ConfigError, match="config.input.path is not set"):
    open_dataset("folder", path=None, held_out=0.1)
  with pytest.raises(ConfigError, match="scikit-learn"):
    open_dataset("digits", path=str(tmp_path), held_out=0.1)
  with pytest.raises(DataError, match="does not exist"):
    open_dataset("folder", path=str(tmp_path / "x"), held_out=0.1)

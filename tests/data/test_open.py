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


def test_what_is_trained_on_and_evaluated_on_is_said(tmp_path):
  def notes(**arguments):
    dataset = open_dataset("digits", path=None, held_out=0.1, **arguments)
    return " ".join(note for note in dataset.notes if "held out by" not in note)

  assert "evaluation is on the images of train" in notes(split="train[:90%]")
  half = len(open_dataset("digits", path=None, held_out=0).splits["train"]) // 2
  said = notes(split="train[:50%]", evaluation=f"train[{half - 7}:]")
  assert f"7 images of train[{half - 7}:], which is evaluated on, are trained on" in said or (
      "8 images" in said)
  assert "are trained on" not in notes(split="train[:50%]", evaluation="train[50%:]")
  assert "are trained on" not in notes(evaluation="validation")
  assert "are trained on in train" in notes(evaluation="train[90%:]")


def test_parts_of_a_mixture_are_refused(tmp_path):
  file = tmp_path / "mixture.json"
  file.write_text('[{"dataset": "digits", "weight": 2}]')
  for arguments in ({"split": "train[:90%]"}, {"evaluation": "train[90%:]"}):
    with pytest.raises(ConfigError, match="a mixture holds records several times"):
      open_dataset("mixture", path=str(file), held_out=0.1, **arguments)
  with pytest.raises(ConfigError, match="is a mixture: balance it by the weights"):
    open_dataset("mixture", path=str(file), held_out=0.1, sampling="class_balanced")
  file.write_text('[{"dataset": "digits"}, {"dataset": "folder"}]')
  with pytest.raises(ConfigError, match="mixture.json, part 2: config.input.path is not set"):
    open_dataset("mixture", path=str(file), held_out=0.1)

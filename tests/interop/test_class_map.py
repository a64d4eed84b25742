"""Slicing a head of many classes to some of them."""

import numpy as np
import pytest

from small_models import MODEL, assert_same, forward, random_params
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop.class_map import IMAGENET_1K, read_class_map, slice_head

WORDNET = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475")


@pytest.fixture
def params():
  return random_params(MODEL)


@pytest.mark.parametrize("wanted", [(3, 0), (WORDNET[3], WORDNET[0]), (3, WORDNET[0])])
def test_the_kept_logits_are_those_of_before(wanted, params):
  model, sliced, labels, line = slice_head(MODEL, params, WORDNET, wanted=wanted)
  assert model == {**MODEL, "num_classes": 2}
  assert labels == (WORDNET[3], WORDNET[0])
  assert line == "kept 2 of 5 classes"
  before, after = forward(MODEL, params)[0], forward(model, sliced)[0]
  np.testing.assert_allclose(after, before[:, [3, 0]], rtol=0, atol=1e-6)
  assert_same({k: v for k, v in sliced.items() if k != "head"},
              {k: v for k, v in params.items() if k != "head"})


def test_both_heads_of_a_distilled_model():
  distilled = {**MODEL, "distillation_token": True, "distillation_head": True}
  params = random_params(distilled)
  model, sliced, labels, _ = slice_head(distilled, params, None, wanted=(4, 1, 2))
  assert labels is None
  before, after = forward(distilled, params)[0], forward(model, sliced)[0]
  np.testing.assert_allclose(after, before[:, [4, 1, 2]], rtol=0, atol=1e-6)


def google_21k():
  model = {**MODEL, "num_classes": 21_843}
  return model, {"head": {"kernel": np.zeros((32, 21_843), np.float32),
                          "bias": np.arange(21_843, dtype=np.float32)}}


def test_imagenet_1k_out_of_googles_21k():
  model, params = google_21k()
  model, sliced, labels, line = slice_head(model, params, None, wanted=IMAGENET_1K)
  assert model["num_classes"] == len(labels) == 1000
  bias = sliced["head"]["bias"]
  # Both orders are sorted by WordNet id, so the indices only grow; "teddy" is in 1k alone.
  present = [i for i, label in enumerate(labels) if label != "n04399382"]
  assert len(present) == 999 and (np.diff(bias[present]) > 0).all()
  assert bias[labels.index("n04399382")] == -1e4
  assert not sliced["head"]["kernel"].any()
  assert labels[0] == "n01440764" and "never answers n04399382" in line


def test_imagenet_1k_among_labels():
  _, _, names, _ = slice_head(*google_21k(), None, wanted=IMAGENET_1K)
  labels = ("n00000001", *reversed(names), "n99999999")
  model = {**MODEL, "num_classes": 1002}
  params = {"head": {"kernel": np.ones((32, 1002), np.float32),
                     "bias": np.arange(1002, dtype=np.float32)}}
  _, sliced, found, line = slice_head(model, params, labels, wanted=IMAGENET_1K)
  assert found == names and line == "kept 1000 of 1002 classes"
  np.testing.assert_array_equal(sliced["head"]["bias"], np.arange(1000, 0, -1))
  few = {**MODEL, "num_classes": 5}
  with pytest.raises(CheckpointError, match="has 5 of 1000"):
    slice_head(few, random_params(few), WORDNET, wanted=IMAGENET_1K)


def test_what_is_not_there_is_refused(params):
  with pytest.raises(ConfigError, match="1 of the wanted classes.*5 classes and no labels: 5"):
    slice_head(MODEL, params, None, wanted=(0, 5))
  with pytest.raises(ConfigError, match="labels such as n01440764.*n00000000"):
    slice_head(MODEL, params, WORDNET, wanted=("n00000000",))
  with pytest.raises(ConfigError, match="wanted twice: 3"):
    slice_head(MODEL, params, WORDNET, wanted=(3, WORDNET[3]))
  with pytest.raises(ConfigError, match="unknown class map 'imagenet'"):
    slice_head(MODEL, params, WORDNET, wanted="imagenet")
  with pytest.raises(CheckpointError, match="5 classes are not known"):
    slice_head(MODEL, params, None, wanted=IMAGENET_1K)
  with pytest.raises(CheckpointError, match="no head"):
    slice_head({**MODEL, "num_classes": 0}, params, None, wanted=(0,))


def test_a_file_of_classes(tmp_path):
  path = tmp_path / "classes.txt"
  path.write_text("# two\n3\n\nn01440764  # tench\n")
  assert read_class_map(path) == (3, "n01440764")
  for text, wrong in (("0\ncat\n", "line 2: 'cat'"), ("1\n2\n-4\n", "line 3: the index -4"),
                      ("# none\n", "names no classes")):
    path.write_text(text)
    with pytest.raises(ConfigError, match=wrong):
      read_class_map(path)
  with pytest.raises(ConfigError, match="cannot be read"):
    read_class_map(tmp_path / "nothing.txt")

"""Weights of a checkpoint as the start of a run: what is taken, and what is said of it."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_models import LABELS, MODEL, PREPROCESSING, random_params

from vit_jax import config as config_lib
from vit_jax.data.source import DataSet
from vit_jax.errors import ConfigError
from vit_jax.loading import Checkpoint
from vit_jax.models.positions import resize_position_embedding
from vit_jax.step import TrainState
from vit_jax.warm_start import kept_head, needs_weights, warm_start

SIZE, LARGER = MODEL["image_size"], 2 * MODEL["image_size"]


def checkpoint_and_state(model, **changes):
  """Weights at random, and the state of a run of the same model or a changed one."""
  checkpoint = Checkpoint("a/checkpoint", model, random_params(model), PREPROCESSING)
  new = jax.tree.map(lambda a: jax.device_put(a + 1), random_params(model | changes))
  return checkpoint, TrainState(0, new, {}, {}, {}, {})


def resolved(image_size, position_image_size=None):
  """What a warm start asks of `config.model`."""
  return SimpleNamespace(
      image_size=image_size, position_image_size=position_image_size,
      position_interpolation="bilinear",
  )


@pytest.mark.parametrize("positions, counted, said", [
    ("learned", None, "positions resampled (bilinear)"),
    ("sincos2d", SIZE, f"fixed positions stretched from {SIZE} px"),
    ("sincos2d", None, "fixed positions counted anew"),
    ("sincos2d", LARGER, "fixed positions counted anew"),
])
def test_positions_of_another_size(positions, counted, said):
  checkpoint, state = checkpoint_and_state(
      MODEL | {"position_embedding": positions}, image_size=LARGER
  )
  started, told = warm_start(state, checkpoint, model=resolved(LARGER, counted))
  assert told == f"init: weights from {SIZE} px to {LARGER} px, {said}; new: head/bias, head/kernel"
  theirs = checkpoint.params
  np.testing.assert_array_equal(
      started.params["patch_embedding"]["kernel"], theirs["patch_embedding"]["kernel"]
  )
  np.testing.assert_array_equal(started.params["head"]["kernel"], state.params["head"]["kernel"])
  if positions == "learned":
    old, new = (size // MODEL["patch_size"] for size in (SIZE, LARGER))
    wanted = resize_position_embedding(
        theirs["position_embedding"], old_grid=(old, old), new_grid=(new, new),
        interpolation="bilinear",
    )
    np.testing.assert_array_equal(started.params["position_embedding"], wanted)


def test_with_its_head_a_checkpoint_is_taken_whole():
  checkpoint, state = checkpoint_and_state(MODEL | {"pre_logits": True})
  started, said = warm_start(state, checkpoint, model=resolved(SIZE), keep_head=True)
  assert said == f"init: weights from {SIZE} px to {SIZE} px"
  jax.tree.map(np.testing.assert_array_equal, started.params, checkpoint.params)


def test_a_head_is_kept_for_the_same_classes():
  def kept(checkpoint, classes, by_order=False):
    return kept_head(checkpoint, DataSet("photos", classes, {}, ""), by_order=by_order)

  checkpoint, _ = checkpoint_and_state(MODEL)
  assert kept(checkpoint, LABELS) == "head of 5 classes kept"  # it has no names
  named = dataclasses.replace(checkpoint, labels=LABELS)
  assert kept(named, LABELS) == "head of 5 classes kept"
  other_names = ("ant", "Apis", "cat", "dog", "elk")
  for classes, said in (
      (other_names, "the first that differs: 'bee', 'Apis': leave config.init.head at 'new'; if the"
       " same classes in the same order have only other names, --config.evaluate.classes=by_order"),
      (LABELS[::-1], "'ant', 'elk'"), (LABELS[:1], "knows 5 classes, photos has 1"),
  ):
    with pytest.raises(ConfigError, match=said):
      kept(named, classes)
  assert "by their order, though 'bee' there is 'Apis' here" in kept(named, other_names, True)
  with pytest.raises(ConfigError, match="another order, 'ant' where the data has 'elk'"):
    kept(named, LABELS[::-1], True)
  headless, _ = checkpoint_and_state(MODEL | {"num_classes": 0})
  with pytest.raises(ConfigError, match="has no head: leave config.init.head"):
    kept(headless, LABELS, True)


@pytest.mark.parametrize("values, key", [
    ({}, None),
    ({"init.required": True}, "config.init.required"),
    ({"init.head": "keep"}, "config.init.head is 'keep'"),
    ({"init.head": "keep", "init.checkpoint": "x"}, None),
    ({"init.required": True, "fork.checkpoint": "x@1"}, None),
])
def test_what_needs_weights(values, key):
  assert needs_weights(config_lib.complete(values, origin="a test")) == key

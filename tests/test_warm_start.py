"""Weights of a checkpoint as the start of a run: what is taken, and what is said of it."""

import jax
import numpy as np
import pytest
import small_models

from vit_jax.loading import Checkpoint
from vit_jax.models.positions import resize_position_embedding
from vit_jax.step import TrainState
from vit_jax.warm_start import warm_start


@pytest.mark.parametrize("positions", ["learned", "sincos2d"])
def test_learned_positions_are_resampled_and_fixed_ones_are_not_spoken_of(positions):
  model = small_models.MODEL | {"position_embedding": positions}
  size, larger = model["image_size"], 2 * model["image_size"]
  theirs = small_models.random_params(model)
  new = jax.device_put(small_models.random_params(model | {"image_size": larger}))
  state = TrainState(0, new, {}, {}, {}, {})
  checkpoint = Checkpoint("a/checkpoint", model, theirs, small_models.PREPROCESSING)

  started, said = warm_start(state, checkpoint, image_size=larger, interpolation="bilinear")
  assert f"weights from {size} px to {larger} px" in said
  assert ("positions resampled (bilinear)" in said) == (positions == "learned")
  np.testing.assert_array_equal(
      started.params["patch_embedding"]["kernel"], theirs["patch_embedding"]["kernel"]
  )
  np.testing.assert_array_equal(started.params["head"]["kernel"], new["head"]["kernel"])
  if positions == "learned":
    side, patch = size // model["patch_size"], model["patch_size"]
    wanted = resize_position_embedding(
        theirs["position_embedding"], old_grid=(side, side),
        new_grid=(larger // patch,) * 2, interpolation="bilinear",
    )
    np.testing.assert_array_equal(started.params["position_embedding"], wanted)

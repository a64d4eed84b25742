"""What a run takes over from the checkpoint that it starts from, how images are
evaluated; and what the devices decide."""

from types import SimpleNamespace

import pytest

from vit_jax import config as config_lib
from vit_jax.data.preprocess import Preprocessing
from vit_jax.errors import ConfigError
from vit_jax.models.vit import DEFAULTS
from vit_jax.resolve import preprocessing, resolve

SQUASH = {
    "image_size": 224, "resize": "squash", "short_side": None, "interpolation": "bicubic",
    "mean": [0.5] * 3, "std": [0.5] * 3, "exif_orientation": True,
}
SHAPE = {
    "width": 32, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 16, "image_size": 224,
    "num_classes": 3,
}


def resolved(values, theirs=None, model=None):
  checkpoint = theirs is not None and SimpleNamespace(
      ref="theirs", model_config=DEFAULTS | SHAPE | (model or {}), preprocessing=SQUASH | theirs,
  )
  config = config_lib.complete(values, origin="a test")
  return resolve(config, checkpoint=checkpoint or None, platform="cpu")


def geometry(values, theirs=None):
  how = preprocessing(resolved(values, theirs))
  Preprocessing.from_dict(how)
  return how["resize"], how["short_side"]


@pytest.mark.parametrize("theirs, values, expected", [
    (None, {}, ("squash", None)),
    (None, {"input.resize": "center"}, ("center", 256)),
    (None, {"input.resize": "squash", "input.short_side": 240}, ("squash", 240)),
    ({"resize": "squash"}, {}, ("squash", None)),
    # As facebook/deit-*.
    ({"short_side": 256}, {}, ("squash", 256)),
    ({"short_side": 256}, {"model.image_size": 448}, ("squash", 512)),
    ({"short_side": 256}, {"input.short_side": 250}, ("squash", 250)),
    ({"short_side": 248, "resize": "center"}, {}, ("center", 248)),
    ({"short_side": 248, "resize": "center"}, {"input.resize": "squash"}, ("squash", None)),
    ({"short_side": 480, "resize": "center", "image_size": [224, 384]}, {}, ("center", 280)),
    ({"resize": "squash"}, {"input.resize": "center"}, ("center", 256)),
])
def test_the_crop_keeps_its_share(theirs, values, expected):
  assert geometry(values, theirs) == expected
  # A resolved config says itself all that it says, so a run that goes on evaluates the same.
  again = resolve(resolved(values, theirs), checkpoint=None, platform="cpu")
  assert (again.input.resize, again.input.short_side) == expected


@pytest.mark.parametrize("values, text", [
    ({"input.short_side": 240}, "only squashes images"),
    ({"input.resize": "center", "input.short_side": 200}, "smaller than config.model.image_size"),
])
def test_a_crop_that_cannot_be(values, text):
  with pytest.raises(ConfigError, match=text):
    resolved(values)


@pytest.mark.parametrize("model, values, expected", [
    ({"position_embedding": "learned"}, {"model.image_size": 448}, None),
    ({}, {}, None),
    ({}, {"model.image_size": 448}, 224),
    ({"image_size": 448, "position_image_size": 224}, {}, 224),
    ({"image_size": 448, "position_image_size": 224}, {"model.image_size": 224}, None),
    ({}, {"model.image_size": 448, "model.position_image_size": 448}, 448),
    ({"image_size": [224, 384]}, {"model.image_size": 448}, None),
    ({"position_image_size": "any"}, {"model.image_size": 448}, None),
])
def test_fixed_positions_go_on_counting_what_they_counted(model, values, expected):
  found = resolved(values, {}, {"position_embedding": "sincos2d", **model})
  assert found.model.position_image_size == expected
  again = resolve(found, checkpoint=None, platform="cpu")
  assert again.model.position_image_size == expected


def test_layers_of_the_head_come_with_a_head_that_is_kept():
  theirs = {"distillation_token": True, "distillation_head": True}
  new, kept = (resolved(keep, {}, theirs).model for keep in ({}, {"init.head": "keep"}))
  assert (new.distillation_head, kept.distillation_head) == (False, True)
  theirs = {"pre_logits": True}
  new, kept = (resolved(keep, {}, theirs).model for keep in ({}, {"init.head": "keep"}))
  assert (new.pre_logits, kept.pre_logits) == (False, True)


@pytest.mark.parametrize("platform, values, expected", [
    ("tpu", {}, (True, "dots", "bfloat16")),
    ("tpu", {"model.scan": False}, (False, "none", "bfloat16")),
    ("tpu", {"model.remat": "block"}, (True, "block", "bfloat16")),
    ("gpu", {}, (False, "none", "bfloat16")),
    ("cpu", {}, (False, "none", "float32")),
    ("cpu", {"model.scan": True}, (True, "none", "float32")),
])
def test_what_the_devices_decide(platform, values, expected):
  config = config_lib.complete(values, origin="a test")
  model = resolve(config, checkpoint=None, platform=platform).model
  assert (model.scan, model.remat, model.dtype) == expected

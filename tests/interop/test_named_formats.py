"""A refusal names the formats that hold the model, and each that it names does."""

import re

import pytest
from small_models import MAP, MODEL, NO_CLASS_TOKEN

from vit_jax.errors import CheckpointError
from vit_jax.interop.targets import TARGETS, choose, target

DISTILLED = {"distillation_token": True, "distillation_head": True}
UNUSUAL = {
    "Hugging Face's defaults": {"layer_norm_epsilon": 1e-12, "gelu": "erf"},
    "mean beside a class token": {"pooling": "gap"},
    "mean, exact GELU": NO_CLASS_TOKEN | {"gelu": "erf"},
    "attention pooling": MAP,
    "pre_logits": {"pre_logits": True},
    "attention pooling, pre_logits": MAP | {"pre_logits": True},
    "SwiGLU, distilled": {"mlp": "swiglu", "layer_norm_epsilon": 1e-5} | DISTILLED,
    "DeiT's pooler": {"distillation_token": True, "num_classes": 0, "pre_logits": True},
    "pixels": {"num_classes": 0, "pooling": "none", "pixel_decoder": True, "mask_token": True},
    "LayerScale, 1e-12": {"layer_scale": 0.1, "layer_norm_epsilon": 1e-12},
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_every_format_that_is_named_holds_the_model(name):
  model, refused = {**MODEL, **UNUSUAL[name]}, 0
  for wanted in TARGETS:
    try:
      choose(target(wanted), model, None)
    except CheckpointError as error:
      refused += 1
      named = set(re.findall("--to=([a-z-]+)", str(error).partition("Whole it can")[2]))
      able = set()
      for other in TARGETS:
        try:
          target(other).choose(model, None)
          able.add(other)
        except CheckpointError:
          pass
      assert named == able and "orbax" in named and wanted not in named
  assert refused

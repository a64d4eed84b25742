"""What the papers say about the data and the models, typed for the tests of the recipes."""

import types

from vit_jax import config as config_lib
from vit_jax.models.vit import DEFAULTS
from vit_jax.models.variants import variant_shape
from vit_jax.plan import make_plan
from vit_jax.resolve import resolve

# Data: examples that are trained on, classes.
IMAGENET_21K = (12_400_000, 21_843)
IMAGENET_1K = (1_268_355, 1_000)  # 99 % of 1 281 167
# 98 % of 50 000, and 90 % of 3 680 and of 1 020.
CIFAR10, CIFAR100, PETS, FLOWERS = (49_000, 10), (49_000, 100), (3_312, 37), (918, 102)
FASHION_MNIST, WHOLE_CIFAR10 = (60_000, 10), (50_000, 10)
DIGITS = (1_437, 10)

# Parameters at 224 px with a class token and a head of 1000 classes: (count, width, positions).
SIZES = {
    "Ti/16": (5_717_416, 192, 197),
    "S/16": (22_050_664, 384, 197),
    "S/32": (22_878_952, 384, 50),
    "B/16": (86_567_656, 768, 197),
    "B/32": (88_224_232, 768, 50),
    "L/16": (304_326_632, 1024, 197),
    "L/32": (306_535_400, 1024, 50),
    "H/14": (632_045_800, 1280, 257),
}


def checkpoint(variant):
  """A published checkpoint to fine-tune, as far as a config sees it."""
  model = DEFAULTS | variant_shape(variant) | {"image_size": 224, "num_classes": 21_843}
  return types.SimpleNamespace(ref="theirs", model_config=model, preprocessing=None)


def resolved(spec, overrides=None, *, start=None, platform="gpu"):
  """The config as a run on an accelerator would have it; `start` is the checkpoint's variant."""
  config = config_lib.load(spec, overrides)
  return resolve(config, checkpoint=start and checkpoint(start), platform=platform)


def plan(spec, data, overrides=None, **how):
  """The run's parts, everything abstract; scanned, which is faster to trace."""
  config = resolved(spec, {"model.scan": "true"} | (overrides or {}), **how)
  return make_plan(config, examples=data[0], num_classes=data[1])

"""The analytic cost against the compiler's own count."""

import jax
import numpy as np
import pytest

from vit_jax.models.flops import forward_macs, training_flops
from vit_jax.models.variants import variant_shape
from vit_jax.models.vit import ViT

CASES = {
    "S/16, class token": variant_shape("S/16") | {"image_size": 224, "num_classes": 1000},
    "S/32, mean, pre_logits": variant_shape("S/32")
    | {"image_size": 384, "num_classes": 100, "pooling": "gap", "class_token": False,
       "pre_logits": True},
    "B/16, no head": variant_shape("B/16") | {"image_size": 224, "num_classes": 0},
    "Ti/16, distilled, wide": variant_shape("Ti/16") | {
        "image_size": (224, 320), "num_classes": 1000, "distillation_token": True,
        "distillation_head": True,
    },
    "Ti/16, attention pooling, SwiGLU": variant_shape("Ti/16") | {
        "image_size": 224, "num_classes": 1000, "pooling": "map", "class_token": False,
        "mlp": "swiglu", "register_tokens": 4,
    },
    "Ti/16, pixels": variant_shape("Ti/16") | {
        "image_size": 224, "num_classes": 0, "pooling": "none", "pixel_decoder": True,
    },
}


def compiler_flops(function, *arguments):
  return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("case", CASES)
def test_forward_cost_is_the_compilers_within_two_percent(case):
  model = ViT(**CASES[case])
  size = CASES[case]["image_size"]
  sides = (size, size) if isinstance(size, int) else size
  image = jax.ShapeDtypeStruct((1, *sides, 3), np.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  counted = compiler_flops(lambda v, x: model.apply(v, x), variables, image)
  assert 2 * forward_macs(**CASES[case]) == pytest.approx(counted, rel=0.02)


def test_training_cost_is_the_compilers_within_two_percent():
  config = CASES["S/16, class token"]
  model = ViT(**config)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  gradient = jax.grad(lambda v, x: model.apply(v, x).sum())
  counted = compiler_flops(gradient, variables, image)
  assert training_flops(**config) == pytest.approx(counted, rel=0.02)


def test_keys_without_cost_are_ignored():
  config = CASES["S/16, class token"]
  extra = {"dropout": 0.1, "dtype": "bfloat16", "scan": True, "num_heads": 12}
  assert forward_macs(**(config | extra)) == forward_macs(**config)

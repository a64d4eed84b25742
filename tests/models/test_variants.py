"""Named sizes against the published table: parameters and multiply-accumulates."""

import jax
import numpy as np
import pytest

from vit_jax.models.flops import forward_macs
from vit_jax.models.variants import SIZES, variant_shape
from vit_jax.models.vit import ViT

# Class token, 1000-class linear head, 224 px: parameters, and GMAC to the digits in print.
PUBLISHED = {
    "Ti/16": (5_717_416, "1.25"),
    "S/16": (22_050_664, "4.60"),
    "S/32": (22_878_952, "1.14"),
    "B/16": (86_567_656, "17.56"),
    "B/32": (88_224_232, "4.41"),
    "B/8": (86_576_872, "78.15"),
    "L/16": (304_326_632, "61.55"),
    "L/32": (306_535_400, "15.38"),
    "H/14": (632_045_800, "167.3"),
    "g/14": (1_012_611_432, "267.0"),
    "G/14": (None, "483.75"),  # printed as 483.8, and as 1 844.4 M (below)
}
SHAPES = {
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
}


def count_parameters(variant):
  model = ViT(**variant_shape(variant), image_size=224, num_classes=1000, scan=True)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("variant", [v for v, (count, _) in PUBLISHED.items() if count])
def test_parameter_counts_are_the_published_ones(variant):
  assert count_parameters(variant) == PUBLISHED[variant][0]


def test_the_largest_has_its_published_count_in_millions():
  assert f"{count_parameters('G/14') / 1e6:.1f}" == "1844.4"


@pytest.mark.parametrize("variant", PUBLISHED)
def test_forward_cost_has_the_published_digits(variant):
  macs = forward_macs(**variant_shape(variant), image_size=224, num_classes=1000)
  printed = PUBLISHED[variant][1]
  decimals = len(printed.partition(".")[2])
  assert f"{macs / 1e9:.{decimals}f}" == printed


def test_every_size_has_its_published_shape():
  assert set(SIZES) == set(SHAPES)
  for name, (width, depth, mlp_dim, num_heads) in SHAPES.items():
    assert variant_shape(f"{name}/14") == {
        "width": width, "depth": depth, "mlp_dim": mlp_dim, "num_heads": num_heads,
        "patch_size": 14,
    }


@pytest.mark.parametrize("size", SIZES)
def test_heads_divide_the_width(size):
  shape = variant_shape(f"{size}/16")
  assert shape["width"] % shape["num_heads"] == 0


@pytest.mark.parametrize(
    "variant, said",
    [
        ("X/16", "unknown ViT size 'X'"),
        ("b/16", "unknown ViT size 'b'"),
        ("Tiny/16", "did you mean 'Ti'"),
        ("So400/14", "did you mean 'So400m'"),
        ("B", "has no patch size; write it as in B/16"),
        ("B/", "has no patch size"),
        ("B/0", "has no patch size"),
        ("B/-16", "has no patch size"),
        ("B/sixteen", "has no patch size"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(variant, said):
  with pytest.raises(ValueError) as error:
    variant_shape(variant)
  assert said in str(error.value)
  assert variant in str(error.value)

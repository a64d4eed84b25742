import pytest

from vit_jax.observe.peaks import peak_flops


@pytest.mark.parametrize(
    "kind, tera",
    [
        ("TPU v2", 23), ("TPU v3", 61.5), ("TPU v4", 275), ("TPU v5 lite", 197),
        ("TPU v5e", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918),
        ("TPU v6e", 918), ("TPU7x", 1153.5), ("TPU v7x", 1153.5), ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989), ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121), ("NVIDIA L40S", 362),
        ("NVIDIA B200", 2250),
    ],
)
def test_known_devices(kind, tera):
  assert peak_flops(kind, "bfloat16") == tera * 1e12
  assert peak_flops(kind, "float32") is None


@pytest.mark.parametrize("kind", ["cpu", "TPU v4 lite", "NVIDIA T4", "NVIDIA H1000", ""])
def test_unknown_devices(kind):
  assert peak_flops(kind, "bfloat16") is None

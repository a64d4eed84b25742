"""Peak arithmetic of accelerators, to relate throughput to."""

import re

# Dense bfloat16 FLOP/s of one JAX device, from the vendors' data sheets.  The first
# match counts.
# TPU v2, v3 and 7x are two devices a chip, so half the chip's figure.
_BFLOAT16 = (
    (r"tpu v2", 23e12),
    (r"tpu v3", 61.5e12),
    (r"tpu v4", 275e12),
    (r"tpu v5 ?(lite|e)", 197e12),
    (r"tpu v5p?", 459e12),
    (r"tpu v6 ?(lite|e)", 918e12),
    (r"tpu ?v?7x?", 1153.5e12),
    (r"nvidia b200", 2250e12),
    (r"nvidia (gh200|h200)\b.*", 989e12),
    (r"nvidia h100 nvl", 835e12),
    (r"nvidia h100 pcie", 756e12),
    (r"nvidia h100\b.*", 989e12),
    (r"nvidia a100\b.*", 312e12),
    (r"nvidia l40s", 362e12),
    (r"nvidia l4", 121e12),
)


def peak_flops(device_kind: str, dtype: str) -> float | None:
  """Peak dense matrix arithmetic of one device, in FLOP/s.

  Args:
    device_kind: `jax.Device.device_kind`, such as "TPU v5 lite" or "NVIDIA H200".
    dtype: of the computation; only "bfloat16" has a peak here, as float32 runs at one of
      several precisions.

  Returns:
    None where the device or the dtype is not known, as for CPUs.
  """
  if dtype != "bfloat16":
    return None
  kind = device_kind.strip().lower()
  matches = (peak for pattern, peak in _BFLOAT16 if re.fullmatch(pattern, kind))
  return next(matches, None)

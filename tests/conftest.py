"""Eight host devices on the CPU for every test, set before anything imports jax."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("VIT_JAX_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

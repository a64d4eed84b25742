"""A step compiled and not run."""

import os
import subprocess
import sys
import types

import jax
import pytest

from vit_jax import config as config_lib
from vit_jax.models.flops import training_flops
from vit_jax.plan import make_plan
from vit_jax.program import compile_step
from vit_jax.resolve import resolve

pytestmark = pytest.mark.slow


def plan_of(**values):
  values = {key.replace("__", "."): value for key, value in values.items()}
  base = {
      "model.variant": "S/16", "model.depth": 3, "input.batch_size": 16, "total": "40 steps",
      "input.dataset": "cifar10", "schedule.warmup": "4 steps",
  }
  config = config_lib.complete(base | values, origin="a test")
  return make_plan(
      resolve(config, checkpoint=None, platform="cpu"), examples=1000, num_classes=1000
  )


@pytest.fixture(scope="module")
def unrolled():
  plan = plan_of()
  return plan, compile_step(plan)


def test_analytic_flops_are_the_compiled_programs_within_two_percent(unrolled):
  plan, program = unrolled
  analytic = training_flops(**plan.model_config) * plan.config.input.batch_size
  assert program.flops * plan.mesh.size == pytest.approx(analytic, rel=0.02)


def test_arguments_take_what_their_shapes_say(unrolled):
  plan, program = unrolled
  state = sum(
      leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(plan.abstract)
  )
  images = 16 // 8 * 224 * 224 * 3
  assert program.argument_bytes == pytest.approx(state + images, rel=0.01)
  assert program.peak_bytes > program.argument_bytes and program.limit_bytes is None


def test_collectives_and_time_come_along(unrolled):
  _, program = unrolled
  assert {one.kind for one in program.collectives} == {"all-reduce"}
  assert program.wall_seconds > 0 and program.cpu_seconds > 0


def failing(message):
  def compile_it():
    raise jax.errors.JaxRuntimeError(message)

  lowered = types.SimpleNamespace(compile=compile_it)
  step = types.SimpleNamespace(lower=lambda *_: lowered)
  plan = plan_of()
  return types.SimpleNamespace(
      train_step=step, config=plan.config, abstract=None, mesh=plan.mesh
  )


@pytest.mark.parametrize(
    "message, needed",
    [
        ("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 21.50G of "
         "15.75G hbm. Exceeded hbm capacity by 5.75G.", 21.5 * 2**30),
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (1.00T) exceeds "
         "available HBM (15.75G).", 2**40),
    ],
)
def test_a_step_that_does_not_fit_says_by_how_much(message, needed):
  program = compile_step(failing(f"RESOURCE_EXHAUSTED: {message}"))
  assert program.peak_bytes == needed and program.limit_bytes == 15.75 * 2**30
  assert program.collectives is None


def test_other_failures_are_not_swallowed():
  cached = jax.config.jax_enable_compilation_cache
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    compile_step(failing("INTERNAL: a bug"))
  assert jax.config.jax_enable_compilation_cache == cached


MEASURE = """
import jax
import numpy as np
from vit_jax import config as config_lib
from vit_jax.plan import make_plan
from vit_jax.program import compile_step
from vit_jax.resolve import resolve

def status(name):
  with open("/proc/self/status") as file:
    return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

config = config_lib.complete({
    "model.variant": "Ti/16", "model.depth": 2, "input.batch_size": 64, "total": "40 steps",
    "input.dataset": "cifar10", "schedule.warmup": "4 steps",
}, origin="a test")
plan = make_plan(
    resolve(config, checkpoint=None, platform=jax.default_backend()), examples=1000,
    num_classes=1000,
)
state = jax.jit(plan.init, out_shardings=plan.state_shardings)(plan.init_key)
batch = jax.device_put({
    "image": np.zeros((64, 224, 224, 3), np.uint8), "label": np.zeros(64, np.int32),
    "mask": np.ones(64, np.float32),
})
step = plan.train_step.lower(state, batch, plan.step_key).compile()
held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, batch)))
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
  file.write("5")  # the peak counts from here
jax.block_until_ready(step(state, batch, plan.step_key))
stats = jax.devices()[0].memory_stats()
measured = stats["peak_bytes_in_use"] if stats else status("VmHWM") - before + held
print(compile_step(plan).peak_bytes, measured)
"""


@pytest.mark.parametrize("platform", ["cpu", pytest.param("cuda", marks=pytest.mark.device)])
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measured by Linux")
def test_the_predicted_peak_is_the_measured_one(platform):
  """Of a process on one device; on a CPU its threads need some memory of their own."""
  if platform == "cuda" and not os.path.exists("/dev/nvidia0"):
    pytest.skip("there is no GPU")
  done = subprocess.run(
      [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True,
      env=os.environ | {"JAX_PLATFORMS": platform, "XLA_FLAGS": "", "CUDA_VISIBLE_DEVICES": "0"},
  )
  predicted, measured = map(int, done.stdout.split()[-2:])
  assert 0.9 < measured / predicted < 1.3, (predicted, measured)

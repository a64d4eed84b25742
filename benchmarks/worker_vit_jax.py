"""Our training step, as `vit_jax/plan.py` builds it, on synthetic images on the device."""

import functools

import flax
import jax
import numpy as np
import optax

from vit_jax.batch_ops.prepare import prepare_batch
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.optim.optimizer import make_optimizer
from vit_jax.optim.schedule import make_schedule
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.parallel import sharding
from vit_jax.step import init_state, make_train_step


class Contestant:
  """The state, the batch and the step of one job; over all devices that jax sees."""

  def __init__(self, job):
    model, optimizer = job["model"], dict(job["optimizer"])
    mesh = mesh_lib.create_mesh(replica=None, fsdp=1, tensor=1)
    objective = Supervised(ViT(**model))
    schedule = make_schedule(
        "constant", learning_rate=optimizer.pop("learning_rate"), warmup_steps=0,
        total_steps=1, end_learning_rate=0.0,
    )
    optimizer = make_optimizer(
        "adamw", schedule=schedule, momentum=0.0, weight_decay_mask="kernel$", **optimizer
    )

    batch_size, size = job["batch"] * mesh.size, model["image_size"]
    random = np.random.default_rng(0)
    self._batch = mesh_lib.to_devices(
        {
            "image": random.integers(0, 256, (batch_size, size, size, 3), np.uint8),
            "label": random.integers(0, model["num_classes"], batch_size, np.int32),
            "mask": np.ones(batch_size, np.float32),
        },
        mesh,
    )
    image = np.zeros((1, size, size, 3), np.float32)
    init = lambda key: init_state(objective, optimizer, key, {"image": image})
    init_key, step_key = jax.random.split(jax.random.key(0))
    shardings = sharding.shardings(jax.eval_shape(init, init_key), mesh)
    self._state = jax.jit(init, out_shardings=shardings)(init_key)
    self._key = jax.device_put(step_key, mesh_lib.replicated(mesh))
    self._step = make_train_step(
        objective,
        optimizer,
        prepare=functools.partial(
            prepare_batch, mean=job["mean"], std=job["std"], num_classes=model["num_classes"]
        ),
        mesh=mesh,
        state_shardings=shardings,
    )
    self._device = mesh.devices.flat[0]
    self.facts = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(self._state.params)),
        "device": self._device.device_kind,
        "devices": mesh.size,
        "versions": {
            "jax": jax.__version__, "flax": flax.__version__, "optax": optax.__version__,
            "platform": self._device.client.platform_version.split("\n")[0],
        },
    }

  def run(self, steps: int):
    for _ in range(steps):
      self._state, metrics = self._step(self._state, self._batch, self._key)
    self._loss = float(metrics["loss"])
    jax.block_until_ready(self._state)

  def finish(self) -> dict:
    memory = self._device.memory_stats() or {}
    return {"loss": self._loss, "peak_bytes": memory.get("peak_bytes_in_use")}

"""What a run trains on: batches on its devices, from any place in the data on."""

import contextlib
import dataclasses
import itertools

from vit_jax.data.augment import TrainTransform
from vit_jax.data.pipeline import train_batches
from vit_jax.parallel import mesh as mesh_lib


def train_transform(config) -> TrainTransform:
  """What happens to a training image on the host."""
  names = {field.name for field in dataclasses.fields(TrainTransform)} & set(config.input)
  return TrainTransform(
      image_size=config.model.image_size, **{name: config.input[name] for name in names}
  )


@contextlib.contextmanager
def train_input(plan, source, transform, examples_seen: int, bad):
  """Iterator of training batches on the devices, from a position in the data on."""
  config = plan.config
  shard, shards = mesh_lib.process_slice(plan.mesh)
  batches = train_batches(
      source,
      batch_size=config.input.batch_size,
      seed=config.seed,
      start=examples_seen,
      shard=shard,
      shards=shards,
      transform=transform,
      threads=config.input.threads,
      workers=config.input.workers,
      bad=bad,
      repeats=config.input.repeated_augmentation,
  )
  with contextlib.closing(batches):
    on_devices = (mesh_lib.to_devices(batch, plan.mesh) for batch in batches)
    if config.debug.repeat_batch:
      yield itertools.repeat(next(on_devices))
    else:
      yield _one_ahead(on_devices)


def _one_ahead(batches):
  """Yields batches, the next one already on its way to the devices."""
  following = next(batches)
  for batch in batches:
    yield following
    following = batch

"""A source that worker processes can import, and a script that trains on nothing but its stream."""

import dataclasses
import io
import os
import sys
import time

import numpy as np
from PIL import Image

from vit_jax.data.augment import TrainTransform
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.pipeline import train_batches

N = 23


class Unsendable(Exception):
  """An error that cannot be pickled."""

  def __init__(self):
    super().__init__("of no return")
    self.hook = lambda: None


@dataclasses.dataclass(frozen=True)
class SmallSource:
  """Encoded images of noise.

  Attributes:
    broken: indices of what is no image.
    fails: index of a record that raises something that cannot be sent between processes.
    slow: seconds that each record takes.
    pids: a directory in which every process that reads leaves an empty file named by its id.
  """

  broken: tuple[int, ...] = ()
  fails: int | None = None
  slow: float = 0.0
  pids: str | None = None
  name: str = "small"
  split: str = "train"
  classes: tuple[str, ...] = tuple(map(str, range(N)))
  max_labels: int = 1

  def __len__(self):
    return N

  def record(self, index):
    time.sleep(self.slow)
    if self.pids:
      open(os.path.join(self.pids, str(os.getpid())), "w").close()
    if index == self.fails:
      raise Unsendable
    image = b"no image" if index in self.broken else _encoded(index)
    return {"image": image, "label": index, "name": f"{index}.jpg"}


def _encoded(index):
  noise = np.random.default_rng(index).integers(0, 256, (24 + index, 30, 3), dtype=np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(noise).save(buffer, "JPEG")
  return buffer.getvalue()


class Backends(SmallSource):
  """Raises, with the backends that jax has started in this process and those it may start."""

  def record(self, index):
    import jax
    from jax._src import xla_bridge

    raise ValueError(f"started {sorted(xla_bridge._backends)} may {jax.config.jax_platforms}")


if __name__ == "__main__":
  stream = train_batches(
      SmallSource(pids=sys.argv[1]), batch_size=4, seed=0, start=0, shard=0, shards=1,
      transform=TrainTransform(image_size=8), threads=0, workers=2, bad=BadRecords(),
  )
  for _ in range(4):
    next(stream)
  time.sleep(0.5)  # for the workers to be done with what they may prepare ahead
  print("ready", flush=True)
  time.sleep(100)

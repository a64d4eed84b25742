"""Our side of `input.py`: the transforms alone, the floors below them, and whole batches."""

import contextlib
import functools
import importlib.metadata
import io

import cv2
import numpy as np
from PIL import Image

from input_worker import drawn, over, read_images
from vit_jax.data import turbojpeg
from vit_jax.data.augment import TrainTransform
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.crops import sample_box
from vit_jax.data.decode import decode
from vit_jax.data.folder import open_folder
from vit_jax.data.pipeline import train_batches
from vit_jax.data.preprocess import Preprocessing
from vit_jax.data.source import ArraySource

# Boxes of each image of which the mean cost is taken.
_BOXES = 4
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class Contestant:
  """Tasks of the CPU alone are over files in memory, those of batches over files on disk."""

  def __init__(self, job):
    self._job, self.remarks, self.memory = job, [], []
    self.versions = {}
    for name in ("opencv-python-headless", "turbojpeg", "pillow", "grain"):
      with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # one is optional
        self.versions[name] = importlib.metadata.version(name)
    self._rng = np.random.default_rng(0)
    self._transform = TrainTransform(image_size=224, exif_orientation=False)
    tasks = {name: self._task(name) for name in job["tasks"]}
    self.tasks = {name: task for name, task in tasks.items() if task}

  def _task(self, name: str):
    job = self._job
    images = functools.partial(read_images, job["images"])
    photos = functools.partial(read_images, job["photos"])
    loader = functools.partial(self._loader, threads=0, workers=0)
    return {
        "train": lambda: over(self._trained(self._transform), images()),
        "evaluate": lambda: over(_evaluated(), images()),
        "decode": lambda: over(_opencv, images()),
        "crop": lambda: self._boxes(images()),
        "scaled photos": lambda: over(
            self._trained(
                TrainTransform(image_size=224, exif_orientation=False, scaled_decoding=True)
            ),
            photos(),
        ),
        "photos": lambda: over(self._trained(self._transform), photos()),
        "decode photos": lambda: over(_opencv, photos()),
        "inline": loader,
        "threads": lambda: loader(threads=job["parallel"]),
        "workers": lambda: loader(workers=job["parallel"]),
        "small": self._small,
    }[name]()

  def _trained(self, transform):
    """Of an image file, with the pixels copied into place as in a batch."""
    out = np.empty((224, 224, 3), np.uint8)
    return lambda data: np.copyto(out, transform(data, self._rng))

  def _boxes(self, images):
    """Decodes of random boxes alone; None where the library for that is not installed."""
    parts = []
    for image in images:
      width, height = Image.open(io.BytesIO(image)).size
      for _ in range(_BOXES):
        box = sample_box(height, width, min_area=self._transform.crop_min_area, rng=self._rng)
        parts.append((image, box, (height, width)))
    decode_part = lambda part: turbojpeg.decode_part(part[0], part[1], size=part[2])
    if all(decode_part(part) is None for part in parts):
      self.remarks.append("vit_jax: without libturbojpeg, hence whole images were decoded")
      return None
    return over(decode_part, parts)

  def _loader(self, *, threads, workers):
    source = open_folder(self._job["images"], held_out=0.0).splits["train"]
    start = functools.partial(
        self._batches, source, self._transform, threads=threads, workers=workers
    )
    return drawn(start, skip=self._job["skip"], memory=self.memory)

  def _small(self):
    arrays = np.load(self._job["small"])
    images, labels = arrays["images"], arrays["labels"]
    classes = tuple(map(str, range(labels.max() + 1)))
    source = ArraySource("small", "train", classes, images, labels)
    transform = TrainTransform(image_size=images.shape[1], crop="pad", crop_padding=4)
    return drawn(
        functools.partial(self._batches, source, transform), skip=2, memory=self.memory
    )

  @contextlib.contextmanager
  def _batches(self, source, transform, *, threads=0, workers=0):
    batches = train_batches(
        source, batch_size=self._job["batch"], seed=0, start=0, shard=0, shards=1,
        transform=transform, threads=threads, workers=workers, bad=BadRecords(),
    )
    with contextlib.closing(batches):
      yield batches, lambda batch: len(batch["label"])


def _evaluated():
  """Of an image file; antialiased, short side 256, the 224 x 224 in the centre."""
  preprocessing = Preprocessing(image_size=224, resize="center", short_side=256)
  return lambda data: preprocessing.resized(decode(data, exif_orientation=False))


def _opencv(data):
  """A full decode of an image file by OpenCV's libjpeg-turbo, and nothing else."""
  return cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)

"""The peers of `input.py`: TensorFlow's ops as big_vision uses them, timm with PyTorch's loader.

Each on one thread.  Neither imports anything of ours, as they may live in another environment.
"""

import contextlib
import functools
import io

import numpy as np
import PIL
from PIL import Image

from input_worker import drawn, over, quickest, read_images

_SIZE, _LEAST_AREA = 224, 0.08
_TF_BATCH = 32


class TensorFlow:
  """decode_and_crop_jpeg of a box by sample_distorted_bounding_box, bilinear without
  antialiasing, mirroring."""

  def __init__(self, job):
    import tensorflow as tf

    self._tf = tf
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    self.versions, self.remarks, self.memory = {"tensorflow": tf.__version__}, [], []
    where = {"train": job["images"], "photos": job["photos"]}
    self.tasks = {name: self._task(read_images(where[name])) for name in job["tasks"]}

  def _task(self, images):
    """The quickest way to call it on images in memory."""
    tf = self._tf
    function = tf.function(self._trained, input_signature=[tf.TensorSpec([], tf.string)])
    ways = {
        "a tf.function": over(function, [tf.constant(image) for image in images]),
        "tf.data image by image": self._pipeline(images, 1),
        f"tf.data in batches of {_TF_BATCH}": self._pipeline(images, _TF_BATCH),
    }
    name = quickest(ways, amount=1)
    remark = f"TensorFlow: {name} on {len(images)} images, the quickest of {', '.join(ways)}"
    self.remarks.append(remark)
    return ways[name]

  def _trained(self, data):
    tf = self._tf
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(data), tf.zeros([0, 0, 4]), min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3), area_range=(_LEAST_AREA, 1.0),
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], axis=0)
    image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
    image = tf.image.resize(image, (_SIZE, _SIZE), method="bilinear", antialias=False)
    return tf.image.random_flip_left_right(tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8))

  def _pipeline(self, images, batch):
    """Each time a new iterator, so that nothing can be made before the clock."""
    tf = self._tf
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.experimental_optimization.inject_prefetch = False
    dataset = tf.data.Dataset.from_tensor_slices(tf.constant(images)).map(self._trained)
    dataset = dataset.with_options(options)

    def run(clock, amount):
      repeated = dataset.repeat(amount)
      batches = iter(repeated.batch(batch) if batch > 1 else repeated)
      clock.restart()
      for _ in batches:
        pass
      return amount * len(images)

    return run


class Timm:
  """timm's transforms for its prefetcher, which give uint8, and PyTorch's DataLoader."""

  def __init__(self, job):
    import torch
    from worker_timm import import_timm

    timm = import_timm()
    import timm.data
    import torchvision

    torch.set_num_threads(1)
    self._torch, self._timm, self._torchvision = torch, timm, torchvision
    self._job, self.memory, self.remarks = job, [], []
    modules = (torch, torchvision, timm)
    self.versions = {module.__name__: module.__version__ for module in modules}
    self.versions["Pillow beside timm"] = PIL.__version__
    self._train = timm.data.create_transform(
        _SIZE, is_training=True, scale=(_LEAST_AREA, 1.0), auto_augment=None, color_jitter=None,
        interpolation="bilinear", re_prob=0.0, use_prefetcher=True,
    )
    self._evaluate = timm.data.create_transform(
        _SIZE, is_training=False, crop_pct=0.875, interpolation="bilinear", use_prefetcher=True,
    )
    self.tasks = {name: self._task(name) for name in job["tasks"]}

  def _task(self, name: str):
    images = functools.partial(read_images, self._job["images"])
    return {
        "train": lambda: over(_opened(self._train), images()),
        "evaluate": lambda: over(_opened(self._evaluate), images()),
        "photos": lambda: over(_opened(self._train), read_images(self._job["photos"])),
        "inline": lambda: self._loader(0),
        "workers": lambda: self._loader(self._job["parallel"]),
        "small": self._small,
    }[name]()

  def _loader(self, workers):
    dataset = self._timm.data.ImageDataset(self._job["images"], transform=self._train)
    collate = self._timm.data.loader.fast_collate
    return self._drawn(
        dataset, skip=self._job["skip"], num_workers=workers, collate_fn=collate
    )

  def _small(self):
    """Zeros around, a random window, mirroring, on Pillow's images or on uint8 tensors."""
    transforms = self._torchvision.transforms
    arrays = np.load(self._job["small"])
    steps = [transforms.RandomCrop(arrays["images"].shape[1], padding=4),
             transforms.RandomHorizontalFlip()]
    pillow = transforms.Compose(
        [transforms.ToPILImage(), *steps, transforms.PILToTensor()]
    )
    tensors = self._torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous()
    ways = {
        "Pillow images": _Examples(arrays["images"], arrays["labels"], pillow),
        "uint8 tensors": _Examples(tensors, arrays["labels"], transforms.Compose(steps)),
    }
    ways = {name: self._drawn(dataset, skip=2) for name, dataset in ways.items()}
    name = quickest(ways, amount=4, cpu=False)
    remark = f"torchvision on small images: {name}, the quickest of {', '.join(ways)}"
    self.remarks.append(remark)
    return ways[name]

  def _drawn(self, dataset, *, skip, **options):
    data = self._torch.utils.data
    # Longer than any turn: one permutation after the other.
    sampler = data.RandomSampler(dataset, num_samples=10**8)
    loader = data.DataLoader(
        dataset, batch_size=self._job["batch"], sampler=sampler, drop_last=True, **options
    )

    @contextlib.contextmanager
    def start():
      yield iter(loader), lambda batch: len(batch[1])

    return drawn(start, skip=skip, memory=self.memory)


class _Examples:
  """Images and labels in memory, as a data set of PyTorch's."""

  def __init__(self, images, labels, transform):
    self._images, self._labels, self._transform = images, labels, transform

  def __len__(self):
    return len(self._labels)

  def __getitem__(self, index):
    return self._transform(self._images[index]), int(self._labels[index])


def _opened(transform):
  """Of an image file, as timm's ImageDataset opens it."""
  return lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))

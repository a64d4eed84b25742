"""A process that augments images with timm and torchvision, which the tests' own environment cannot
hold.

`augment_worker.py IMAGES ANSWERS`: IMAGES is an .npz of uint8 [H, W, 3], ANSWERS the .npz to
write: "IMAGE|OPERATION|..." to uint8 [H, W, 3], and what timm's random erasing draws.
"""

import itertools
import random
import sys

import numpy as np
from PIL import Image

# timm's transforms need none of torchvision's compiled operators, which are declared because PyPI's
# do not load beside another build of torch.
import torch

_operators = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
  _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.data import auto_augment, random_erasing
from torchvision import transforms
from torchvision.transforms import functional

MEAN_COLOR = (124, 116, 104)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MAGNITUDES = (0.0, 0.5, 3.3, 7.0, 9.0, 10.0)


def rand_augment_ops(pictures):
  """Every operation of both sets of timm, at magnitudes and with either sign."""
  for increasing in (False, True):
    names = (
        auto_augment._RAND_INCREASING_TRANSFORMS if increasing else auto_augment._RAND_TRANSFORMS
    )
    for name in names:
      plain = name.removesuffix("Increasing").removesuffix("Rel")
      for magnitude, sign, crop_filter in itertools.product(MAGNITUDES, (0.0, 1.0), FILTERS):
        hparams = {"img_mean": MEAN_COLOR, "interpolation": FILTERS[crop_filter]}
        op = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)
        random.random = lambda: sign
        for key, picture in pictures.items():
          label = f"{key}|{plain}|{increasing}|{magnitude}|{sign}|{crop_filter}"
          try:
            yield label, np.asarray(op(picture))
          except ValueError:  # Pillow 12 and later keep at least one bit
            assert plain == "Posterize"


def color_ops(pictures):
  """torchvision on Pillow images, as its transforms train."""
  for key, picture in pictures.items():
    for factor in (0.0, 0.4, 0.71, 1.0, 1.3, 1.9):
      for name in ("brightness", "contrast", "saturation"):
        changed = getattr(functional, f"adjust_{name}")(picture, factor)
        yield f"{key}|{name}|{factor}", np.asarray(changed)
    yield f"{key}|grayscale", np.asarray(functional.to_grayscale(picture, 3))
    yield f"{key}|solarize", np.asarray(functional.solarize(picture, 128))
    for size in (20, 37):
      for crop_filter, interpolation in (
          ("bilinear", functional.InterpolationMode.BILINEAR),
          ("bicubic", functional.InterpolationMode.BICUBIC),
      ):
        short = functional.resize(picture, size, interpolation)
        yield f"{key}|short|{size}|{crop_filter}", np.asarray(short)
        box = functional.resized_crop(picture, 3, 5, 31, 29, (size, size), interpolation)
        yield f"{key}|box|{size}|{crop_filter}", np.asarray(box)
      padded = functional.pad(picture, 4, padding_mode="reflect")
      yield f"{key}|reflect|{size}", np.asarray(padded)


def erasures():
  """Boxes of timm's random erasing of a 60 x 80 image: top, left, height, width."""
  erasing = random_erasing.RandomErasing(probability=1.0, mode="const", device="cpu")
  random.seed(0)
  boxes = []
  for _ in range(4000):
    image = erasing(torch.ones(3, 60, 80))[0].numpy()
    rows, columns = np.flatnonzero((image == 0).any(1)), np.flatnonzero((image == 0).any(0))
    boxes.append((rows[0], columns[0], len(rows), len(columns)))
  return np.array(boxes)


def boxes():
  """Boxes of torchvision's random resized crop of a 300 x 400 image: top, left, height, width."""
  torch.manual_seed(0)
  image = Image.new("RGB", (400, 300))
  draw = transforms.RandomResizedCrop.get_params
  return np.array([draw(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)])


def main(images, answers):
  with np.load(images) as arrays:
    pictures = {name: Image.fromarray(array) for name, array in arrays.items()}
  seeded_random = random.random
  found = dict(rand_augment_ops(pictures))
  random.random = seeded_random
  found |= dict(color_ops(pictures))
  np.savez(answers, erasures=erasures(), boxes=boxes(), **found)


main(*sys.argv[1:])

"""A process that preprocesses images with a library that the tests' own environment cannot hold.

`transform_worker.py timm|transformers IMAGES FILE...`: IMAGES is an .npz of uint8 [H, W, 3] or
[H, W], a FILE a pretrained_cfg or a directory with preprocessor_config.json; beside each is written
FILE.npz with float32 [height, width, 3] by the names of the images.
"""

import functools
import json
import sys

import numpy as np
from PIL import Image


@functools.cache
def import_timm():
  """timm's transforms need none of torchvision's compiled operators, which are declared because
  PyPI's do not load beside another build of torch (see timm_worker.py)."""
  import torch

  operators = torch.library.Library("torchvision", "FRAGMENT")
  for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
  import timm.data

  return timm.data, operators  # torch forgets the schemas when that object is gone


def timm_transform(path):
  """timm's own evaluation."""
  data, _ = import_timm()
  with open(path) as file:
    config = data.resolve_data_config(pretrained_cfg=json.load(file))
  transform = data.create_transform(**config)
  return lambda picture: transform(picture.convert("RGB")).numpy()


def transformers_processor(path):
  """What AutoImageProcessor of transformers 4 makes of a directory."""
  import transformers

  assert transformers.__version__.startswith("4."), transformers.__version__
  processor = transformers.AutoImageProcessor.from_pretrained(path, use_fast=False)
  return lambda picture: processor(picture, return_tensors="np")["pixel_values"][0]


def main(library, images, *paths):
  with np.load(images) as arrays:
    pictures = {name: Image.fromarray(array) for name, array in arrays.items()}
  for path in paths:
    transform = {"timm": timm_transform, "transformers": transformers_processor}[library](path)
    answers = {name: transform(p).transpose(1, 2, 0) for name, p in pictures.items()}
    np.savez(f"{path}.npz", **answers)


main(*sys.argv[1:])

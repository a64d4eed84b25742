"""`preprocessor_config.json` of Hugging Face, from and to our preprocessing dict."""

from pathlib import Path
from typing import Mapping

import numpy as np

from vit_jax.errors import CheckpointError

_HALF = [0.5, 0.5, 0.5]
_SQUARE, _SHORT = "square", "short side"
_CLIP = {
    "size": 224, "resample": 3, "do_center_crop": True, "crop_size": 224, "whole": _SHORT,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# What each processor does where its file is silent; "whole" is what one number as size means.
_DEFAULTS = {
    "ViT": {
        "size": 224, "resample": 2, "do_center_crop": False, "crop_size": 224, "whole": _SQUARE,
        "image_mean": _HALF, "image_std": _HALF,
    },
    "DeiT": {
        "size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224, "whole": _SQUARE,
        "image_mean": _HALF, "image_std": _HALF,
    },
    "Bit": _CLIP,
    "CLIP": _CLIP,
}
# Numbers of PIL.Image.Resampling.
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}
_RESAMPLE = {name: number for number, name in _INTERPOLATION.items()}


def to_preprocessing(config: Mapping, path: Path) -> dict:
  """What an image processor does, as our preprocessing dict.

  `exif_orientation` is True: transformers turns images upright when it opens them.

  Args:
    config: the parsed file.
    path: where it lies, for the errors.

  Raises:
    CheckpointError: it does something that the preprocessing dict cannot say.
  """

  def refuse(what: str):
    raise CheckpointError(
        f"{path}: {what}. What can be read is a resize to a square, or one of the short side "
        "with a square centre crop, as ViT, DeiT, Bit and CLIP image processors do it. Correct "
        "the file, or remove it to read the weights alone."
    )

  kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT"
  family = kind.removesuffix("Fast").removesuffix("Pil")
  family = family.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
  if family not in _DEFAULTS:
    refuse(f"the image processor is a {kind}")
  settings = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255,
              "do_normalize": True, "do_pad": False} | _DEFAULTS[family]
  settings |= {key: value for key, value in config.items() if value is not None}
  if not settings["do_resize"]:
    refuse("do_resize is off")
  if settings["do_pad"]:
    refuse("do_pad is on")
  if settings["resample"] not in _INTERPOLATION:
    refuse(f"resample is {settings['resample']!r}, neither 2 (bilinear) nor 3 (bicubic)")

  whole = settings["whole"]
  if "default_to_square" in config:
    whole = _SQUARE if config["default_to_square"] else _SHORT
  mode, size = _size(settings["size"], whole)
  crop = _size(settings["crop_size"], _SQUARE)[1] if settings["do_center_crop"] else None
  if size is None:
    refuse(f"size is {settings['size']!r}")
  if mode == _SQUARE and crop not in (None, size):
    refuse(f"it resizes to a square of {size} and then crops {settings['crop_size']!r}")
  if mode == _SHORT and (crop is None or crop > size):
    refuse(f"it resizes the short side to {size} without a square crop inside of it")

  # (pixel * factor - mean) / std is written in pixels of 0..1, as ours has it.
  factor = 255 * settings["rescale_factor"] if settings["do_rescale"] else 255.0
  factor = 1.0 if abs(factor - 1) < 1e-6 else factor
  mean = settings["image_mean"] if settings["do_normalize"] else 0.0
  std = settings["image_std"] if settings["do_normalize"] else 1.0
  try:
    mean, std = (np.broadcast_to(np.asarray(x, np.float64) / factor, 3).tolist()
                 for x in (mean, std))
  except ValueError:
    refuse("image_mean and image_std are not three numbers")
  return {
      "image_size": size if mode == _SQUARE else crop,
      "resize": "squash" if mode == _SQUARE else "center",
      "short_side": None if mode == _SQUARE else size,
      "interpolation": _INTERPOLATION[settings["resample"]],
      "mean": mean,
      "std": std,
      "exif_orientation": True,
  }


def _size(size, whole: str) -> tuple[str, int | None]:
  """(what is resized, to how many pixels); None for what is not one number of pixels."""
  if isinstance(size, int):
    return whole, size
  if isinstance(size, dict):
    keys = {key for key, value in size.items() if value is not None}
    if keys == {"shortest_edge"}:
      return _SHORT, size["shortest_edge"]
    if keys == {"height", "width"} and size["height"] == size["width"]:
      return _SQUARE, size["height"]
  return _SQUARE, None


def to_processor(preprocessing: Mapping) -> dict:
  """The preprocessor_config.json that repeats a preprocessing dict.

  "squash" is a ViTImageProcessor; "center" a BitImageProcessor, which both transformers 4 and 5
  take with a short side and a crop.
  """
  size = int(preprocessing["image_size"])
  square = {"height": size, "width": size}
  if preprocessing["resize"] == "squash":
    geometry = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": square}
  else:
    geometry = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(preprocessing["short_side"])},
        "do_center_crop": True,
        "crop_size": square,
    }
  return geometry | {
      "resample": _RESAMPLE[preprocessing["interpolation"]],
      "do_rescale": True,
      "rescale_factor": 1 / 255,
      "do_normalize": True,
      "image_mean": [float(x) for x in preprocessing["mean"]],
      "image_std": [float(x) for x in preprocessing["std"]],
      # Without it grayscale, palette and RGBA images are refused.
      "do_convert_rgb": True,
  }

"""`preprocessor_config.json` of Hugging Face, from and to our preprocessing dict."""

from pathlib import Path
from typing import Any, Mapping

import numpy as np

from vit_jax.errors import CheckpointError

_HALF = [0.5, 0.5, 0.5]
_EXACT, _SHORT = "height and width", "short side"
_CLIP = {
    "size": 224, "resample": 3, "do_center_crop": True, "crop_size": 224, "whole": _SHORT,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_SQUASH = {
    "size": {"height": 224, "width": 224}, "do_center_crop": False, "whole": _EXACT,
    "image_mean": _HALF, "image_std": _HALF,
}
# What each processor of transformers 5.23 does where its file is silent; "whole" is what one number
# as size means.
_DEFAULTS = {
    "ViT": _SQUASH | {"resample": 2},
    "DeiT": _SQUASH | {
        "size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224,
    },
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "Siglip": _SQUASH | {"resample": 3, "whole": _SHORT},
    "Beit": _SQUASH | {"resample": 3, "crop_size": 224},
}
_REFUSED = {
    "Siglip2": "gives every image as many patches as its aspect demands, hence no one size",
    "ConvNext": "crops by crop_pct below 384 pixels",
    "DINOv3ViT": "resizes pixels that are not rounded to 0..255 any more",
}
# Keys that change the geometry where a processor knows them, and are ignored by those that do not.
_FOREIGN_KEYS = ("crop_pct", "use_square_size", "size_divisor", "do_flip_channel_order")
# Numbers of PIL.Image.Resampling.
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}
_RESAMPLE = {name: number for number, name in _INTERPOLATION.items()}


def to_preprocessing(config: Mapping, path: Path) -> dict:
  """What an image processor does, as our preprocessing dict.

  `exif_orientation` is True: transformers turns images upright when it opens them.

  Args:
    config: the parsed file.
    path: where it lies, for the errors.

  Returns:
    See `vit_jax.data.preprocess`; `image_size` is a number for a square and [height, width] else.

  Raises:
    CheckpointError: it does something that the preprocessing dict cannot say.
  """

  def refuse(what: str):
    raise CheckpointError(
        f"{path}: {what}. What can be read is a resize to one height and width, to be cropped or "
        "not if it is a square, or a resize of the short side with a centre crop inside of it, as "
        f"the image processors of {', '.join(_DEFAULTS)} do it. Correct the file, or remove it to "
        "read the weights alone."
    )

  settings = _settings(config, refuse)
  whole = settings["whole"]
  if "default_to_square" in config:
    whole = _EXACT if config["default_to_square"] else _SHORT
  target, size = _size(settings["size"], whole)
  if size is None:
    refuse(f"size is {settings['size']!r}")
  crop = size
  if settings["do_center_crop"]:
    kind, crop = _size(settings.get("crop_size"), _EXACT)
    if crop is None or kind == _SHORT:
      refuse(f"crop_size is {settings.get('crop_size')!r}")
    if crop[0] > size[0] or crop[1] > size[1]:
      refuse(f"it crops {settings['crop_size']!r} out of {settings['size']!r}, which is smaller")
  elif target == _SHORT:
    refuse(f"it resizes the short side to {size[0]} without a centre crop")
  if target == _EXACT and crop != size and size[0] != size[1]:
    refuse(f"it resizes to {settings['size']!r} and then crops {settings['crop_size']!r}")

  mean, std = _statistics(settings, refuse)
  return {
      "image_size": crop[0] if crop[0] == crop[1] else list(crop),
      "resize": "squash" if target == _EXACT else "center",
      "short_side": None if target == _EXACT and crop == size else size[0],
      "interpolation": _INTERPOLATION[settings["resample"]],
      "mean": mean,
      "std": std,
      "exif_orientation": True,
  }


def _settings(config: Mapping, refuse) -> dict:
  """All settings of a processor, its defaults where the file is silent."""
  kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT"
  family = kind.removesuffix("Fast").removesuffix("Pil")
  family = family.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
  if family not in _DEFAULTS:
    why = f", which {_REFUSED[family]}" if family in _REFUSED else ""
    refuse(f"the image processor is a {kind}{why}")
  settings = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255,
              "do_normalize": True} | _DEFAULTS[family]
  settings |= {key: value for key, value in config.items() if value is not None}
  if not settings["do_resize"]:
    refuse("do_resize is off")
  for key in ("do_pad", *_FOREIGN_KEYS):
    if settings.get(key):
      refuse(f"{key} is {settings[key]!r}, which is none of a {kind}'s settings known here")
  if settings["resample"] not in _INTERPOLATION:
    refuse(f"resample is {settings['resample']!r}, neither 2 (bilinear) nor 3 (bicubic)")
  return settings


def _size(size: Any, whole: str) -> tuple[str, tuple[int, int] | None]:
  """(what is resized, to what height and width); None for what is not that."""
  if isinstance(size, int):
    return whole, (size, size)
  if isinstance(size, (list, tuple)):
    size = dict(zip(("height", "width"), size, strict=True)) if len(size) == 2 else {}
  if not isinstance(size, dict):
    return _EXACT, None
  size = {key: value for key, value in size.items() if value is not None}
  if not all(isinstance(value, int) for value in size.values()):
    return _EXACT, None
  if size.keys() == {"shortest_edge"}:
    return _SHORT, (size["shortest_edge"],) * 2
  if size.keys() == {"height", "width"}:
    return _EXACT, (size["height"], size["width"])
  return _EXACT, None


def _statistics(settings: Mapping, refuse) -> tuple[list[float], list[float]]:
  """mean and std of pixels in 0..1, in (pixel * rescale_factor - image_mean) / image_std."""
  factor = 255 * settings["rescale_factor"] if settings["do_rescale"] else 255.0
  factor = 1.0 if abs(factor - 1) < 1e-6 else factor
  mean = settings["image_mean"] if settings["do_normalize"] else 0.0
  std = settings["image_std"] if settings["do_normalize"] else 1.0
  try:
    mean, std = (np.broadcast_to(np.asarray(x, np.float64) / factor, 3).tolist()
                 for x in (mean, std))
  except (TypeError, ValueError):
    refuse("image_mean and image_std are not three numbers")
  return mean, std


def to_processor(preprocessing: Mapping) -> dict:
  """The preprocessor_config.json that repeats a preprocessing dict.

  Without a crop it is a ViTImageProcessor.  With one it is a BitImageProcessor, the one that
  transformers 4 and 5 both let resize either the short side or height and width before it crops,
  and that turns gray images to RGB in both (a DeiTImageProcessor does that in 5 alone).

  Raises:
    CheckpointError: an interpolation that no image processor has.
  """
  if preprocessing["interpolation"] not in _RESAMPLE:
    raise CheckpointError(
        f"preprocessing has the interpolation {preprocessing['interpolation']!r}, which cannot be "
        f"written into preprocessor_config.json; known are {', '.join(_RESAMPLE)}"
    )
  image_size, short = preprocessing["image_size"], preprocessing.get("short_side")
  height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
  size = {"height": int(height), "width": int(width)}
  if short is None:
    geometry = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size}
  else:
    squash = preprocessing["resize"] == "squash"
    geometry = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": dict.fromkeys(size if squash else ["shortest_edge"], int(short)),
        "do_center_crop": True,
        "crop_size": size,
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

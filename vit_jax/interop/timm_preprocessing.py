"""timm's `pretrained_cfg`, as far as it says how images are preprocessed, from and to our dict.

timm evaluates with `timm.data.transforms_factory.transforms_imagenet_eval` (1.0.31), which is, for
an `input_size` of (3, height, width):

  scale = floor(height / crop_pct), floor(width / crop_pct)
  crop_mode "center"   short side to scale where scale is a square, then the centre crop
  crop_mode "squash"   height and width to scale, then the centre crop
  crop_mode "border"   long side to scale, then borders

with Pillow's filters, as ours.  Two things differ from ours, which does as transformers.  Where the
number of pixels cropped away is 3, 7, 11..., timm's crop begins one pixel later (torchvision rounds
half of it to even, ours rounds down).  And timm turns no photo by its EXIF data but leaves that to
who opens it; ours is told to, as transformers does before it calls timm's transform.
"""

import math
from pathlib import Path
from typing import Mapping

from vit_jax.errors import CheckpointError

# What timm.data.resolve_data_config takes where a pretrained_cfg is silent.
_DEFAULTS = {
    "input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875,
    "crop_mode": "center", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}
_INTERPOLATIONS = ("bilinear", "bicubic")


def timm_pretrained_cfg(preprocessing: Mapping) -> dict:
  """The keys of a pretrained_cfg with which timm repeats a preprocessing dict.

  Raises:
    CheckpointError: a crop that is no square, which timm resizes for in another way.
  """
  size, short = preprocessing["image_size"], preprocessing.get("short_side")
  height, width = (size, size) if isinstance(size, int) else size
  if short is not None and height != width:
    raise CheckpointError(
        f"preprocessing crops {height} x {width} pixels out of images resized to {short}; timm "
        "resizes to a share of height and width before it crops, which is not that. Give a square "
        "image_size, or resize squash without a short_side."
    )
  return {
      "input_size": [3, int(height), int(width)],
      "interpolation": preprocessing["interpolation"],
      "crop_pct": 1.0 if short is None else _crop_pct(int(height), int(short)),
      "crop_mode": preprocessing["resize"],
      "mean": [float(x) for x in preprocessing["mean"]],
      "std": [float(x) for x in preprocessing["std"]],
  }


def _crop_pct(size: int, short_side: int) -> float:
  """The shortest decimal p with floor(size / p) == short_side."""
  share = size / short_side
  for digits in range(1, 17):
    if (p := round(share, digits)) and math.floor(size / p) == short_side:
      return p
  return math.nextafter(share, 0)  # the quotient's rounding had taken it below short_side


def from_timm_pretrained_cfg(cfg: Mapping, path: Path | None = None) -> dict:
  """Our preprocessing dict of a pretrained_cfg; other keys than those of images are ignored.

  Args:
    path: the file that it stands in, for the errors.

  Returns:
    See `vit_jax.data.preprocess`; `image_size` is a number for a square and [height, width] else.

  Raises:
    CheckpointError: timm's evaluation does something that our dict cannot say; the text names key
      and value.
  """
  # As timm, which asks whether a value is true, not whether it is there.
  values = _DEFAULTS | {key: cfg[key] for key in _DEFAULTS if cfg.get(key)}

  def refuse(key: str, why: str):
    where = f"{path}: " if path else ""
    raise CheckpointError(
        f"{where}{key} of pretrained_cfg is {values[key]!r}, {why}. Correct it, or remove mean, "
        "std, interpolation and crop_pct to read the weights alone."
    )

  if values["interpolation"] not in _INTERPOLATIONS:
    refuse("interpolation", f"but only {' and '.join(_INTERPOLATIONS)} are known here")
  if values["crop_mode"] not in ("center", "squash"):
    refuse("crop_mode", "but only center and squash are known here")
  try:
    channels, height, width = map(int, values["input_size"])
  except (TypeError, ValueError):
    refuse("input_size", "not three numbers: channels, height, width")
  if channels != 3:
    refuse("input_size", "but only images of 3 channels are known here")
  scale = math.floor(height / values["crop_pct"]), math.floor(width / values["crop_pct"])
  if scale[0] < height or scale[1] < width:
    refuse("crop_pct", "above 1, which surrounds images with black")
  if values["crop_mode"] == "squash" and scale == (height, width):
    short = None
  elif height != width:
    refuse(
        "crop_pct",
        f"and crop_mode {values['crop_mode']!r}: timm resizes to cover {scale[0]} x {scale[1]} "
        f"pixels before it crops {height} x {width}, and only a square can be cropped so here",
    )
  else:
    short = scale[0]
  return {
      "image_size": height if height == width else [height, width],
      "resize": values["crop_mode"],
      "short_side": short,
      "interpolation": values["interpolation"],
      "mean": _three(values, "mean", refuse),
      "std": _three(values, "std", refuse),
      "exif_orientation": True,
  }


def _three(values: Mapping, key: str, refuse) -> list[float]:
  try:
    numbers = [float(x) for x in values[key]]
  except (TypeError, ValueError):
    numbers = []
  if len(numbers) != 3:
    refuse(key, "not three numbers")
  return numbers

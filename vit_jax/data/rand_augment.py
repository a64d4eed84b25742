"""RandAugment (arXiv 1909.13719) in the two dialects that published recipes are written in.

"LAYERS,MAGNITUDE", as in "2,15": TensorFlow's, of AugReg and big_vision (its
`pp/autoaugment.py`).  Each layer is one of 16 operations, always applied; shifts are in pixels, new
corners are gray, positions are rounded.  Saturation, contrast, brightness and sharpness do nothing
at magnitude 5, and posterize grows weaker with the magnitude.  Three quirks of the published code
are kept, see `Posterize`, `Solarize` and `Contrast` below.  Against TensorFlow 2.21: geometry,
contrast, brightness and solarize give equal pixels; saturation and sharpness, whose gray and
smoothed image it rounds differently, are within two levels.

"rand-m9-mstd0.5-inc1": timm's, of DeiT (its `data/auto_augment.py`).  Parts in any order:
  mM      magnitude, 0..10 [10]
  nN      layers [2]
  pP      probability of each layer [0.5]
  mstdS   standard deviation of the magnitude, drawn for each layer; above 100: uniform in 0..M [0]
  mmaxM   largest magnitude [10]
  inc1    operations that grow stronger with the magnitude [inc0: as TensorFlow's]
Each layer is one of 15 operations; shifts are shares of the side, new corners have the mean colour.
"""

import dataclasses
import re
from typing import Callable

import numpy as np
from PIL import Image

from vit_jax.data import color_ops, geometry_ops
from vit_jax.errors import ConfigError

_COMMON = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd",
    "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY",
)
OPERATIONS = {"timm": _COMMON, "tensorflow": _COMMON + ("Cutout",)}
_GRAY = (128, 128, 128)
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# What magnitude 10 means.
_DEGREES, _SHEAR, _SHIFT_SHARE, _SHIFT_PIXELS, _CUTOUT_PIXELS = 30.0, 0.3, 0.45, 100.0, 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment:
  """Some random operations on a training image.

  Attributes:
    dialect: "timm" or "tensorflow".
    layers: operations one after another, each drawn from `OPERATIONS[dialect]`.
    magnitude: how strong they are; see the module.
    magnitude_std: of a normal distribution around it; infinity for uniform in 0..magnitude.
    magnitude_max: where drawn magnitudes are cut.
    probability: of each layer.
    increasing: whether all operations grow stronger with the magnitude.
  """

  dialect: str
  layers: int = 2
  magnitude: float = 10.0
  magnitude_std: float = 0.0
  magnitude_max: float = 10.0
  probability: float = 0.5
  increasing: bool = False

  def __call__(
      self, image: np.ndarray, rng: np.random.Generator, *, fill=_GRAY, crop_filter="bilinear"
  ) -> np.ndarray:
    """uint8 `[H, W, 3]` to the same.

    Args:
      fill: colour of new corners in timm's dialect, three levels; TensorFlow's is gray.
      crop_filter: of timm's dialect, "bilinear", "bicubic" or "random" (each operation its own).
    """
    names = OPERATIONS[self.dialect]
    for index in rng.integers(len(names), size=self.layers):
      if self.probability < 1 and rng.random() > self.probability:
        continue
      image = self.operation(names[index], self._drawn_magnitude(rng), rng, fill, crop_filter)(
          image
      )
    return image

  def operation(
      self, name: str, magnitude: float, rng: np.random.Generator, fill, crop_filter: str
  ) -> Callable[[np.ndarray], np.ndarray]:
    """One operation at a magnitude, its sign and filter drawn; arguments as of a call."""
    share = magnitude / 10
    if name in _PLAIN:
      return _PLAIN[name]
    if name in _ENHANCE:
      return self._enhance(name, share, rng)
    if name == "Posterize":
      bits = int(share * 4)
      if self.dialect == "tensorflow":
        # It shifts a byte to and fro, by at most 7 (TensorFlow's cwise_ops.h, right_shift_op): even
        # at magnitude 0, AugReg's light1, the upper bit stays.
        bits = max(1, bits)
      return lambda x: color_ops.posterize(x, 4 - bits if self.increasing else bits)
    if name == "Solarize":
      threshold = int(share * 256)
      if self.dialect == "tensorflow":
        # As a uint8, the threshold wraps around: at magnitude 15 it is 128, at 10 and 20 it is 0,
        # which inverts.  Recipes were tuned with that, so it stays.
        threshold %= 256
      if self.increasing:
        threshold = 256 - min(256, threshold)
      return lambda x: color_ops.solarize(x, threshold)
    if name == "SolarizeAdd":
      addition = int(share * 110)
      return lambda x: color_ops.solarize_add(
          x, addition if self.dialect == "tensorflow" else min(128, addition)
      )
    if name == "Cutout":
      return lambda x: _cutout(x, int(share * _CUTOUT_PIXELS), rng)
    return self._moved(name, _signed(share, rng), rng, fill, crop_filter)

  def _drawn_magnitude(self, rng: np.random.Generator) -> float:
    """Of one layer."""
    if self.dialect == "tensorflow":
      return self.magnitude
    magnitude = self.magnitude
    if self.magnitude_std == float("inf"):
      magnitude = rng.uniform(0, magnitude)
    elif self.magnitude_std:
      magnitude = rng.normal(magnitude, self.magnitude_std)
    return max(0.0, min(magnitude, self.magnitude_max))

  def _enhance(self, name: str, share: float, rng: np.random.Generator):
    """One of the four that blend, in which a factor of 1 changes nothing."""
    if self.increasing:
      factor = max(0.1, 1 + _signed(share * 0.9, rng))
    else:
      factor = share * 1.8 + 0.1
    if name == "Contrast" and self.dialect == "tensorflow":
      # The published code means the mean gray, but adds up the histogram's counts alone: it
      # blends with H W / 256, at most 255.  Recipes were tuned with that, so it stays.
      return lambda x: color_ops.toward(x, min(255, x.shape[0] * x.shape[1] // 256), factor)
    return lambda x: _ENHANCE[name](x, factor)

  def _moved(self, name: str, share: float, rng: np.random.Generator, fill, crop_filter: str):
    """A rotation, shear or shift by a signed share of the most."""
    if self.dialect == "tensorflow":
      resample, fill = Image.Resampling.NEAREST, _GRAY
    else:
      if crop_filter == "random":
        crop_filter = ("bilinear", "bicubic")[rng.integers(2)]
      resample = _FILTERS[crop_filter]
    if name == "Rotate":
      return lambda x: geometry_ops.rotate(x, share * _DEGREES, resample, fill)
    if name in ("ShearX", "ShearY"):
      shear = geometry_ops.shear_x if name == "ShearX" else geometry_ops.shear_y
      still = 0.5 if self.dialect == "tensorflow" else 0.0
      return lambda x: shear(x, share * _SHEAR, resample, fill, still=still)
    axis, translate = {
        "TranslateX": (1, geometry_ops.translate_x), "TranslateY": (0, geometry_ops.translate_y)
    }[name]
    if self.dialect == "tensorflow":
      return lambda x: translate(x, share * _SHIFT_PIXELS, resample, fill)
    return lambda x: translate(x, share * _SHIFT_SHARE * x.shape[axis], resample, fill)


_PLAIN = {
    "AutoContrast": color_ops.auto_contrast,
    "Equalize": color_ops.equalize,
    "Invert": color_ops.invert,
}
_ENHANCE = {
    "Color": color_ops.color,
    "Contrast": color_ops.contrast,
    "Brightness": color_ops.brightness,
    "Sharpness": color_ops.sharpness,
}


def parse(text: str) -> RandAugment:
  """Reads either dialect; see the module.

  Raises:
    ConfigError: neither, or a part that this dialect does not have.
  """
  if match := re.fullmatch(r"\s*(\d+)\s*,\s*(\d+(?:\.\d+)?)\s*", text):
    return RandAugment(
        dialect="tensorflow", layers=int(match[1]), magnitude=float(match[2]), probability=1.0,
        magnitude_max=float("inf"),
    )
  head, *parts = text.split("-")
  if head != "rand":
    _refuse(text, "it begins with neither")
  values = {}
  for part in parts:
    match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?)", part)
    if not match or (match[1] in ("m", "n", "mmax", "inc") and "." in match[2]):
      _refuse(text, f"{part!r} is no part of it")
    if match[1] in values:
      _refuse(text, f"{match[1]!r} stands in it twice")
    values[match[1]] = float(match[2])
  if values.get("p", 0) > 1 or values.get("inc", 0) not in (0, 1):
    _refuse(text, "a probability or inc is above 1")
  std = values.get("mstd", 0.0)
  return RandAugment(
      dialect="timm",
      layers=int(values.get("n", 2)),
      magnitude=values.get("m", 10.0),
      magnitude_std=std if std <= 100 else float("inf"),
      magnitude_max=values.get("mmax") or 10.0,
      probability=values.get("p", 0.5),
      increasing=values.get("inc", 0) == 1,
  )


def _refuse(text: str, why: str):
  raise ConfigError(
      f"config.input.rand_augment is {text!r}: {why}; it must be LAYERS,MAGNITUDE as in '2,15', or "
      "timm's rand-mM-nN-pP-mstdS-mmaxM-inc1 as in 'rand-m9-mstd0.5-inc1', whose parts may be left "
      "out"
  )


def _signed(value: float, rng: np.random.Generator) -> float:
  """Negative half the time."""
  return -value if rng.random() > 0.5 else value


def _cutout(image: np.ndarray, half: int, rng: np.random.Generator) -> np.ndarray:
  """Gray over a square of side 2 `half` around a random pixel."""
  row, column = (int(rng.integers(side)) for side in image.shape[:2])
  box = row - half, column - half, row + half, column + half
  return geometry_ops.cutout(image, *box, _GRAY)

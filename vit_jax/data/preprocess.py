"""The evaluation transform: exactly what a Hugging Face image processor does with Pillow."""

import dataclasses
import math
import os
from typing import Any, Mapping, Sequence

import numpy as np
from PIL import Image

from vit_jax.data.decode import UnreadableImage, decode, to_rgb
from vit_jax.errors import ConfigError

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
  """How images become what a model sees at evaluation.

  Attributes:
    image_size: side S of the result.
    resize: "squash" to S x S whatever the aspect, as `ViTImageProcessor`; or "center": short
      side to `short_side`, then the S x S centre, as `BitImageProcessor` and
      `CLIPImageProcessor`.
    short_side: for "center" only, >= S.
    interpolation: "bilinear" or "bicubic", Pillow's antialiased filters.
    mean, std: of pixels in 0..1, one per channel.
    exif_orientation: turn photos as their EXIF data says.

  Raises:
    ConfigError: from the constructor, a wrong value or combination.
  """

  image_size: int
  resize: str = "squash"
  short_side: int | None = None
  interpolation: str = "bilinear"
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  exif_orientation: bool = True

  def __post_init__(self):
    if self.image_size < 1:
      raise ConfigError(f"preprocessing: image_size is {self.image_size}; it must be above 0")
    if self.resize not in ("squash", "center"):
      raise ConfigError(
          f"preprocessing: resize is {self.resize!r}; it must be squash or center"
      )
    if self.interpolation not in _FILTERS:
      raise ConfigError(
          f"preprocessing: interpolation is {self.interpolation!r}; it must be bilinear or "
          "bicubic"
      )
    if (self.resize == "center") != (self.short_side is not None):
      raise ConfigError("preprocessing: short_side belongs to resize center, and only there")
    if self.short_side is not None and self.short_side < self.image_size:
      raise ConfigError(
          f"preprocessing: short_side {self.short_side} is smaller than the crop of "
          f"{self.image_size}"
      )
    for name in ("mean", "std"):
      object.__setattr__(self, name, _channels(name, getattr(self, name)))
    if min(self.std) <= 0:
      raise ConfigError(f"preprocessing: std is {self.std}; it must be above 0")

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
    """Makes one of the JSON form.

    Raises:
      ConfigError: an unknown, missing or wrong value.
    """
    names = cls.__dataclass_fields__
    if unknown := set(values) - set(names):
      raise ConfigError(
          f"preprocessing: unknown {', '.join(sorted(unknown))}; known are {', '.join(names)}"
      )
    if "image_size" not in values:
      raise ConfigError("preprocessing: image_size is missing")
    return cls(**values)

  def resized(self, image: np.ndarray) -> np.ndarray:
    """Resizes, and crops where asked: uint8 `[H, W, 3]` to uint8 `[S, S, 3]`."""
    size = self.image_size
    if self.resize == "squash":
      return resize(image, size, size, interpolation=self.interpolation)
    height, width = image.shape[:2]
    short = self.short_side
    long = int(short * max(height, width) / min(height, width))
    height, width = (long, short) if width <= height else (short, long)
    image = resize(image, height, width, interpolation=self.interpolation)
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]

  def normalize(self, image: np.ndarray) -> np.ndarray:
    """uint8 `[..., 3]` to float32 `[..., 3]`, `(pixel / 255 - mean) / std`.

    With the roundings of Hugging Face: the product with 1/255 in float64, the rest in float32.
    """
    pixels = (np.arange(256) * (1 / 255)).astype(np.float32)[:, None]
    table = (pixels - np.float32(self.mean)) / np.float32(self.std)
    return table[image, np.arange(3)]

  def __call__(self, images: Sequence[Any]) -> np.ndarray:
    """Turns images into a model's input.

    Args:
      images: paths, contents of image files, Pillow images, or uint8 arrays `[H, W, 3]`.

    Returns:
      float32 `[B, S, S, 3]`.

    Raises:
      UnreadableImage: one cannot be decoded; the text names it.
      OSError: a path cannot be read.
      TypeError: something else was given.
    """
    resized = [self.resized(self._pixels(i, image)) for i, image in enumerate(images)]
    empty = np.zeros((0, self.image_size, self.image_size, 3), np.uint8)
    return self.normalize(np.stack(resized) if resized else empty)

  def _pixels(self, index: int, image: Any) -> np.ndarray:
    """uint8 `[H, W, 3]` of any input; `index` is its place among the inputs."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
      return image
    name = f"image {index}"
    try:
      if isinstance(image, Image.Image):
        return to_rgb(image, exif_orientation=self.exif_orientation)
      if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
        with open(image, "rb") as file:
          image = file.read()
      if isinstance(image, bytes):
        return decode(image, exif_orientation=self.exif_orientation)
    except UnreadableImage as error:
      raise UnreadableImage(error.reason, name=name) from error
    raise TypeError(
        f"{name} is {type(image).__name__}; give a path, the bytes of a file, a Pillow image "
        "or a uint8 array [H, W, 3]"
    )


def _channels(name: str, values: Any) -> tuple[float, float, float]:
  """Three finite numbers as floats."""
  try:
    values = tuple(map(float, values))
  except (TypeError, ValueError) as error:
    raise ConfigError(f"preprocessing: {name} is {values!r}; it must be three numbers") from error
  if len(values) != 3 or not all(map(math.isfinite, values)):
    raise ConfigError(f"preprocessing: {name} is {values}; it must be three finite numbers")
  return values


def resize(image: np.ndarray, height: int, width: int, *, interpolation: str) -> np.ndarray:
  """Pillow's antialiased resize: uint8 `[H, W, 3]` to uint8 `[height, width, 3]`."""
  if image.shape[:2] == (height, width):
    return image
  resized = Image.fromarray(image).resize((width, height), _FILTERS[interpolation])
  return np.asarray(resized)

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

  "squash" without short_side: to height x width whatever the aspect, as `ViTImageProcessor`.
  "squash" with short_side S: to S x S, then the height x width in the centre, as
  `DeiTImageProcessor`.
  "center": the short side to S, then the height x width in the centre, as `BitImageProcessor` and
  `CLIPImageProcessor`.

  Attributes:
    image_size: of the result: one number of pixels for a square, or (height, width).
    resize: "squash" or "center".
    short_side: S, at least height and width, so that no crop needs padding.
    interpolation: "bilinear" or "bicubic", Pillow's antialiased filters.
    mean, std: of pixels in 0..1, one per channel.
    exif_orientation: turn photos as their EXIF data says.

  Raises:
    ConfigError: from the constructor, a wrong value or combination.
  """

  image_size: int | tuple[int, int]
  resize: str = "squash"
  short_side: int | None = None
  interpolation: str = "bilinear"
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  exif_orientation: bool = True

  def __post_init__(self):
    if not isinstance(self.image_size, int):
      object.__setattr__(self, "image_size", _sides(self.image_size))
    if min(self.size) < 1:
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
    if self.resize == "center" and self.short_side is None:
      raise ConfigError("preprocessing: resize center needs a short_side, to crop out of")
    if self.short_side is not None and self.short_side < max(self.size):
      raise ConfigError(
          f"preprocessing: short_side {self.short_side} is smaller than the crop of "
          f"{self.image_size}"
      )
    for name in ("mean", "std"):
      object.__setattr__(self, name, _channels(name, getattr(self, name)))
    if min(self.std) <= 0:
      raise ConfigError(f"preprocessing: std is {self.std}; it must be above 0")

  @property
  def size(self) -> tuple[int, int]:
    """Height and width of the result."""
    size = self.image_size
    return (size, size) if isinstance(size, int) else size

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
    """Resizes, and crops where asked: uint8 `[H, W, 3]` to uint8 `[height, width, 3]`."""
    height, width = self.size
    short = self.short_side
    if short is None:
      return resize(image, height, width, interpolation=self.interpolation)
    rows, columns = short, short
    if self.resize == "center":
      long = int(short * max(image.shape[:2]) / min(image.shape[:2]))
      rows, columns = (long, short) if image.shape[1] <= image.shape[0] else (short, long)
    image = resize(image, rows, columns, interpolation=self.interpolation)
    top, left = (rows - height) // 2, (columns - width) // 2
    return image[top : top + height, left : left + width]

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
      float32 `[B, height, width, 3]`.

    Raises:
      UnreadableImage: one cannot be decoded; the text names it.
      OSError: a path cannot be read.
      TypeError: something else was given.
    """
    resized = [self.resized(self._pixels(i, image)) for i, image in enumerate(images)]
    empty = np.zeros((0, *self.size, 3), np.uint8)
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


def _sides(values: Any) -> tuple[int, int]:
  """(height, width) of the JSON form."""
  sides = tuple(values) if isinstance(values, (list, tuple)) else ()
  if len(sides) != 2 or not all(isinstance(x, int) for x in sides):
    raise ConfigError(
        f"preprocessing: image_size is {values!r}; it must be a number of pixels or [height, width]"
    )
  return sides


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

"""What happens to a training image on the host: crop, resize, mirror."""

import dataclasses
import math

import cv2
import numpy as np

from vit_jax.data.decode import decode
from vit_jax.data.preprocess import resize
from vit_jax.errors import ConfigError

_MIN_ASPECT, _MAX_ASPECT = 3 / 4, 4 / 3
_ATTEMPTS = 10
# Training crops are not antialiased, as big_vision's are not: one core then keeps up with
# TensorFlow's decode-and-crop, where Pillow's filter reaches two thirds of that.  Evaluation is
# antialiased, because it must agree with other people's numbers.  Bilinear is the default of
# big_vision's inception_crop, and no recipe here asks for another filter.
_CROP_FILTER = cv2.INTER_LINEAR


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
  """Decoded or encoded image to a training image.

  Attributes:
    image_size: side S of the result.
    crop: "random_resized" (Inception's, arXiv 1409.4842), "pad" (squash to S, zeros around it,
      a random S x S window; arXiv 1512.03385) or "none" (squash).
    crop_min_area: smallest share of the image in a random_resized crop.
    crop_padding: zeros on each side before a pad crop.
    flip: mirror every second image.
    exif_orientation: turn photos as their EXIF data says.

  Raises:
    ConfigError: from the constructor, a wrong value.
  """

  image_size: int
  crop: str = "random_resized"
  crop_min_area: float = 0.08
  crop_padding: int = 0
  flip: bool = True
  exif_orientation: bool = True

  def __post_init__(self):
    if self.image_size < 1:
      raise ConfigError(f"config.model.image_size is {self.image_size}; it must be above 0")
    if self.crop not in ("random_resized", "pad", "none"):
      raise ConfigError(
          f"config.input.crop is {self.crop!r}; it must be random_resized, pad or none"
      )
    if not 0 < self.crop_min_area <= 1:
      raise ConfigError(
          f"config.input.crop_min_area is {self.crop_min_area}; it must be above 0 and at most 1"
      )
    if self.crop_padding < 0:
      raise ConfigError(
          f"config.input.crop_padding is {self.crop_padding}; it must not be negative"
      )

  def __call__(self, image: bytes | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 `[H, W, 3]`, or an image file's content, to uint8 `[S, S, 3]`.

    Raises:
      UnreadableImage: the content cannot be decoded.
    """
    if isinstance(image, bytes):
      image = decode(image, exif_orientation=self.exif_orientation)
    if self.crop == "random_resized":
      image = random_resized_crop(
          image, size=self.image_size, min_area=self.crop_min_area, rng=rng
      )
    else:
      image = resize(image, self.image_size, self.image_size, interpolation="bilinear")
      if self.crop == "pad":
        image = pad_crop(image, padding=self.crop_padding, rng=rng)
    return image[:, ::-1] if self.flip and rng.random() < 0.5 else image


def random_resized_crop(
    image: np.ndarray, *, size: int, min_area: float, rng: np.random.Generator
) -> np.ndarray:
  """Resizes a random box of uint8 `[H, W, 3]` to `[size, size, 3]`."""
  top, left, height, width = sample_box(*image.shape[:2], min_area=min_area, rng=rng)
  box = image[top : top + height, left : left + width]
  return cv2.resize(box, (size, size), interpolation=_CROP_FILTER)


def sample_box(
    height: int, width: int, *, min_area: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
  """Draws the box of a random resized crop, as torchvision's `RandomResizedCrop.get_params`.

  Its share of the area is uniform in [min_area, 1], the logarithm of its aspect uniform between
  those of 3/4 and 4/3; after ten boxes that do not fit, the largest centred one of a permitted
  aspect.

  Returns:
    (top, left, height, width) in pixels.
  """
  for _ in range(_ATTEMPTS):
    area = height * width * rng.uniform(min_area, 1)
    aspect = math.exp(rng.uniform(math.log(_MIN_ASPECT), math.log(_MAX_ASPECT)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
  w = min(width, round(height * _MAX_ASPECT))
  h = min(height, round(width / _MIN_ASPECT))
  return (height - h) // 2, (width - w) // 2, h, w


def pad_crop(image: np.ndarray, *, padding: int, rng: np.random.Generator) -> np.ndarray:
  """A random window of uint8 `[S, S, 3]` after zeros were put around it; the same shape."""
  height, width = image.shape[:2]
  top, left = rng.integers(2 * padding + 1, size=2)
  padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  return padded[top : top + height, left : left + width]

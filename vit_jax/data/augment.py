"""What happens to a training image on the host: crop, mirror, change, erase."""

import dataclasses
import functools

import cv2
import numpy as np

from vit_jax.data import crops, erasing
from vit_jax.data.color_jitter import color_jitter, three_augment
from vit_jax.data.decode import decode_part
from vit_jax.data.preprocess import resize
from vit_jax.data.rand_augment import RandAugment, parse
from vit_jax.errors import ConfigError

CROPS = (
    "random_resized", "simple", "random", "center", "squash_random", "pad", "none",
)
CROP_FILTERS = ("bilinear", "bicubic", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
  """Decoded or encoded image to a training image, in the order of the attributes.

  Attributes:
    image_size: side S of the result.
    crop:
      "random_resized": a random box, resized (Inception's, arXiv 1409.4842).
      "simple": short side to S, 4 mirrored pixels around, a random window (DeiT-III's).
      "random": short side to `crop_short_side`, a random window (big_vision's resmall_crop).
      "center": the same, the window in the middle.
      "squash_random": squash to `crop_short_side`, a random window (big_vision's resize_crop).
      "pad": squash to S, zeros around it, a random window (arXiv 1512.03385).
      "none": squash to S.
    crop_min_area: smallest share of the image in a random_resized crop.
    crop_padding: zeros on each side before a pad crop.
    crop_short_side: at least S; None for 8/7 S.
    crop_filter: "bilinear", "bicubic", or "random" for one of them for each image; also of
      RandAugment's shears, shifts and rotations in timm's dialect.
    antialias: whether a random_resized crop is averaged where it is made smaller; the other
      crops always are.
    flip: mirror every second image.
    rand_augment: either dialect of `rand_augment.parse`; None for none.
    three_augment: gray, solarized or blurred (`color_jitter.three_augment`).
    color_jitter: strength of changes in brightness, contrast and saturation; 0 for none.
    random_erasing: probability that a box is erased.
    random_erasing_mode: "pixel" for noise, "const" for the mean colour.
    mean, std: three floats each, of pixels in 0..1, as the device normalises.
    exif_orientation: turn photos as their EXIF data says.
    scaled_decoding: decode large JPEGs at 1/2, 1/4 or 1/8 of their sides, the smallest that leaves
      the crop no smaller than S before it is resized: a 12-megapixel photo then costs a fraction,
      and its pixels are averages.

  Raises:
    ConfigError: from the constructor, a wrong value or combination.
  """

  image_size: int
  crop: str = "random_resized"
  crop_min_area: float = 0.08
  crop_padding: int = 0
  crop_short_side: int | None = None
  crop_filter: str = "bilinear"
  antialias: bool = False
  flip: bool = True
  rand_augment: str | None = None
  three_augment: bool = False
  color_jitter: float = 0.0
  random_erasing: float = 0.0
  random_erasing_mode: str = "pixel"
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  exif_orientation: bool = True
  scaled_decoding: bool = False

  def __post_init__(self):
    if self.image_size < 1:
      raise ConfigError(f"config.model.image_size is {self.image_size}; it must be above 0")
    for name, choices in (
        ("crop", CROPS), ("crop_filter", CROP_FILTERS), ("random_erasing_mode", erasing.MODES)
    ):
      if getattr(self, name) not in choices:
        raise ConfigError(
            f"config.input.{name} is {getattr(self, name)!r}; it must be one of "
            f"{', '.join(choices)}"
        )
    if not 0 < self.crop_min_area <= 1:
      raise ConfigError(
          f"config.input.crop_min_area is {self.crop_min_area}; it must be above 0 and at most 1"
      )
    if self.crop_padding < 0:
      raise ConfigError(
          f"config.input.crop_padding is {self.crop_padding}; it must not be negative"
      )
    if self.crop_short_side is not None and self.crop_short_side < self.image_size:
      raise ConfigError(
          f"config.input.crop_short_side {self.crop_short_side} is smaller than "
          f"config.model.image_size {self.image_size}, which is cropped out of it"
      )
    if not 0 <= self.random_erasing <= 1:
      raise ConfigError(
          f"config.input.random_erasing is {self.random_erasing}; it is a probability, 0 to 1"
      )
    if not self.color_jitter >= 0:
      raise ConfigError(
          f"config.input.color_jitter is {self.color_jitter}; it must not be negative"
      )
    if self._operations and self.three_augment:
      raise ConfigError(
          "config.input.three_augment and config.input.rand_augment are both set; 3-Augment "
          "takes RandAugment's place: set rand_augment to None, or three_augment to False"
      )

  @functools.cached_property
  def _operations(self) -> RandAugment | None:
    """What `rand_augment` says."""
    return None if self.rand_augment is None else parse(self.rand_augment)

  @functools.cached_property
  def _mean_color(self) -> tuple[int, int, int]:
    return tuple(min(255, round(255 * x)) for x in self.mean)

  @property
  def changes_pixels(self) -> bool:
    """Whether anything but cropping and mirroring happens."""
    return bool(
        self.rand_augment or self.three_augment or self.color_jitter or self.random_erasing
    )

  def __call__(self, image: bytes | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 `[H, W, 3]`, or an image file's content, to uint8 `[S, S, 3]`.

    Raises:
      UnreadableImage: the content cannot be decoded.
    """
    image = self._cropped(image, rng)
    if self.flip and rng.random() < 0.5:
      # Twenty times faster than a copy of image[:, ::-1], which stacking a batch would make.
      image = cv2.flip(image, 1)
    if not self.changes_pixels:
      return image
    image = np.ascontiguousarray(image)
    if self._operations:
      image = self._operations(
          image, rng, fill=self._mean_color, crop_filter=self.crop_filter
      )
    if self.three_augment:
      image = three_augment(image, rng)
    if self.color_jitter:
      image = color_jitter(image, rng, strength=self.color_jitter)
    if self.random_erasing:
      image = erasing.random_erasing(
          image, rng, probability=self.random_erasing, mode=self.random_erasing_mode,
          mean=self.mean, std=self.std,
      )
    return image

  def _cropped(self, image: bytes | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 `[H, W, 3]`, or an image file's content, to `[S, S, 3]`."""
    size, kind = self.image_size, self.crop
    crop_filter = self.crop_filter
    if crop_filter == "random":
      crop_filter = ("bilinear", "bicubic")[rng.integers(2)]
    if kind == "random_resized":
      sample = functools.partial(crops.sample_box, min_area=self.crop_min_area, rng=rng)
      box = self._part(image, sample, at_least=size)
      return crops.resize_box(box, size, crop_filter=crop_filter, antialias=self.antialias)
    short = size if kind in ("simple", "pad", "none") else self._short_side
    image = self._part(image, lambda height, width: (0, 0, height, width), at_least=short)
    if kind == "simple":
      return crops.simple_crop(image, size=size, rng=rng, crop_filter=crop_filter)
    if kind in ("random", "center"):
      image = crops.resize_short_side(image, short, crop_filter=crop_filter)
    else:
      image = resize(image, short, short, interpolation=crop_filter)
    if kind == "pad":
      return crops.pad_crop(image, padding=self.crop_padding, rng=rng)
    if kind == "center":
      return crops.centre_window(image, size=size)
    return image if kind == "none" else crops.random_window(image, size=size, rng=rng)

  @property
  def _short_side(self) -> int:
    return self.crop_short_side or round(self.image_size * 8 / 7)

  def _part(self, image: bytes | np.ndarray, choose, *, at_least: int) -> np.ndarray:
    """The box that `choose` picks when told height and width; see `decode_part`."""
    if isinstance(image, bytes):
      return decode_part(
          image, choose, exif_orientation=self.exif_orientation,
          at_least=at_least if self.scaled_decoding else None,
      )
    top, left, height, width = choose(*image.shape[:2])
    return image[top : top + height, left : left + width]

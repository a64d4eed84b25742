"""Random erasing (arXiv 1708.04896), as timm's `RandomErasing` with its defaults."""

import math

import numpy as np

_MIN_AREA, _MAX_AREA = 0.02, 1 / 3
_MIN_ASPECT, _MAX_ASPECT = 0.3, 1 / 0.3
_ATTEMPTS = 10
MODES = ("pixel", "const")


def random_erasing(
    image: np.ndarray, rng: np.random.Generator, *, probability: float, mode: str, mean, std
) -> np.ndarray:
  """Fills a random box of uint8 `[H, W, 3]`.

  The box has a share of the area uniform in [0.02, 1/3] and an aspect log-uniform in [0.3, 10/3];
  the first of ten that is smaller than the image in both directions is taken.

  Args:
    probability: that anything happens.
    mode: "pixel" for noise, which normalised is standard normal (rounded to levels and cut to
      0..255); "const" for the mean, which normalised is 0.
    mean, std: three floats each, of pixels in 0..1, as the device will normalise.

  Returns:
    The same image, or a changed copy.
  """
  if rng.random() >= probability:
    return image
  rows, columns = image.shape[:2]
  for _ in range(_ATTEMPTS):
    area = rng.uniform(_MIN_AREA, _MAX_AREA) * rows * columns
    aspect = math.exp(rng.uniform(math.log(_MIN_ASPECT), math.log(_MAX_ASPECT)))
    h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if h < rows and w < columns:
      top, left = int(rng.integers(rows - h + 1)), int(rng.integers(columns - w + 1))
      fill = np.float32(mean)
      if mode == "pixel":
        noise = rng.standard_normal((h, w, 3), np.float32)
        fill = fill + noise * np.float32(std)
      image = image.copy()
      image[top : top + h, left : left + w] = np.clip(np.rint(fill * 255), 0, 255)
      return image
  return image

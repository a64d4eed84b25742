"""Random colours: colour jitter, and 3-Augment (arXiv 2204.07118, section 3)."""

import numpy as np

from vit_jax.data import color_ops

_JITTERED = (color_ops.brightness, color_ops.contrast, color_ops.color)


def color_jitter(image: np.ndarray, rng: np.random.Generator, *, strength: float) -> np.ndarray:
  """Changes brightness, contrast and saturation in random order, as torchvision's `ColorJitter`.

  Args:
    image: uint8 `[H, W, 3]`.
    strength: s; each factor is uniform in [max(0, 1 - s), 1 + s].
  """
  factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, size=3)
  for index in rng.permutation(3):
    image = _JITTERED[index](image, factors[index])
  return image


def three_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Makes uint8 `[H, W, 3]` gray, or solarized from 128 on, or blurred; each a third of the time.

  The blur's standard deviation is uniform in [0.1, 2] pixels, as in the published code.
  """
  choice = rng.integers(3)
  if choice == 0:
    return color_ops.grayscale(image)
  if choice == 1:
    return color_ops.solarize(image, 128)
  return color_ops.gaussian_blur(image, rng.uniform(0.1, 2.0))

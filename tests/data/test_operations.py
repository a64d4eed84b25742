"""Colours, geometry and RandAugment against timm, torchvision, Pillow and OpenCV."""

import collections
import itertools

import cv2
import numpy as np
from pictures import judged, pictures  # judged is a fixture
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
import pytest

from vit_jax.data import color_ops, geometry_ops
from vit_jax.data.color_jitter import color_jitter, three_augment
from vit_jax.data.rand_augment import OPERATIONS, RandAugment, parse
from vit_jax.errors import ConfigError

each_picture = pytest.mark.parametrize("name", pictures())
MEAN_COLOR = (124, 116, 104)


class Sign:
  """A generator whose every `random()` is one number: 1.0 makes levels negative."""

  def __init__(self, value):
    self.value = value

  def random(self):
    return self.value

  def integers(self, high):
    return high // 3


def answers(judged, kind):
  """{(picture, kind, ...): what the other library answered}."""
  keys = [tuple(key.split("|")) for key in judged]
  return {key: judged["|".join(key)] for key in keys if len(key) > 1 and key[1] == kind}


@pytest.mark.parametrize("operation", OPERATIONS["timm"])
def test_an_operation_at_every_level_equals_timms(judged, operation):
  found = answers(judged, operation)
  assert len(found) >= 9 * 2 * 2 * len(pictures())
  for (picture, _, increasing, magnitude, sign, crop_filter), expected in found.items():
    augment = RandAugment(dialect="timm", increasing=increasing == "True")
    ours = augment.operation(
        operation, float(magnitude), Sign(float(sign)), MEAN_COLOR, crop_filter
    )(pictures()[picture])
    np.testing.assert_array_equal(ours, expected, f"{picture} {increasing} {magnitude} {sign}")


@pytest.mark.parametrize("name, operation", [
    ("brightness", color_ops.brightness), ("contrast", color_ops.contrast),
    ("saturation", color_ops.color),
])
def test_what_jitter_changes_equals_torchvision(judged, name, operation):
  for (picture, _, factor), expected in answers(judged, name).items():
    np.testing.assert_array_equal(operation(pictures()[picture], float(factor)), expected)


def test_what_three_augment_does_equals_torchvision(judged):
  for (picture, _), expected in answers(judged, "grayscale").items():
    np.testing.assert_array_equal(color_ops.grayscale(pictures()[picture]), expected)
  for (picture, _), expected in answers(judged, "solarize").items():
    np.testing.assert_array_equal(color_ops.solarize(pictures()[picture], 128), expected)


@each_picture
def test_colours_equal_pillows(name):
  image = pictures()[name]
  picture = Image.fromarray(image)
  same = lambda ours, theirs: np.testing.assert_array_equal(ours, np.asarray(theirs))
  same(color_ops.invert(image), ImageOps.invert(picture))
  same(color_ops.auto_contrast(image), ImageOps.autocontrast(picture))
  same(color_ops.equalize(image), ImageOps.equalize(picture))
  for bits in range(1, 9):
    same(color_ops.posterize(image, bits), ImageOps.posterize(picture, bits))
  assert not color_ops.posterize(image, 0).any()
  same(color_ops.posterize(image, 12), picture)
  for threshold in (0, 1, 100, 255, 256):
    same(color_ops.solarize(image, threshold), ImageOps.solarize(picture, threshold))
  same(color_ops.solarize(image, 384), picture)
  for factor in (0, 0.1, 0.37, 1, 1.5, 2.8):
    same(color_ops.sharpness(image, factor), ImageEnhance.Sharpness(picture).enhance(factor))
    same(color_ops.color(image, factor), ImageEnhance.Color(picture).enhance(factor))
    same(color_ops.contrast(image, factor), ImageEnhance.Contrast(picture).enhance(factor))
    same(color_ops.brightness(image, factor), ImageEnhance.Brightness(picture).enhance(factor))
  blurred = picture.filter(ImageFilter.GaussianBlur(1.3))
  same(color_ops.gaussian_blur(image, 1.3), blurred)


@pytest.mark.parametrize("radius", [0.1, 0.6, 1.0, 2.0])
def test_the_blur_is_nearly_gaussian(radius):
  for image in pictures().values():
    ours = color_ops.gaussian_blur(image, radius).astype(int)
    true = cv2.GaussianBlur(
        image.astype(np.float64), (25, 25), radius, borderType=cv2.BORDER_REPLICATE
    )
    # White noise is the hardest for it.
    assert np.abs(ours - true).mean() < 1 + 0.05 * image.std()


def warped(image, matrix):
  """By OpenCV in float: each output pixel (x, y) from matrix (x, y, 1), bilinear."""
  flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  size = image.shape[1::-1]
  return cv2.warpAffine(image.astype(np.float32), np.float64(matrix), size, flags=flags)


def inside(image, matrix):
  """Which pixels come from well inside the image."""
  return warped(np.ones(image.shape[:2]), matrix) > 0.999


@each_picture
def test_geometry_agrees_with_opencv(name):
  image = cv2.GaussianBlur(pictures()[name], (9, 9), 2)
  height, width = image.shape[:2]
  bilinear = Image.Resampling.BILINEAR
  for amount in (-0.21, 0.3):
    # Pillow's coordinates are those of pixel corners, OpenCV's of centres.
    half = amount / 2
    cosine, sine = np.cos(amount), np.sin(amount)
    x, y = (width - 1) / 2, (height - 1) / 2
    cases = {
        "shear_x": (amount, [[1, amount, half], [0, 1, 0]]),
        "shear_y": (amount, [[1, 0, 0], [amount, 1, half]]),
        "translate_x": (20 * amount, [[1, 0, 20 * amount], [0, 1, 0]]),
        "translate_y": (20 * amount, [[1, 0, 0], [0, 1, 20 * amount]]),
        # Counterclockwise in a picture whose y points down.
        "rotate": (np.degrees(amount), [
            [cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]
        ]),
    }
    for operation, (argument, matrix) in cases.items():
      ours = getattr(geometry_ops, operation)(image, argument, bilinear, (9, 9, 9)).astype(int)
      apart = np.abs(ours - warped(image, matrix))[inside(image, matrix)]
      assert apart.max() <= 2 and apart.mean() < 0.6, operation
      outside = warped(np.ones(image.shape[:2]), matrix) == 0
      # What comes from outside has the colour asked for, but for a seam of one pixel.
      assert not outside.any() or (ours[outside] == 9).all(axis=-1).mean() > 0.97


def test_cutout():
  image = pictures()["noise"]
  ours = geometry_ops.cutout(image, -4, 50, 6, 99, (1, 2, 3))
  assert (ours[:6, 50:] == (1, 2, 3)).all()
  rest = np.ones(image.shape[:2], bool)
  rest[:6, 50:] = False
  np.testing.assert_array_equal(ours[rest], image[rest])
  np.testing.assert_array_equal(geometry_ops.cutout(image, -9, 0, -3, 9, (0, 0, 0)), image)


# TensorFlow's dialect.


def tensorflow_operation(name, image, sign=0.0, magnitude=15.0):
  augment = parse(f"1,{magnitude}")
  return augment.operation(name, magnitude, Sign(sign), None, "bicubic")(image)


@each_picture
def test_levels_of_tensorflows_dialect(name):
  """By the formulas of the published code, at magnitude 15 and by Pillow."""
  image = pictures()[name]
  picture = Image.fromarray(image)
  nearest, affine = Image.Resampling.NEAREST, Image.Transform.AFFINE
  gray = (128, 128, 128)

  def transformed(*matrix):
    return picture.transform(picture.size, affine, matrix, nearest, fillcolor=gray)

  factor = 1.5 * 1.8 + 0.1
  wanted = {
      "Rotate": picture.rotate(45, nearest, fillcolor=gray),
      "ShearX": transformed(1, 0.45, -0.225, 0, 1, 0),
      "ShearY": transformed(1, 0, 0, 0.45, 1, -0.225),
      "TranslateX": transformed(1, 0, 150, 0, 1, 0),
      "TranslateY": transformed(1, 0, 0, 0, 1, 150),
      "Posterize": ImageOps.posterize(picture, 6),
      "Solarize": ImageOps.solarize(picture, 128),  # 384 as a uint8
      "SolarizeAdd": picture.point([min(255, i + 165) if i < 128 else i for i in range(256)] * 3),
      "Color": ImageEnhance.Color(picture).enhance(factor),
      "Brightness": ImageEnhance.Brightness(picture).enhance(factor),
      "Sharpness": ImageEnhance.Sharpness(picture).enhance(factor),
      "Invert": ImageOps.invert(picture),
      "AutoContrast": ImageOps.autocontrast(picture),
      "Equalize": ImageOps.equalize(picture),
  }
  for operation, expected in wanted.items():
    np.testing.assert_array_equal(
        tensorflow_operation(operation, image), np.asarray(expected), operation
    )
  inverted = ImageOps.invert(picture)
  for magnitude in (10.0, 20.0):
    solarized = tensorflow_operation("Solarize", image, magnitude=magnitude)
    np.testing.assert_array_equal(solarized, np.asarray(inverted))
  for magnitude in (0.0, 1.0, 2.4):
    posterized = tensorflow_operation("Posterize", image, magnitude=magnitude)
    np.testing.assert_array_equal(posterized, np.asarray(ImageOps.posterize(picture, 1)))
  turned = picture.rotate(-45, nearest, fillcolor=gray)
  np.testing.assert_array_equal(tensorflow_operation("Rotate", image, sign=1.0), turned)
  few = image.shape[0] * image.shape[1] // 256
  constant = Image.new("RGB", picture.size, (few,) * 3)
  contrast = Image.blend(constant, picture, factor)
  np.testing.assert_array_equal(tensorflow_operation("Contrast", image), np.asarray(contrast))
  # A square of side 120 around a third of either side covers these small pictures.
  assert (tensorflow_operation("Cutout", image) == 128).all()
  small = tensorflow_operation("Cutout", image, magnitude=1.0)
  row, column = image.shape[0] // 3, image.shape[1] // 3
  assert (small[row - 4 : row + 4, column - 4 : column + 4] == 128).all()
  rest = np.ones(image.shape[:2], bool)
  rest[row - 4 : row + 4, column - 4 : column + 4] = False
  np.testing.assert_array_equal(small[rest], image[rest])


def test_both_dialects_are_read():
  assert parse(" 2,15 ") == RandAugment(
      dialect="tensorflow", layers=2, magnitude=15.0, probability=1.0,
      magnitude_max=float("inf"),
  )
  assert parse("rand-m9-mstd0.5-inc1") == RandAugment(
      dialect="timm", layers=2, magnitude=9.0, magnitude_std=0.5, increasing=True
  )
  assert parse("rand") == RandAugment(dialect="timm")
  assert parse("rand-n3-p0.7-mmax12-mstd101-inc0-m11") == RandAugment(
      dialect="timm", layers=3, magnitude=11.0, magnitude_std=float("inf"), magnitude_max=12.0,
      probability=0.7,
  )


@pytest.mark.parametrize("text", [
    "", "2", "2,15,1", "randaug", "rand-", "rand-m", "rand-m9-m8", "rand-w0", "rand-inc2",
    "rand-p1.5", "rand-m9.5", "augmix-m3", "-2,15", "rand-m9_inc1",
])
def test_other_texts_are_refused(text):
  with pytest.raises(ConfigError) as error:
    parse(text)
  assert "config.input.rand_augment" in str(error.value) and "2,15" in str(error.value)
  assert "\n" not in str(error.value)


# What is drawn.


def within(counts, expected, deviations=4.5):
  """Whether counts lie within some binomial standard deviations."""
  return all(
      abs(counts[key] - mean) < deviations * mean**0.5 + 1 for key, mean in expected.items()
  )


@pytest.mark.parametrize("text, share", [("2,10", 1.0), ("rand-m9-mstd0.5-inc1", 0.5)])
def test_operations_are_drawn_uniformly(text, share, monkeypatch):
  drawn, magnitudes = collections.Counter(), []

  def operation(self, name, magnitude, *_):
    drawn[name] += 1
    magnitudes.append(magnitude)
    return lambda x: x

  monkeypatch.setattr(RandAugment, "operation", operation)
  augment, rng = parse(text), np.random.default_rng(0)
  image = np.zeros((2, 2, 3), np.uint8)
  for _ in range(4000):
    augment(image, rng)
  names = OPERATIONS[augment.dialect]
  assert within(drawn, dict.fromkeys(names, 8000 * share / len(names)))
  assert set(drawn) == set(names)
  if augment.dialect == "tensorflow":
    assert set(magnitudes) == {10.0}
  else:
    # A normal distribution cut at 10, two deviations up.
    assert np.median(magnitudes) == pytest.approx(9, abs=0.05)
    assert np.quantile(magnitudes, 0.1587) == pytest.approx(8.5, abs=0.06)
    assert np.mean(np.array(magnitudes) == 10) == pytest.approx(0.0228, abs=0.01)


def test_a_uniform_magnitude():
  augment, rng = parse("rand-m8-mstd101"), np.random.default_rng(0)
  drawn = np.array([augment._drawn_magnitude(rng) for _ in range(4000)])
  np.testing.assert_allclose(np.quantile(drawn, [0, 0.5, 1]), [0, 4, 8], atol=0.3)


def test_signs_are_drawn_evenly():
  image = np.zeros((1, 21, 3), np.uint8)
  image[:, 10] = 255
  augment, rng = parse("rand-m5"), np.random.default_rng(0)
  left = sum(
      int(augment.operation("TranslateX", 5.0, rng, (0, 0, 0), "bilinear")(image)[0, :10].any())
      for _ in range(400)
  )
  assert 150 < left < 250


@pytest.mark.parametrize("text", ["2,15", "3,28", "rand-m9-mstd0.5-inc1", "rand-n4-p1-mmax15-m15"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 40), (33, 20)])
def test_any_image_and_generator_give_an_image_and_always_the_same(text, shape):
  image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
  before, seen = image.copy(), set()
  for seed in range(40):
    one, other = (
        parse(text)(image, np.random.default_rng(seed), crop_filter="random") for _ in range(2)
    )
    assert one.dtype == np.uint8 and one.shape == image.shape
    np.testing.assert_array_equal(one, other)
    seen.add(one.tobytes())
  np.testing.assert_array_equal(image, before)
  assert len(seen) > 5


def test_three_augment_takes_thirds():
  image, rng = pictures()["noise"], np.random.default_rng(0)
  counts = collections.Counter()
  solarized = color_ops.solarize(image, 128)
  for _ in range(600):
    changed = three_augment(image, rng)
    if (changed == changed[..., :1]).all():
      counts["gray"] += 1
    else:
      counts["solarized" if np.array_equal(changed, solarized) else "blurred"] += 1
  assert within(counts, {"gray": 200, "solarized": 200, "blurred": 200}), counts


def test_jitter_draws_factors_and_order(monkeypatch):
  seen = []
  operations = tuple(
      lambda image, factor, place=place: (seen.append((place, factor)), image)[1]
      for place in range(3)
  )
  monkeypatch.setattr("vit_jax.data.color_jitter._JITTERED", operations)
  rng = np.random.default_rng(0)
  for _ in range(1200):
    color_jitter(None, rng, strength=0.3)
  factors = np.array([factor for _, factor in seen])
  levels = np.quantile(factors, [0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_allclose(levels, [0.7, 0.85, 1, 1.15, 1.3], atol=0.02)
  orders = collections.Counter(
      tuple(place for place, _ in seen[i : i + 3]) for i in range(0, 3600, 3)
  )
  assert within(orders, dict.fromkeys(itertools.permutations(range(3)), 200)), orders
  seen.clear()
  for _ in range(300):
    color_jitter(None, rng, strength=1.5)
  assert min(factor for _, factor in seen) >= 0 and max(factor for _, factor in seen) > 2.3

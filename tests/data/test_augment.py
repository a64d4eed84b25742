"""Host augmentations: distributions, degenerate shapes, and pixels by hand."""

import io
import math

import numpy as np
from PIL import Image
import pytest

from vit_jax.data.augment import CROPS, TrainTransform
from vit_jax.data.crops import pad_crop, sample_box
from vit_jax.data.decode import UnreadableImage
from vit_jax.errors import ConfigError


def generator(seed=0):
  return np.random.default_rng(seed)


def gradient(height, width):
  """A picture whose pixel says where it was: channel 0 the row, channel 1 the column."""
  y, x = np.mgrid[:height, :width]
  return np.stack([y, x, np.full_like(x, 9)], axis=-1).astype(np.uint8)


def test_box_distribution():
  height, width, draws, rng = 1000, 1000, 4000, generator()
  boxes = np.array([sample_box(height, width, min_area=0.3, rng=rng) for _ in range(draws)])
  top, left, h, w = boxes.T
  assert (top >= 0).all() and (left >= 0).all()
  assert (top + h <= height).all() and (left + w <= width).all()
  area, aspect = h * w / 1e6, np.log(w / h)
  assert area.min() >= 0.298 and area.max() <= 1
  limit = math.log(4 / 3)
  assert np.abs(aspect).max() <= limit + 0.005
  # Boxes up to 3/4 always fit, so below that the area is uniform and the aspect log-uniform.
  fits = area < 0.74
  levels = np.quantile(area[fits], [0.25, 0.5, 0.75])
  np.testing.assert_allclose(levels, 0.3 + 0.44 * np.array([0.25, 0.5, 0.75]), atol=0.015)
  np.testing.assert_allclose(
      np.quantile(aspect[fits], [0.1, 0.5, 0.9]), [-0.8 * limit, 0, 0.8 * limit], atol=0.02
  )
  # Corners are uniform over what is left.
  for corner, side in ((top, h), (left, w)):
    room = 1000 - side
    np.testing.assert_allclose((corner[room > 0] / room[room > 0]).mean(), 0.5, atol=0.02)


def test_area_where_large_boxes_do_not_fit():
  rng = generator(1)
  boxes = [sample_box(200, 300, min_area=0.05, rng=rng) for _ in range(4000)]
  areas = [h * w / 6e4 for _, _, h, w in boxes]
  # In an image of aspect 3/2 a box of share a fits if its aspect is at least 3/2 a.
  limit, a = math.log(4 / 3), np.linspace(0.05, 1, 10_000)
  fits = np.clip((limit - np.log(1.5 * a)) / (2 * limit), 0, 1)
  assert 0.045 < min(areas) < 0.06
  assert np.mean(areas) == pytest.approx((a * fits).sum() / fits.sum(), abs=0.012)


@pytest.mark.parametrize("shape, box", [
    ((500, 1), (249, 0, 1, 1)), ((1, 500), (0, 249, 1, 1)), ((30, 3000), (0, 1480, 30, 40)),
    ((3000, 30), (1480, 0, 40, 30)),
])
def test_centre_where_no_box_fits(shape, box):
  # With all of the area wanted, no permitted aspect fits.
  assert sample_box(*shape, min_area=1, rng=generator()) == box


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (7, 40), (64, 64)])
def test_any_shape_becomes_the_size(crop, shape):
  transform = TrainTransform(image_size=32, crop=crop, crop_padding=4)
  for seed in range(20):
    image = np.full(shape + (3,), 77, np.uint8)
    out = transform(image, generator(seed))
    assert out.shape == (32, 32, 3) and out.dtype == np.uint8
    if crop != "pad":
      assert (out == 77).all()


def test_crop_is_resized_box():
  image = np.repeat(np.random.default_rng(3).random((60, 60, 3)), 4, axis=0).repeat(4, axis=1)
  image = (image * 255).astype(np.uint8)
  top, left, height, width = sample_box(240, 240, min_area=0.2, rng=generator(5))
  transform = TrainTransform(image_size=2 * max(height, width), crop_min_area=0.2, flip=False)
  out = transform(image, generator(5))
  # Pillow's filter equals OpenCV's where nothing is made smaller.
  box = Image.fromarray(image[top : top + height, left : left + width])
  expected = np.asarray(box.resize(out.shape[:2], Image.Resampling.BILINEAR), int)
  assert np.abs(out - expected).max() <= 2
  assert np.abs(out - expected).mean() < 0.6


def test_pad_crop_reaches_every_offset():
  image = gradient(8, 8) + 1
  corners = set()
  for seed in range(200):
    out = pad_crop(image, padding=2, rng=generator(seed))
    assert out.shape == (8, 8, 3)
    row, column = out[4, 4, :2].astype(int) - 5
    corners.add((int(row), int(column)))
    padded = np.zeros((12, 12, 3), np.uint8)
    padded[2:10, 2:10] = image
    np.testing.assert_array_equal(out, padded[row + 2 : row + 10, column + 2 : column + 10])
  assert corners == {(r, c) for r in range(-2, 3) for c in range(-2, 3)}


def test_flip_mirrors_half():
  image = gradient(16, 16)
  transform = TrainTransform(image_size=16, crop="none")
  mirrored = 0
  for seed in range(400):
    out = transform(image, generator(seed))
    if not np.array_equal(out, image):
      np.testing.assert_array_equal(out, image[:, ::-1])
      mirrored += 1
  assert 160 < mirrored < 240
  still = TrainTransform(image_size=16, crop="none", flip=False)
  assert all(np.array_equal(still(image, generator(seed)), image) for seed in range(20))


def test_files_are_decoded_upright():
  exif = Image.Exif()
  exif[0x0112] = 6
  buffer = io.BytesIO()
  Image.fromarray(gradient(20, 40)).save(buffer, "PNG", exif=exif)
  kwargs = {"image_size": 20, "crop": "none", "flip": False}
  upright = TrainTransform(**kwargs)(buffer.getvalue(), generator())
  lying = TrainTransform(**kwargs, exif_orientation=False)(buffer.getvalue(), generator())
  assert upright[0, :, 0].mean() == pytest.approx(9.5, abs=0.6)
  assert lying[:, 0, 0].mean() == pytest.approx(9.5, abs=0.6) and lying[0, :, 0].max() == 0
  with pytest.raises(UnreadableImage):
    TrainTransform(image_size=8)(b"no image", generator())


def test_pixels_depend_on_the_generator_alone():
  image = gradient(50, 70)
  transform = TrainTransform(image_size=24)
  np.testing.assert_array_equal(transform(image, generator(3)), transform(image, generator(3)))
  assert not np.array_equal(transform(image, generator(3)), transform(image, generator(4)))


@pytest.mark.parametrize("values", [
    {"crop": "centre"}, {"crop_min_area": 0.0}, {"crop_min_area": 1.5},
    {"crop_min_area": float("nan")}, {"crop_padding": -1}, {"image_size": 0},
    {"crop_short_side": 7}, {"crop_filter": "nearest"}, {"color_jitter": -0.1},
    {"color_jitter": float("nan")}, {"random_erasing": 1.1}, {"random_erasing_mode": "rand"},
    {"rand_augment": "m9"}, {"three_augment": True, "rand_augment": "2,10"},
])
def test_wrong_values(values):
  with pytest.raises(ConfigError, match=next(iter(values))):
    TrainTransform(**{"image_size": 8} | values)

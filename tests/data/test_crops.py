"""Crops and erased boxes against torchvision and timm: pixels, and distributions."""

import collections

import numpy as np
from pictures import judged, pictures  # judged is a fixture
import pytest
import scipy.stats

from vit_jax.data import crops
from vit_jax.data.augment import TrainTransform
from vit_jax.data.erasing import random_erasing


def generator(seed=0):
  return np.random.default_rng(seed)


def answers(judged, kind):
  keys = [tuple(key.split("|")) for key in judged]
  return {key: judged["|".join(key)] for key in keys if len(key) > 1 and key[1] == kind}


def test_short_sides_equal_torchvisions(judged):
  found = answers(judged, "short")
  assert len(found) == 4 * len(pictures())
  for (picture, _, size, crop_filter), expected in found.items():
    ours = crops.resize_short_side(pictures()[picture], int(size), crop_filter=crop_filter)
    np.testing.assert_array_equal(ours, expected)


def test_antialiased_boxes_equal_torchvisions(judged):
  for (picture, _, size, crop_filter), expected in answers(judged, "box").items():
    box = pictures()[picture][3:34, 5:34]
    ours = crops.resize_box(box, int(size), crop_filter=crop_filter, antialias=True)
    np.testing.assert_array_equal(ours, expected)
    fast = crops.resize_box(box, int(size), crop_filter=crop_filter).astype(int)
    if int(size) > 31:  # nothing is made smaller, so nothing is averaged
      assert np.abs(fast - expected).mean() < (1 if crop_filter == "bilinear" else 6)


def test_a_simple_crop_is_a_window_of_the_mirrored_border(judged):
  """torchvision pads, we resize to the side the image has, so that nothing else is done."""
  for (picture, _, _), padded in answers(judged, "reflect").items():
    image = pictures()[picture]
    size, offsets = min(image.shape[:2]), set()
    for seed in range(30):
      ours = crops.simple_crop(image, size=size, rng=generator(seed), crop_filter="bicubic")
      assert ours.shape == (size, size, 3)
      found = [
          (top, left)
          for top in range(padded.shape[0] - size + 1)
          for left in range(padded.shape[1] - size + 1)
          if np.array_equal(padded[top, left : left + size], ours[0])
          and np.array_equal(padded[top : top + size, left : left + size], ours)
      ]
      assert found
      offsets.add(found[0])
    assert len(offsets) > 8 or picture == "flat"


def test_windows_are_uniform_and_the_centre_is_the_centre():
  y, x = np.mgrid[:9, :12]
  image = np.stack([y, x, x], axis=-1).astype(np.uint8)
  rng = generator()
  counts = collections.Counter(
      tuple(crops.random_window(image, size=6, rng=rng)[0, 0, :2].tolist()) for _ in range(2800)
  )
  assert set(counts) == {(row, column) for row in range(4) for column in range(7)}
  assert max(abs(count - 100) for count in counts.values()) < 45
  assert crops.centre_window(image, size=6)[0, 0].tolist() == [1, 3, 3]
  assert crops.centre_window(image, size=9).shape == (9, 9, 3)


@pytest.mark.parametrize("crop, rows", [("random", 16), ("center", 16), ("squash_random", 16)])
def test_crops_out_of_a_short_side(crop, rows):
  y, x = np.mgrid[:40, :80]
  image = np.stack([y * 6, x * 3, x * 0], axis=-1).astype(np.uint8)
  transform = TrainTransform(image_size=16, crop=crop, crop_short_side=20, flip=False)
  seen = np.array([transform(image, generator(seed))[0, 0] for seed in range(60)], int)
  # What one pixel of the result spans in the original, along x.
  step = np.diff(transform(image, generator())[8, 4:12, 1].astype(int)).mean() / 3
  assert step == pytest.approx({"random": 2, "center": 2, "squash_random": 4}[crop], rel=0.05)
  assert (len(np.unique(seen, axis=0)) == 1) == (crop == "center")
  default = TrainTransform(image_size=14, crop=crop, flip=False)
  named = TrainTransform(image_size=14, crop=crop, crop_short_side=16, flip=False)
  np.testing.assert_array_equal(default(image, generator(3)), named(image, generator(3)))


@pytest.mark.parametrize("shape", [(3, 5000), (5000, 3), (1, 100_000)])
@pytest.mark.parametrize("crop", ["simple", "random", "center"])
def test_strips_do_not_fill_the_memory(shape, crop):
  image = np.full((*shape, 3), 7, np.uint8)
  assert crops.resize_short_side(image, 32, crop_filter="bilinear").size <= 32 * 32 * 16 * 3
  assert (TrainTransform(image_size=32, crop=crop)(image, generator()) == 7).all()


def same_distribution(ours, theirs):
  """Two-sample Kolmogorov-Smirnov at one in a thousand, column by column."""
  for column in range(ours.shape[1]):
    assert scipy.stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3, column


def shares(boxes, height, width):
  """Area, aspect, and place of boxes (top, left, height, width), each as a share."""
  top, left, h, w = boxes.astype(float).T
  return np.stack([h * w, h / w, top / (height - h + 1), left / (width - w + 1)], axis=-1)


def test_random_resized_boxes_are_distributed_as_torchvisions(judged):
  rng = generator()
  ours = np.array([crops.sample_box(300, 400, min_area=0.08, rng=rng) for _ in range(4000)])
  same_distribution(shares(ours, 300, 400), shares(judged["boxes"], 300, 400))


def erased_boxes(count, **options):
  rng, boxes = generator(), []
  image = np.full((60, 80, 3), 255, np.uint8)
  options = {"probability": 1.0, "mode": "const", "mean": (0,) * 3, "std": (1,) * 3} | options
  for _ in range(count):
    black = (random_erasing(image, rng, **options) == 0).all(axis=-1)
    rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
    if len(rows):
      boxes.append((rows[0], columns[0], len(rows), len(columns)))
      assert black[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
  assert (image == 255).all()
  return np.array(boxes)


def test_erased_boxes_are_distributed_as_timms(judged):
  same_distribution(
      shares(erased_boxes(4000), 60, 80), shares(judged["erasures"], 60, 80)
  )


def test_a_probability_of_a_quarter_erases_a_quarter():
  assert 200 < len(erased_boxes(1000, probability=0.25)) < 300
  assert len(erased_boxes(100, probability=0.0)) == 0


def test_erased_noise_is_standard_normal_once_normalised():
  mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
  image, rng = np.zeros((64, 64, 3), np.uint8), generator()
  options = {"probability": 1.0, "mean": tuple(mean), "std": tuple(std)}
  found = []
  for _ in range(200):
    erased = random_erasing(image, rng, mode="pixel", **options)
    box = erased.any(axis=-1)
    found.append((erased[box] / 255 - mean) / std)
  noise = np.concatenate(found)
  # Cut to 0..255, which is about -2.1 to 2.3 deviations.
  np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.03)
  np.testing.assert_allclose(np.quantile(noise, [0.1587, 0.5, 0.8413]), [-1, 0, 1], atol=0.03)
  constant = random_erasing(image, rng, mode="const", **options)
  assert set(map(tuple, constant.reshape(-1, 3).tolist())) == {(0, 0, 0), (124, 116, 104)}
  assert (random_erasing(image[:1], rng, mode="const", **options) == 0).all()


@pytest.mark.parametrize("options", [
    {"rand_augment": "2,15"}, {"rand_augment": "rand-m9-mstd0.5-inc1", "crop_filter": "random"},
    {"three_augment": True, "color_jitter": 0.3}, {"random_erasing": 0.9},
    {"crop": "simple", "three_augment": True, "color_jitter": 0.3},
])
def test_a_recipes_pixels_depend_on_the_generator_alone(options):
  transform = TrainTransform(image_size=24, **options)
  for image in pictures().values():
    made = [transform(image, generator(seed)) for seed in (1, 1, 2, 3, 4)]
    assert all(x.shape == (24, 24, 3) and x.dtype == np.uint8 for x in made)
    np.testing.assert_array_equal(made[0], made[1])
    assert len({x.tobytes() for x in made}) > 2 or image.std(axis=(0, 1)).max() == 0


def test_the_mean_colour_fills_corners():
  image = np.full((24, 24, 3), 200, np.uint8)
  transform = TrainTransform(
      image_size=24, crop="none", rand_augment="rand-m10-p1", mean=(0.1, 0.5, 0.9)
  )
  made = np.concatenate([transform(image, generator(seed)) for seed in range(60)])
  assert (made == (26, 128, 230)).all(axis=-1).any()

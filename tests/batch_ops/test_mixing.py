"""CutMix, and the choice between it and Mixup: boxes, shares, masks, and any mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vit_jax.batch_ops import cutmix
from vit_jax.batch_ops.mixing import mix_neighbours
from vit_jax.batch_ops.prepare import prepare_batch
from vit_jax.parallel.mesh import create_mesh, replicated, to_devices

HEIGHT, WIDTH = 20, 32


def batch(size=16, classes=10, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.standard_normal((size, HEIGHT, WIDTH, 3)).astype(np.float32)
  targets = np.eye(classes, dtype=np.float32)[np.arange(size) % classes]
  return images, targets, np.ones(size, np.float32)


STATIC = ("mixup_alpha", "cutmix_alpha", "per_pair")


@functools.partial(jax.jit, static_argnames=STATIC)
def mixed(arrays, key, mixup_alpha=0.0, cutmix_alpha=0.0, switch_probability=0.5, per_pair=False):
  return mix_neighbours(
      *arrays, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha,
      switch_probability=switch_probability, per_pair=per_pair, key=key,
  )


def box_of(own, other, result):
  """The box in which an example has its neighbour's pixels: top, bottom, left, right."""
  cut = (result == other).all(axis=-1)
  np.testing.assert_array_equal(np.where(cut[..., None], other, own), result)
  rows, columns = np.flatnonzero(cut.any(axis=1)), np.flatnonzero(cut.any(axis=0))
  if not len(rows):
    return (0, 0, 0, 0)
  box = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
  assert cut[box[0] : box[1], box[2] : box[3]].all()
  return tuple(map(int, box))


def share_of(box):
  return 1 - (box[1] - box[0]) * (box[3] - box[2]) / (HEIGHT * WIDTH)


@pytest.mark.parametrize("per_pair", [False, True])
def test_neighbours_exchange_a_box_and_its_exact_share_of_the_target(per_pair):
  arrays = images, targets, _ = batch()
  boxes = []
  for seed in range(8):
    result, soft = map(np.asarray, mixed(
        arrays, jax.random.key(seed), cutmix_alpha=1.0, per_pair=per_pair
    ))
    found = [box_of(images[i], images[i ^ 1], result[i]) for i in range(16)]
    assert found[::2] == found[1::2]
    for i, box in enumerate(found):
      share = share_of(box)
      np.testing.assert_allclose(
          soft[i], share * targets[i] + (1 - share) * targets[i ^ 1], atol=1e-6
      )
    boxes.append(found[::2])
  assert all(len(set(found)) == 1 for found in boxes) == (not per_pair)
  assert len({tuple(found) for found in boxes}) == 8


def test_boxes_are_distributed_as_in_the_paper():
  """Against NumPy, by the formulas of the paper: side, centre, clipping, exact area."""
  draws, rng = 6000, np.random.default_rng(0)
  own, share = jax.jit(functools.partial(
      cutmix.own_pixels, shape=(HEIGHT, WIDTH), alpha=1.0, count=draws
  ))(jax.random.key(0))
  np.testing.assert_allclose(np.asarray(own).mean(axis=(1, 2)), share, atol=1e-6)
  ratio = np.sqrt(1 - rng.beta(1, 1, draws))
  ends = []
  for length in (HEIGHT, WIDTH):
    stretch, centre = (ratio * length).astype(int), rng.integers(0, length, draws)
    low = np.clip(centre - stretch // 2, 0, length)
    ends.append((low, np.clip(centre + (stretch + 1) // 2, 0, length)))
  wanted = 1 - np.prod([high - low for low, high in ends], axis=0) / (HEIGHT * WIDTH)
  assert scipy.stats.ks_2samp(np.asarray(share), wanted).pvalue > 1e-3
  cut = ~np.asarray(own)
  some = cut.any(axis=(1, 2))
  for axis, (low, high) in zip((2, 1), ends):
    line = cut[some].any(axis=axis)
    exists = wanted < 1
    assert scipy.stats.ks_2samp(line.argmax(axis=1), low[exists]).pvalue > 1e-3
    assert scipy.stats.ks_2samp(line.sum(axis=1), (high - low)[exists]).pvalue > 1e-3


def test_a_box_may_be_the_whole_image_or_nothing():
  own, share = cutmix.own_pixels(jax.random.key(0), (4, 4), alpha=0.05, count=200)
  counts = np.asarray(own).sum(axis=(1, 2))
  assert counts.max() == 16 and counts.min() == 0
  np.testing.assert_allclose(share, counts / 16, atol=1e-6)


@pytest.mark.parametrize("options", [
    {"cutmix_alpha": 1.0, "mixup_alpha": 0.8},
    {"cutmix_alpha": 1.0, "mixup_alpha": 0.8, "per_pair": True},
])
def test_pairs_with_a_masked_member_are_left_alone(options):
  images, targets, mask = batch()
  mask[[2, 9, 12, 13]] = 0
  alone = np.isin(np.arange(16), [2, 3, 8, 9, 12, 13])
  moved = np.zeros(16)
  for seed in range(4):
    result, soft = mixed((images, targets, mask), jax.random.key(seed), **options)
    np.testing.assert_array_equal(result[alone], images[alone])
    np.testing.assert_array_equal(soft[alone], targets[alone])
    np.testing.assert_allclose(np.sum(soft, axis=1), 1, atol=1e-6)
    moved = np.maximum(moved, np.abs(result - images).max(axis=(1, 2, 3)))
  assert np.all(moved[~alone] > 0.01)


def kinds(result, images):
  """For each pair, whether every pixel is one of either image's."""
  return np.array([
      bool(((result[i] == images[i]) | (result[i] == images[i + 1])).all())
      for i in range(0, len(images), 2)
  ])


def test_cutmix_takes_its_share_of_batches():
  arrays = batch(2)
  both = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
  run = jax.jit(jax.vmap(
      lambda key, probability: mixed(arrays, key, switch_probability=probability, **both)[0],
      (0, None),
  ))
  keys = jax.random.split(jax.random.key(0), 500)
  for probability, tolerance in ((0.0, 0.004), (0.3, 0.075), (1.0, 0.004)):
    results = np.asarray(run(keys, probability))
    share = np.mean([kinds(result, arrays[0])[0] for result in results])
    assert share == pytest.approx(probability, abs=tolerance)


def test_pairs_choose_for_themselves_on_request():
  arrays = batch(64)
  both = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
  one, _ = mixed(arrays, jax.random.key(1), **both)
  assert len(set(kinds(np.asarray(one), arrays[0]))) == 1
  each, soft = map(np.asarray, mixed(arrays, jax.random.key(1), per_pair=True, **both))
  assert 4 < kinds(each, arrays[0]).sum() < 28
  assert len(set(np.round(soft[::2].max(axis=1), 5))) > 20


def test_the_key_decides():
  arrays = batch()
  run = lambda seed: mixed(arrays, jax.random.key(seed), cutmix_alpha=1.0, mixup_alpha=0.8)[0]
  np.testing.assert_array_equal(run(1), run(1))
  assert np.abs(run(1) - run(2)).max() > 0.01


@pytest.mark.parametrize("shape, per_pair", [((8, 1, 1), False), ((2, 2, 2), True)])
def test_a_mesh_mixes_like_one_device_and_moves_no_image(shape, per_pair):
  rng = np.random.default_rng(0)
  given = {
      "image": rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8),
      "labels": rng.integers(-1, 10, (32, 3)).astype(np.int32),
      "mask": (np.arange(32) % 16 != 5).astype(np.float32),
  }
  prepare = jax.jit(lambda batch, key: prepare_batch(
      batch, mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=10, label_smoothing=0.1,
      mixup_alpha=0.8, cutmix_alpha=1.0, mix_per_pair=per_pair, key=key,
  ))
  mesh = create_mesh(**dict(zip(("replica", "fsdp", "tensor"), shape)))
  spread = to_devices(given, mesh)
  for seed in (0, 1, 2):
    alone = prepare(given, jax.random.key(seed))
    key = jax.device_put(jax.random.key(seed), replicated(mesh))
    together = prepare(spread, key)
    for name, value in alone.items():
      np.testing.assert_array_equal(value, together[name])
  text = prepare.lower(spread, key).compile().as_text()
  # What pairs draw is spread over the devices, which then agree on when the draws are done.
  asked = r" = pred\[\]\S* all-reduce" if per_pair else "nothing"
  said = [
      line for line in text.splitlines()
      if re.search(r" (all-gather|all-reduce|all-to-all|collective-permute)(-start)?\(", line)
  ]
  assert not [line for line in said if not re.search(asked, line)], said


def test_no_alpha_changes_nothing():
  arrays = batch()
  result, soft = mixed(arrays, jax.random.key(0))
  np.testing.assert_array_equal(result, arrays[0])
  np.testing.assert_array_equal(soft, arrays[1])
  assert result.dtype == jnp.float32

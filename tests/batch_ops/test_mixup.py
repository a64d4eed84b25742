"""Mixup: which examples are mixed, by how much, and that the mesh does not matter."""

import functools
import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest
import scipy.stats

from vit_jax.batch_ops.mixing import mix_neighbours
from vit_jax.batch_ops.mixup import swap_neighbours


def mixup(images, targets, mask, *, alpha, key):
  return mix_neighbours(
      images, targets, mask, mixup_alpha=alpha, cutmix_alpha=0.0, switch_probability=0.5,
      per_pair=False, key=key,
  )


def batch(size=16, classes=10, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.standard_normal((size, 4, 4, 3)).astype(np.float32)
  targets = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, size)]
  return images, targets, np.ones(size, np.float32)


@functools.partial(jax.jit, static_argnames="alpha")
def mixed_batch(images, targets, mask, *, alpha, key):
  return mixup(images, targets, mask, alpha=alpha, key=key)


@functools.partial(jax.jit, static_argnames="alpha")
def coefficient_of(key, alpha):
  """The share that a lone pair's first member keeps of itself."""
  images = np.array([1.0, 0.0], np.float32).reshape(2, 1, 1, 1)
  mixed, _ = mixup(images, np.eye(2), np.ones(2), alpha=alpha, key=key)
  return mixed[0, 0, 0, 0]


def test_neighbours_are_mixed_with_one_coefficient():
  images, targets, mask = batch()
  key = jax.random.key(3)
  mixed, soft = mixed_batch(images, targets, mask, alpha=0.8, key=key)
  share = float(coefficient_of(key, 0.8))
  assert 0.5 <= share < 0.99
  for i in range(16):
    other = i + 1 if i % 2 == 0 else i - 1
    np.testing.assert_allclose(
        mixed[i], share * images[i] + (1 - share) * images[other], atol=1e-6
    )
    np.testing.assert_allclose(
        soft[i], share * targets[i] + (1 - share) * targets[other], atol=1e-6
    )


def test_targets_stay_probabilities():
  images, targets, mask = batch()
  _, soft = mixed_batch(images, targets, mask, alpha=0.8, key=jax.random.key(1))
  np.testing.assert_allclose(soft.sum(axis=1), 1.0, atol=1e-6)
  assert np.all(soft >= 0)


def test_pairs_with_a_masked_member_are_left_alone():
  images, targets, mask = batch()
  mask[[2, 9, 12, 13]] = 0
  alone = np.isin(np.arange(16), [2, 3, 8, 9, 12, 13])
  mixed, soft = mixed_batch(images, targets, mask, alpha=0.8, key=jax.random.key(3))
  np.testing.assert_array_equal(mixed[alone], images[alone])
  np.testing.assert_array_equal(soft[alone], targets[alone])
  moved = np.abs(mixed - images).max(axis=(1, 2, 3))
  assert np.all(moved[~alone] > 0.01)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_coefficients_are_a_folded_beta(alpha):
  draws = 20_000
  keys = jax.random.split(jax.random.key(0), draws)
  shares = np.asarray(jax.jit(jax.vmap(lambda key: coefficient_of(key, alpha)))(keys))
  assert shares.min() >= 0.5 and shares.max() <= 1.0
  # The two halves of a symmetric density, folded on each other: twice the upper half.  Points
  # up to 0.999, beyond which float32 rounds to 1; the bound is Kolmogorov's at 1 %.
  points = np.linspace(0.501, 0.999, 100)
  folded = 2 * scipy.stats.beta(alpha, alpha).cdf(points) - 1
  measured = (shares[None] <= points[:, None]).mean(axis=1)
  assert np.abs(measured - folded).max() < 1.63 / draws**0.5


def test_the_key_decides():
  images, targets, mask = batch()
  run = lambda seed: mixed_batch(images, targets, mask, alpha=0.8, key=jax.random.key(seed))[0]
  np.testing.assert_array_equal(run(1), run(1))
  assert np.abs(run(1) - run(2)).max() > 0.01


def test_swapping_twice_changes_nothing():
  x = np.arange(24).reshape(6, 4)
  np.testing.assert_array_equal(swap_neighbours(x)[:, 0], [4, 0, 12, 8, 20, 16])
  np.testing.assert_array_equal(swap_neighbours(swap_neighbours(x)), x)


def test_eight_devices_mix_like_one_and_without_communication():
  arrays = batch(32)
  key = jax.random.key(3)
  run = jax.jit(lambda *a: mixup(*a, alpha=0.8, key=key))
  alone = run(*arrays)
  mesh = Mesh(np.array(jax.devices()), ("data",))
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  spread = [jax.device_put(a, sharding) for a in arrays]
  together = run(*spread)
  for one, eight in zip(alone, together):
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(one, eight)
  text = run.lower(*spread).compile().as_text()
  assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", text)

"""Exact counts over a split, with pads, unreadable images and a mesh."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest
import scipy.special

from vit_jax.evaluators.classification import Classification

EXAMPLES, CLASSES, BATCH = 37, 4, 16


@pytest.fixture(scope="module")
def mesh():
  return Mesh(np.array(jax.devices()), ("data",))


def split():
  """A linear problem: logits are features times params."""
  rng = np.random.default_rng(0)
  features = rng.standard_normal((EXAMPLES, 3)).astype(np.float32)
  return features, rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)


def params():
  return np.random.default_rng(1).standard_normal((3, CLASSES)).astype(np.float32)


def evaluator(mesh, *, unreadable=(), pad=0.0, name="validation"):
  """Over ceil(37 / 16) batches, the last padded; unreadable examples hold the pad's content."""
  features, labels = split()
  size = -(-EXAMPLES // BATCH) * BATCH
  image = np.full((size, 3), pad, np.float32)
  label, mask = np.zeros(size, np.int32), np.zeros(size, np.float32)
  image[:EXAMPLES], label[:EXAMPLES], mask[:EXAMPLES] = features, labels, 1
  image[list(unreadable)], mask[list(unreadable)] = pad, 0
  sharding = NamedSharding(mesh, PartitionSpec("data"))

  def batches():
    for start in range(0, size, BATCH):
      part = slice(start, start + BATCH)
      host = {"image": image[part], "label": label[part], "mask": mask[part]}
      yield jax.device_put(host, sharding)

  return Classification(
      name=name,
      logits=lambda p, batch: batch["image"] @ p,
      batches=batches,
      examples=EXAMPLES,
      out_sharding=NamedSharding(mesh, PartitionSpec()),
  )


def expected(readable):
  features, labels = split()
  logits = features.astype(np.float64) @ params().astype(np.float64)
  losses = -scipy.special.log_softmax(logits, axis=1)[np.arange(EXAMPLES), labels]
  correct = logits.argmax(axis=1) == labels
  return {
      "accuracy": correct[readable].sum() / EXAMPLES,
      "loss": pytest.approx(losses[readable].mean(), rel=1e-6),
      "examples": EXAMPLES,
      "unreadable": EXAMPLES - readable.sum(),
  }


@pytest.mark.parametrize("pad", [0.0, np.nan, np.inf])
def test_pads_do_not_count_whatever_they_hold(mesh, pad):
  got = evaluator(mesh, pad=pad).run(params())
  assert got == expected(np.ones(EXAMPLES, bool))
  assert 0 < got["accuracy"] < 1


@pytest.mark.parametrize("pad", [0.0, np.nan])
def test_unreadable_images_count_as_wrong_and_are_reported(mesh, pad):
  readable = np.ones(EXAMPLES, bool)
  readable[[0, 5, 36]] = False
  got = evaluator(mesh, unreadable=[0, 5, 36], pad=pad).run(params())
  assert got == expected(readable)
  assert got["unreadable"] == 3


def test_a_split_of_nothing_readable_is_all_wrong(mesh):
  got = evaluator(mesh, unreadable=range(EXAMPLES)).run(params())
  assert got == {"accuracy": 0, "loss": 0, "examples": EXAMPLES, "unreadable": EXAMPLES}


def test_one_device_counts_the_same():
  one = Mesh(np.array(jax.devices()[:1]), ("data",))
  assert evaluator(one).run(params()) == expected(np.ones(EXAMPLES, bool))


def test_it_runs_again_on_other_parameters(mesh):
  measured = evaluator(mesh)
  first = measured.run(params())
  assert measured.run(-params())["accuracy"] != first["accuracy"]
  assert measured.run(params()) == first


def test_results_are_plain_numbers(mesh):
  assert {type(v) for v in evaluator(mesh).run(params()).values()} <= {int, float}

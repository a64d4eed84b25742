"""Exact counts over a split, with pads, unreadable images and a mesh."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest
import scipy.special
import torch

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


def test_several_labels_and_none(mesh):
  """Right is the best prediction that is among the labels; what has none is left out."""
  features, _ = split()
  rng = np.random.default_rng(3)
  size = -(-EXAMPLES // BATCH) * BATCH
  labels = np.full((size, 3), -1, np.int32)
  labels[EXAMPLES:, 0] = 0  # pads
  for row in labels[:EXAMPLES]:
    own = rng.choice(CLASSES, rng.integers(0, 4), replace=False)
    row[: len(own)] = np.sort(own)
  labels[5] = [0, 1, 2]
  image = np.zeros((size, 3), np.float32)
  image[:EXAMPLES] = features
  mask = (labels[:, 0] >= 0).astype(np.float32)
  mask[EXAMPLES:] = mask[5] = 0  # the sixth is unreadable
  sharding = NamedSharding(mesh, PartitionSpec("data"))

  def batches():
    for start in range(0, size, BATCH):
      part = slice(start, start + BATCH)
      yield jax.device_put(
          {"image": image[part], "label": labels[part, 0], "labels": labels[part],
           "mask": mask[part]}, sharding,
      )

  got = Classification(
      name="real", logits=lambda p, batch: batch["image"] @ p, batches=batches,
      examples=EXAMPLES, out_sharding=NamedSharding(mesh, PartitionSpec()),
  ).run(params())
  logits = features.astype(np.float64) @ params().astype(np.float64)
  log_probabilities = scipy.special.log_softmax(logits, axis=1)
  right, losses, counted = 0, [], 0
  for i, row in enumerate(labels[:EXAMPLES]):
    own = row[row >= 0]
    counted += len(own) > 0
    if len(own) and i != 5:
      right += logits[i].argmax() in own
      losses.append(-log_probabilities[i, own].mean())
  assert 0 < right < counted < EXAMPLES
  assert got == {
      "accuracy": right / counted, "loss": pytest.approx(np.mean(losses), rel=1e-6),
      "examples": counted, "unreadable": 1,
  }


def top5_problem(*, classes, several):
  """Scores with many ties, and one to three labels each."""
  rng = np.random.default_rng(4)
  scores = rng.integers(0, 5, (EXAMPLES, classes)).astype(np.float32)
  labels = np.full((EXAMPLES, 3), -1, np.int32)
  for row in labels:
    own = rng.choice(classes, rng.integers(1, 4 if several else 2), replace=False)
    row[: len(own)] = np.sort(own)
  return scores, labels


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
@pytest.mark.parametrize("classes", [6, 30])
def test_top5_with_ties(mesh, classes, several):
  """A stable sort in NumPy: of equal scores the lower class comes first."""
  scores, labels = top5_problem(classes=classes, several=several)
  size = -(-EXAMPLES // BATCH) * BATCH
  pad = lambda rows: np.concatenate(
      [rows, np.zeros((size - EXAMPLES, *rows.shape[1:]), rows.dtype)]
  )
  mask = np.ones(EXAMPLES, np.float32)
  mask[2] = 0
  host = {"image": pad(scores), "label": pad(labels[:, 0]), "mask": pad(mask)}
  if several:
    host["labels"] = pad(labels)
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  got = Classification(
      name="top5", logits=lambda p, batch: batch["image"],
      batches=lambda: (
          jax.device_put({k: v[i : i + BATCH] for k, v in host.items()}, sharding)
          for i in range(0, size, BATCH)
      ),
      examples=EXAMPLES, out_sharding=NamedSharding(mesh, PartitionSpec()),
  ).run({})
  order = np.argsort(-scores, axis=1, kind="stable")
  right = [
      [bool({*order[i, :best]} & {*labels[i]}) for i in range(EXAMPLES) if i != 2]
      for best in (1, 5)
  ]
  assert got["accuracy"] == sum(right[0]) / EXAMPLES
  assert got["accuracy_top5"] == sum(right[1]) / EXAMPLES
  assert 0 < got["accuracy"] < got["accuracy_top5"] < 1


def test_a_model_that_answers_nan_is_never_right(mesh):
  got = evaluator(mesh).run(params() * np.nan)
  assert got["accuracy"] == 0 and np.isnan(got["loss"])


def test_five_classes_have_no_top5(mesh):
  assert "accuracy_top5" not in evaluator(mesh).run(params())


def test_counts_beyond_what_float32_and_int32_hold(mesh):
  """300 batches of 2^24 + 1 right examples, whose counting is given and whose adding is tested."""
  measured = evaluator(mesh)
  step = {
      "correct": np.int32(2**24 + 1), "loss": np.float32(2**24), "readable": np.int32(2**24 + 1),
      "unlabeled": np.int32(0),
  }
  measured._count = lambda params, batch: step
  measured._batches = lambda: range(300)
  measured._examples = 300 * (2**24 + 1)
  got = measured.run(params())
  assert got["accuracy"] == 1 and got["unreadable"] == 0 and got["examples"] > 2**32
  assert got["loss"] == 2**24 / (2**24 + 1)


@pytest.mark.torch
@pytest.mark.parametrize("several", [False, True])
def test_the_loss_of_sigmoids_is_pytorchs(mesh, several):
  features, labels = split()
  rows = labels[:, None]
  if several:
    rows = np.stack([labels, np.where(labels == 2, -1, 2)], axis=1)
  size = -(-EXAMPLES // BATCH) * BATCH
  pad = ((0, size - EXAMPLES), (0, 0))
  batch = {
      "image": np.pad(features, pad), "label": np.pad(rows, pad)[:, 0], "labels": np.pad(rows, pad),
      "mask": np.arange(size) < EXAMPLES,
  }
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  got = Classification(
      name="x", logits=lambda p, b: b["image"] @ p, examples=EXAMPLES, loss_name="sigmoid",
      batches=lambda: iter([jax.device_put(batch, sharding)]),
      out_sharding=NamedSharding(mesh, PartitionSpec()),
  ).run(params())
  target = np.zeros((EXAMPLES, CLASSES), np.float32)
  for row, own in zip(target, rows):
    row[own[own >= 0]] = 1
  wanted = torch.nn.functional.binary_cross_entropy_with_logits(
      torch.tensor(features @ params()), torch.tensor(target), reduction="sum"
  )
  assert got["loss"] == pytest.approx(float(wanted) / EXAMPLES, rel=1e-5)

"""The supervised objective against the definition in float64."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special
import torch

from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised

CLASSES, BATCH = 5, 12
OBJECTIVE = Supervised(
    ViT(
        width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4, image_size=8,
        num_classes=CLASSES, dropout=0.3, scan=True,
    )
)
APPLY = jax.jit(OBJECTIVE.model.apply)
RUN = jax.jit(OBJECTIVE.loss, static_argnames="train")


@pytest.fixture(scope="module")
def params():
  """A model whose logits are of size one; its head would start at zero."""
  rng = np.random.default_rng(1)
  image = jax.ShapeDtypeStruct((BATCH, 8, 8, 3), np.float32)
  shapes, state = jax.eval_shape(OBJECTIVE.init, jax.random.key(0), {"image": image})
  assert state == {}
  return jax.tree.map(lambda a: 0.3 * rng.standard_normal(a.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  target = rng.dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)
  target[:6] = np.eye(CLASSES)[rng.integers(0, CLASSES, 6)]
  return {
      "image": rng.standard_normal((BATCH, 8, 8, 3)).astype(np.float32),
      "target": target,
      "mask": np.ones(BATCH, np.float32),
  }


def loss(params, batch, *, train=False, seed=0):
  return RUN(params, {}, batch, jax.random.key(seed), 0, train=train)


def expected(params, batch):
  """Cross-entropies in nats and whether each prediction is right, in float64."""
  logits = np.asarray(APPLY({"params": params}, batch["image"]), np.float64)
  losses = -(batch["target"] * scipy.special.log_softmax(logits, axis=1)).sum(axis=1)
  return losses, logits.argmax(axis=1) == batch["target"].argmax(axis=1)


def test_the_loss_is_the_summed_cross_entropy(params, batch):
  losses, correct = expected(params, batch)
  assert losses.std() > 0.1
  loss_sum, weight, metrics, state = loss(params, batch)
  assert loss_sum == pytest.approx(losses.sum(), rel=1e-6)
  assert weight == BATCH and state == {}
  assert metrics.keys() == {"accuracy"}
  assert tuple(map(float, metrics["accuracy"])) == (correct.sum(), BATCH)


def test_masked_examples_do_not_count(params, batch):
  mask = np.ones(BATCH, np.float32)
  mask[[0, 5, 7, 11]] = 0
  losses, correct = expected(params, batch)
  loss_sum, weight, metrics, _ = loss(params, batch | {"mask": mask})
  assert loss_sum == pytest.approx((losses * mask).sum(), rel=1e-6)
  assert weight == BATCH - 4
  assert tuple(map(float, metrics["accuracy"])) == ((correct * mask).sum(), BATCH - 4)


def test_masked_examples_have_no_gradient(params, batch):
  mask = np.ones(BATCH, np.float32)
  mask[3] = 0
  gradient = jax.jit(jax.grad(lambda p, b: loss(p, b)[0]))
  wanted = gradient(params, batch | {"mask": mask})
  image = batch["image"].copy()
  image[3] = 100 - image[3]
  got = gradient(params, batch | {"mask": mask, "image": image})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, wanted)


def test_an_empty_batch_is_zero_over_zero_weight(params, batch):
  loss_sum, weight, _, _ = loss(params, batch | {"mask": np.zeros(BATCH, np.float32)})
  assert loss_sum == 0 and weight == 0


def test_parts_of_a_batch_add_up(params, batch):
  halves = [jax.tree.map(lambda a: a[part], batch) for part in (slice(0, 6), slice(6, 12))]
  whole = loss(params, batch)
  parts = [loss(params, half) for half in halves]
  assert sum(part[0] for part in parts) == pytest.approx(float(whole[0]), rel=1e-6)
  assert sum(part[1] for part in parts) == whole[1]


def test_training_draws_dropout_from_the_key(params, batch):
  evaluated = float(loss(params, batch)[0])
  trained = [float(loss(params, batch, train=True, seed=seed)[0]) for seed in (1, 1, 2)]
  assert trained[0] == trained[1] != trained[2]
  assert evaluated not in trained


def test_a_new_model_is_undecided(batch):
  params, state = jax.jit(OBJECTIVE.init)(jax.random.key(0), batch)
  assert state == {}
  assert params["head"]["kernel"].shape == (16, CLASSES)
  loss_sum, weight, _, _ = loss(params, batch)
  assert loss_sum / weight == pytest.approx(np.log(CLASSES), rel=1e-6)


def multi_hot_targets():
  rng = np.random.default_rng(4)
  return (rng.random((BATCH, CLASSES)) < 0.4).astype(np.float32)


WEIGHTS = (0.5, 1.0, 2.0, 3.0, 0.25)


@pytest.mark.torch
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_sigmoid_losses_are_pytorchs(params, batch, weights):
  objective = dataclasses.replace(OBJECTIVE, loss_name="sigmoid", class_weights=weights)
  target = multi_hot_targets()
  logits = torch.tensor(np.asarray(APPLY({"params": params}, batch["image"])))
  wanted = torch.nn.functional.binary_cross_entropy_with_logits(
      logits, torch.tensor(target), reduction="sum",
      weight=None if weights is None else torch.tensor(weights),
  )
  loss_sum, weight, metrics, _ = objective.loss(
      params, {}, batch | {"target": target}, jax.random.key(0), 0, False
  )
  assert loss_sum == pytest.approx(float(wanted), rel=1e-5) and weight == BATCH
  hits = target[np.arange(BATCH), logits.argmax(1)] == target.max(1)
  assert tuple(map(float, metrics["accuracy"])) == (hits.sum(), BATCH) and 0 < hits.sum() < BATCH


@pytest.mark.torch
def test_class_weights_are_pytorchs(params, batch):
  objective = dataclasses.replace(OBJECTIVE, class_weights=WEIGHTS)
  labels = np.random.default_rng(5).integers(0, CLASSES, BATCH)
  target = np.eye(CLASSES, dtype=np.float32)[labels]
  logits = torch.tensor(np.asarray(APPLY({"params": params}, batch["image"])))
  wanted = torch.nn.functional.cross_entropy(
      logits, torch.tensor(labels), weight=torch.tensor(WEIGHTS)
  )
  loss_sum, weight, _, _ = objective.loss(
      params, {}, batch | {"target": target}, jax.random.key(0), 0, False
  )
  assert loss_sum / weight == pytest.approx(float(wanted), rel=1e-5)


def test_an_unknown_loss_is_refused():
  with pytest.raises(ValueError, match="unknown loss 'sigmoids'.*'softmax', 'sigmoid'"):
    dataclasses.replace(OBJECTIVE, loss_name="sigmoids")


def test_the_head_starts_at_its_bias(batch):
  objective = dataclasses.replace(OBJECTIVE, loss_name="sigmoid", head_bias=-10.0)
  params, _ = jax.jit(objective.init)(jax.random.key(0), batch)
  plain, _ = jax.jit(OBJECTIVE.init)(jax.random.key(0), batch)
  np.testing.assert_array_equal(params["head"]["bias"], np.full(CLASSES, -10, np.float32))
  params["head"]["bias"] = plain["head"]["bias"]
  jax.tree.map(np.testing.assert_array_equal, params, plain)


def test_both_heads_start_at_their_bias(batch):
  """The answer is their mean, which a second head at 0 would bring to -5."""
  model = OBJECTIVE.model.clone(distillation_token=True, distillation_head=True)
  objective = Supervised(model, loss_name="sigmoid", head_bias=-10.0)
  params, _ = jax.jit(objective.init)(jax.random.key(0), batch)
  np.testing.assert_array_equal(model.apply({"params": params}, batch["image"]), -10.0)


def test_several_labels_share_a_softmax_target(params, batch):
  target = multi_hot_targets()
  target[:, 0] = 1
  losses, _ = expected(params, batch | {"target": target / target.sum(axis=1, keepdims=True)})
  assert loss(params, batch | {"target": target})[0] == pytest.approx(losses.sum(), rel=1e-5)

"""Ridge regression on a few digits of each class, by scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from digit_features import CLASSES, digit_splits, readable_rows
from vit_jax.evaluators import few_shot as few_shot_lib
from vit_jax.evaluators.features import Features
from vit_jax.evaluators.few_shot import L2S, Regression, choose, few_shot


def judge(values, labels, tests, l2):
  """Weights `[D + 1, C]` and predictions of scikit-learn's Ridge, with big_vision's whitening."""
  mean, std = values.mean(axis=0), values.std(axis=0) + 1e-5
  white = lambda rows: np.hstack([(rows - mean) / std, np.full((len(rows), 1), 100.0)])
  model = Ridge(alpha=l2, fit_intercept=False, solver="svd")
  model.fit(white(values), 2.0 * np.eye(CLASSES)[labels] - 1)
  return model.coef_.T, model.predict(white(tests)).argmax(axis=1)


@pytest.mark.parametrize("shots", [1, 25])  # fewer examples than features, and more
@pytest.mark.parametrize("l2", [2.0**-10, 2.0**10, 2.0**19])
def test_weights_and_predictions_as_scikit_learn(shots, l2):
  train, test = digit_splits()
  values, labels = readable_rows(train)
  chosen, _ = choose(train.labels, shots=shots, seed=0, classes=CLASSES)
  weights, predicted = judge(values[chosen], labels[chosen], readable_rows(test)[0], l2)
  regression = Regression(train.values[chosen], train.labels[chosen], classes=CLASSES)
  np.testing.assert_allclose(
      np.vstack(regression.weights(l2)), weights, rtol=1e-6, atol=1e-9
  )
  np.testing.assert_array_equal(regression.predict(test.values, [1.0, l2])[1], predicted)


def test_the_whole_measure(monkeypatch):
  """The mean over three seeds; held-out training images choose the ridge."""
  sweep = 2.0 ** np.array([-10, 3, 7, 10, 15])
  monkeypatch.setattr(few_shot_lib, "L2S", sweep)
  monkeypatch.setattr(few_shot_lib, "_ROWS", 100)
  train, test = digit_splits(unreadable=[4, 9])
  values, labels = readable_rows(train)
  tests, own = readable_rows(test)
  got = few_shot(train, test, classes=CLASSES)
  assert got["few_shot_1"] < got["few_shot_5"] < got["few_shot_25"] < 0.95
  for shots in (1, 5, 10, 25):
    held_out_right, big_vision, with_best = np.zeros(len(sweep)), [], []
    for seed in (0, 1, 2):
      chosen, held_out = choose(labels, shots=shots, seed=seed, classes=CLASSES)
      few = values[chosen], labels[chosen]
      for i, l2 in enumerate(sweep):
        held_out_right[i] += np.sum(judge(*few, values[held_out], l2)[1] == labels[held_out])
      big_vision.append(np.sum(judge(*few, tests, 1024.0)[1] == own) / 497)
      best = got[f"few_shot_{shots}_l2"]
      with_best.append(np.sum(judge(*few, tests, best)[1] == own) / 497)
    assert held_out_right[sweep == best] == held_out_right.max()
    assert not np.any(held_out_right[sweep > best] == held_out_right.max())
    assert got[f"few_shot_{shots}_big_vision"] == pytest.approx(np.mean(big_vision))
    assert got[f"few_shot_{shots}"] == pytest.approx(np.mean(with_best))


def test_the_sweep_is_big_visions():
  assert L2S.tolist() == [2.0**i for i in range(-10, 20)]


def test_choice_is_big_visions_and_leaves_the_held_out_alone():
  labels = digit_splits()[0].labels
  rng = np.random.default_rng(2)
  expected = [rng.permutation(np.where(labels == c)[0])[:5] for c in range(CLASSES)]
  chosen, held_out = choose(labels, shots=5, seed=2, classes=CLASSES)
  np.testing.assert_array_equal(chosen, np.concatenate(expected))
  assert not set(chosen) & set(held_out)
  counts = np.bincount(labels)
  np.testing.assert_array_equal(np.bincount(labels[held_out]), counts // 5)
  assert set(choose(labels, shots=1, seed=2, classes=CLASSES)[0]) < set(chosen)
  other, _ = choose(labels, shots=5, seed=1, classes=CLASSES)
  assert set(other) != set(chosen)


def test_held_out_images_are_bounded(monkeypatch):
  monkeypatch.setattr(few_shot_lib, "_HELD_OUT", 40)
  labels = digit_splits()[0].labels
  assert len(choose(labels, shots=1, seed=0, classes=CLASSES)[1]) == 40


def test_classes_of_two_images_and_none():
  """All images are shots, nothing is held out; the class without images does no harm."""
  train, test = digit_splits()
  rows = np.concatenate([np.flatnonzero(train.labels == c)[:2] for c in range(9)])
  few = Features(train.values[rows], train.labels[rows], train.readable[rows])
  got = few_shot(few, test, classes=CLASSES)
  assert {got[f"few_shot_{shots}_l2"] for shots in (5, 10, 25)} == {1024.0}
  assert got["few_shot_5"] == got["few_shot_5_big_vision"] == got["few_shot_25"] > 0.3

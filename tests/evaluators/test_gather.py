"""Rows of a split arrive once each, in order, whatever the mesh and the batch."""

import numpy as np
import pytest

from digit_features import data_mesh, digits, on_mesh
from vit_jax.errors import ConfigError
from vit_jax.evaluators.gather import Gather


def columns(count=101):
  values, labels = digits()
  mask = np.ones(count, np.float32)
  mask[[3, 100]] = 0
  return {"image": values[:count], "label": labels[:count], "mask": mask}


def double(params, batch):
  return {"doubled": params * batch["image"]}


@pytest.mark.parametrize("devices, batch_size", [(1, 7), (8, 16), (8, 128)])
def test_every_row_once_and_in_order(devices, batch_size):
  split = columns()
  made = Gather(function=double, **on_mesh(data_mesh(devices), batch_size, **split))
  for factor in (2, 4):
    got = made.run(np.float32(factor))
    np.testing.assert_array_equal(got["doubled"], factor * split["image"])
    np.testing.assert_array_equal(got["labels"], split["label"])
    np.testing.assert_array_equal(got["readable"], split["mask"] > 0)


def test_too_few_batches():
  given = on_mesh(data_mesh(), 16, **columns()) | {"examples": 113}
  with pytest.raises(ValueError, match="hold 112 examples, the split 113"):
    Gather(function=double, **given).run(np.float32(1))


def test_several_labels_are_refused():
  split = columns()
  split["labels"] = np.stack([split["label"], -np.ones_like(split["label"])], axis=1)
  with pytest.raises(ConfigError, match="up to 2 labels an image"):
    Gather(function=double, **on_mesh(data_mesh(), 16, **split)).run(np.float32(1))

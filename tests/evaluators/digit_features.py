"""Real images as features: scikit-learn's 1797 digits of 8 x 8 pixels; and splits on a mesh."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
from sklearn.datasets import load_digits

from vit_jax.evaluators.features import Features

CLASSES = 10


def digits():
  """Pixels float32 `[1797, 64]` in 0..16 and labels int32."""
  data = load_digits()
  return data.data.astype(np.float32), data.target.astype(np.int32)


def digit_splits(*, unreadable=()):
  """Features of 1300 training and 497 test digits; those unreadable hold NaN, in both."""
  values, labels = digits()
  readable = np.ones(len(labels), bool)
  readable[[*unreadable, *(1300 + np.array(unreadable, int))]] = False
  values[~readable] = np.nan
  split = lambda part: Features(values[part], labels[part], readable[part])
  return split(slice(1300)), split(slice(1300, None))


def readable_rows(features):
  """Values float64 and labels of what is readable, for the judges."""
  return features.values[features.readable].astype(np.float64), features.labels[features.readable]


def data_mesh(devices=8):
  return Mesh(np.array(jax.devices()[:devices]), ("data",))


def on_mesh(mesh, batch_size, **columns):
  """Keyword arguments of a collector: batches of the columns `[N, ...]`, zeros behind them."""
  examples = len(columns["label"])
  size = -(-examples // batch_size) * batch_size
  padded = {
      name: np.concatenate([rows, np.zeros((size - examples, *rows.shape[1:]), rows.dtype)])
      for name, rows in columns.items()
  }
  sharding = NamedSharding(mesh, PartitionSpec("data"))

  def batches():
    for start in range(0, size, batch_size):
      part = {name: rows[start : start + batch_size] for name, rows in padded.items()}
      yield jax.device_put(part, sharding)

  return {
      "batches": batches, "examples": examples,
      "out_sharding": NamedSharding(mesh, PartitionSpec()),
  }

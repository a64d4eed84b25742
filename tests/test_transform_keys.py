"""Every key of a transform reaches it, through the command line and the stored JSON."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import plan, train_input
from vit_jax.data.augment import CROP_FILTERS, CROPS, TrainTransform
from vit_jax.data.erasing import MODES
from vit_jax.errors import ConfigError
from vit_jax.resolve import resolve
from vit_jax.train_input import train_transform

HOST = {
    "crop": "simple", "crop_min_area": "0.05", "crop_padding": "4", "crop_short_side": "256",
    "crop_filter": "bicubic", "antialias": "True", "flip": "False",
    "rand_augment": "rand-m9-mstd0.5-inc1", "three_augment": "True", "color_jitter": "0.3",
    "random_erasing": "0.25", "random_erasing_mode": "const", "mean": "(0.1, 0.2, 0.3)",
    "std": "(0.2, 0.3, 0.4)", "exif_orientation": "False", "scaled_decoding": "True",
}


def configured(overrides):
  config = config_lib.override(config_lib.complete({}, origin="a test"), overrides)
  stored = config_lib.from_json(config_lib.to_json(config), origin="a test")
  assert stored == config
  return resolve(stored, checkpoint=None, platform="cpu")


def test_every_attribute_of_the_transform_has_its_key():
  assert {f.name for f in dataclasses.fields(TrainTransform)} - {"image_size"} == set(HOST)


@pytest.mark.parametrize("name", HOST)
def test_a_key_of_the_host_reaches_the_transform(name):
  before = train_transform(configured({}))
  config = configured({f"input.{name}": HOST[name]})
  after = train_transform(config)
  changed = {
      f.name for f in dataclasses.fields(after)
      if getattr(after, f.name) != getattr(before, f.name)
  }
  assert changed == {name}
  assert getattr(after, name) == config.input[name]


def test_the_image_size_reaches_the_transform():
  assert train_transform(configured({"model.image_size": "192"})).image_size == 192


def test_the_choices_are_those_of_the_transform():
  fields = config_lib.FIELDS
  assert fields["input.crop"].choices == CROPS
  assert fields["input.crop_filter"].choices == CROP_FILTERS
  assert fields["input.random_erasing_mode"].choices == MODES


@pytest.mark.parametrize("text", ["2,15", "2, 10", "none", "rand-m9-mstd0.5-inc1"])
def test_both_dialects_can_be_written_on_a_command_line(text):
  transform = train_transform(configured({"input.rand_augment": text}))
  assert transform.rand_augment == (None if text == "none" else text)
  assert bool(transform.changes_pixels) == (text != "none")


def test_a_wrong_dialect_is_refused_before_anything_runs():
  with pytest.raises(ConfigError, match="config.input.rand_augment is 'randaug'"):
    train_transform(configured({"input.rand_augment": "randaug"}))


DEVICE = {
    "mixup_alpha": "0.8", "cutmix_alpha": "1.0", "switch_probability": "0.3",
    "mix_per_pair": "True", "label_smoothing": "0.1",
}


def test_the_keys_of_the_device_reach_the_batch(monkeypatch):
  monkeypatch.setattr(plan, "make_train_step", lambda *_, prepare, **__: prepare)
  assert set(config_lib.complete({}, origin="a test").batch_ops) == set(DEVICE)
  model = {
      "model.variant": "Ti/16", "model.depth": "1", "model.image_size": "32", "total": "2 steps"
  }
  overrides = {f"batch_ops.{name}": text for name, text in DEVICE.items()}
  config = configured(model | overrides)
  prepare = plan.make_plan(config, examples=64, num_classes=3).train_step
  assert {name: prepare.keywords[name] for name in DEVICE} == dict(config.batch_ops)
  assert dict(config.batch_ops) == {
      "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_probability": 0.3, "mix_per_pair": True,
      "label_smoothing": 0.1,
  }
  rng = np.random.default_rng(0)
  batch = {
      "image": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
      "label": np.array([0, 1, 2, 0]), "mask": np.ones(4, np.float32),
  }
  target = prepare(batch, key=jax.random.key(0))["target"]
  assert float(target.min()) == pytest.approx(0.1 / 3)


def test_what_the_stream_is_given(monkeypatch):
  given = {}

  def train_batches(source, **arguments):
    given.update(arguments)
    yield {}
    yield {}

  monkeypatch.setattr(train_input, "train_batches", train_batches)
  monkeypatch.setattr(train_input.mesh_lib, "process_slice", lambda mesh: (0, 1))
  monkeypatch.setattr(train_input.mesh_lib, "to_devices", lambda batch, mesh: batch)
  config = configured({
      "input.repeated_augmentation": "3", "input.workers": "2", "input.threads": "5",
  })
  plan = types.SimpleNamespace(config=config, mesh=None)
  with train_input.train_input(plan, None, None, 0, None) as batches:
    next(batches)
  assert given["repeats"] == 3 and given["workers"] == 2 and given["threads"] == 5


@pytest.mark.parametrize("key", [f"input.{name}" for name in HOST if name not in (
    "mean", "std", "exif_orientation"
)] + ["input.repeated_augmentation"] + [f"batch_ops.{name}" for name in DEVICE])
def test_what_changes_training_is_part_of_the_recipe(key):
  assert config_lib.FIELDS[key].key_class == config_lib.RECIPE

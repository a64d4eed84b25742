"""What `vit-jax evaluate --measures` can tell of a checkpoint beside its accuracy."""

import functools
import json
from typing import Callable, Sequence

from etils import epath
import jax

from vit_jax.bucket import atomic
from vit_jax.errors import ConfigError
from vit_jax.evaluators import confusion, few_shot, knn, linear_probe
from vit_jax.evaluators.calibration import calibration_error, reliability
from vit_jax.evaluators.features import FeatureExtractor
from vit_jax.evaluators.predictions import PredictionCollector
from vit_jax.loading import Checkpoint, with_classes
from vit_jax.models.vit import ViT

CLASSIFICATION = "classification"
_OF_PREDICTIONS = ("macro_f1", "calibration", "confusion")
_OF_FEATURES = ("knn", "few_shot", "linear_probe")
NAMES = (CLASSIFICATION, *_OF_PREDICTIONS, *_OF_FEATURES)
_WITH_FILES = ("calibration", "confusion")
# What an evaluation's JSON says besides where its figures are not of the checkpoint as it is, and
# the config key that asked for it.
OTHERWISE = {
    "classes": None, "image_size": "model.image_size",
    "position_image_size": "model.position_image_size",
    "position_interpolation": "model.position_interpolation", "pooling": "model.pooling",
    "resize": "input.resize", "short_side": "input.short_side",
    "interpolation": "input.interpolation", "mean": "input.mean", "std": "input.std",
    "exif_orientation": "input.exif_orientation", "loss": "objective.loss", "dtype": "model.dtype",
}


def parse(text: str) -> tuple[str, ...]:
  """"classification,knn" to names.

  Raises:
    ConfigError: one of them is not known.
  """
  names = tuple(name.strip() for name in text.split(","))
  if unknown := set(names) - set(NAMES):
    raise ConfigError(
        f"--measures={text}: there is no measure {min(unknown)!r}; there are {', '.join(NAMES)}"
    )
  return names


def need_a_head(names) -> bool:
  """Whether the checkpoint's own classifier is judged."""
  return not set(names) <= set(_OF_FEATURES)


def need_features(names) -> bool:
  """Whether features of a train split are learned from."""
  return bool(set(names) & set(_OF_FEATURES))


def check(names, dataset, source, directory: epath.Path | None) -> None:
  """Raises ConfigError for what would only fail after everything was computed."""
  if need_features(names) and "train" not in dataset.splits:
    raise ConfigError(
        f"{', '.join(sorted(set(names) & set(_OF_FEATURES)))} learn from the features of a train "
        f"split, and {dataset.name} has only {', '.join(dataset.splits)}"
    )
  judged = [source]
  if need_features(names):
    judged.append(dataset.splits["train"])
  several = next((split for split in judged if split.max_labels > 1), None)
  if several and set(names) != {CLASSIFICATION}:
    raise ConfigError(
        f"the images of {several.name}, split {several.split}, have several labels, of which only "
        f"the measure {CLASSIFICATION} knows what to make"
    )
  if set(names) & set(_WITH_FILES) and directory is None:
    raise ConfigError(
        f"{' and '.join(sorted(set(names) & set(_WITH_FILES)))} write tables: name the JSON file "
        "that they are to lie beside with --output=FILE"
    )
  if "confusion" in names:
    confusion.check_classes(len(dataset.classes))


def of_predictions(
    names, *, logits: Callable, params, batches: Callable, examples: int,
    classes: Sequence[str], out_sharding, loss_name: str, directory: epath.Path | None,
) -> dict[str, float]:
  """Measures that need every prediction; process 0 writes the tables.

  Args:
    logits: function of (params, batch) to `[B, C]`.
    batches: function of no arguments to an iterator of device batches.
    examples: how many they hold.
    classes: the names of all that the head knows; a split of a mixture may have fewer.
    loss_name: "softmax" or "sigmoid", which the classifier was trained with.
    directory: of confusion.csv, per_class.csv and reliability.json, made if missing.
  """
  wanted = set(names) & set(_OF_PREDICTIONS)
  if not wanted:
    return {}
  predictions = PredictionCollector(
      logits=logits, batches=batches, examples=examples, out_sharding=out_sharding,
      loss_name=loss_name,
  ).run(params)
  found = {}
  if wanted & set(_WITH_FILES) and jax.process_index() == 0:
    directory.mkdir(parents=True, exist_ok=True)
  if "macro_f1" in wanted:
    found["macro_f1"] = confusion.macro_f1(predictions, len(classes))
  if "calibration" in wanted:
    table = reliability(predictions)
    found["calibration_error"] = calibration_error(table)
    if jax.process_index() == 0:
      atomic.write_text(directory / "reliability.json", json.dumps(table, indent=1) + "\n")
  if "confusion" in wanted and jax.process_index() == 0:
    confusion.write_confusion(directory / "confusion.csv", predictions, classes)
    confusion.write_per_class(directory / "per_class.csv", predictions, classes)
  return found


def of_features(
    names, *, checkpoint: Checkpoint, how: dict, answers: Callable, place: Callable,
    batches: Callable, train, test, classes: int, seed: int, out_sharding,
) -> dict[str, float]:
  """Measures of the pooled features, learned on the images of train as evaluation sees them.

  Args:
    how: attributes of the model in place of the checkpoint's.
    answers: function of a model to a function of (params, device batch) to what it answers.
    place: puts parameters onto the devices.
    batches: function of a source to a function of no arguments to device batches.
    train, test: sources.
    classes: how many there are in both together.
    seed: of what a linear probe holds out.
  """
  wanted = set(names) & set(_OF_FEATURES)
  if not wanted:
    return {}
  headless = with_classes(checkpoint, 0)
  pooled, params = answers(ViT(**headless.model_config | how)), place(headless.params)
  features = [
      FeatureExtractor(
          features=pooled, batches=batches(source), examples=len(source), out_sharding=out_sharding
      ).run(params)
      for source in (train, test)
  ]
  found = {}
  for name, measure in (
      ("knn", knn.knn), ("few_shot", functools.partial(few_shot.few_shot, classes=classes)),
      ("linear_probe", functools.partial(linear_probe.linear_probe, classes=classes, seed=seed)),
  ):
    if name in wanted:
      found |= measure(*features)
  return found

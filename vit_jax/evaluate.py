"""Evaluation of a checkpoint, top to bottom; also the evaluator that training runs."""

import functools
import hashlib
import json
import os
import pathlib
import re
import sys

from etils import epath
import jax

from vit_jax import config as config_lib
from vit_jax import measures
from vit_jax import micro_batch
from vit_jax.batch_ops.normalize import normalize
from vit_jax.checkpoint.processes import decided_by_first
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.imagenet_variants import with_real_labels
from vit_jax.data.open import open_configured
from vit_jax.data.pipeline import eval_batches
from vit_jax.data.preprocess import Preprocessing
from vit_jax.data.sampling import each_once
from vit_jax.data.source import has_labels
from vit_jax.errors import ConfigError, DataError
from vit_jax.evaluators.classification import Classification
from vit_jax.loading import at_image_size, check_classes, load, narrowed, split_ref
from vit_jax.models.vit import DEFAULTS, ViT
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.resolve import OPEN, preprocessing, resolve
from vit_jax.resume import check_same_data

# What a run's config says of its own data, and which means nothing of others.
_OF_THE_DATA = (
    "input.path", "input.split", "input.sampling", "input.held_out", "evaluate.split",
    "evaluate.real_labels",
)


def evaluate(
    ref: str, *, config_spec: str | None, overrides: dict[str, str],
    wanted: tuple[str, ...] = (measures.CLASSIFICATION,), classes: str | None = None,
    output: str | None = None,
) -> dict:
  """Measures a checkpoint on a split of a data set, exactly.

  Args:
    ref: a checkpoint (see `loading`).
    config_spec: NAME[:ARG] or FILE.py[:ARG] of the data; None for the config of the run.  The
      model, its images and, of a run, its loss are the checkpoint's in either case, unless
      overridden.
    overrides: config keys to text; input.dataset among them names other data than the run's.
    wanted: some of `measures.NAMES`.
    classes: of the head, those to judge by; see `loading.narrowed`.
    output: as of `output_file`; measures that are tables are written beside that file.

  Returns:
    {"model", "split", "data", "metrics"}, and those of `measures.OTHERWISE` that are not the
    checkpoint's own.

  Raises:
    ConfigError: other people's checkpoints need a config that names the data; classes that differ;
      the run's own data has changed; another model than the checkpoint's is asked for; the output
      has no directory to lie in.
    DataError: the split has no labels.
  """
  _check_output(output)
  checkpoint = load(ref) if classes is None else narrowed(load(ref), classes)
  _note(f"{ref}: {line}" for line in checkpoint.report)
  config = _resolved(checkpoint, config_spec, overrides)
  dataset = open_configured(config)
  _note(f"data: {note}" for note in dataset.notes)
  run, _ = split_ref(ref)
  if config_spec is None and "input.dataset" not in overrides:
    check_same_data(
        run, RunDirectory(run).read_info(), dataset,
        otherwise="name other data by --config.input.dataset=NAME --config.input.path=PATH",
    )
  if measures.need_a_head(wanted):
    check_classes(
        checkpoint, dataset, by_order=config.evaluate.classes == "by_order",
        otherwise="name the data that the checkpoint was trained on, or fine-tune it on yours",
    )
  source = evaluation_source(config, dataset, evaluation_split(config, dataset))
  told = {
      "model": checkpoint.ref, "split": source.split, "data": config.input.path or dataset.name
  }
  if classes is not None:
    told["classes"] = classes
  told |= _otherwise(config, checkpoint, overrides, wanted)
  file = output_file(ref, output, told)
  directory = file and file.parent
  measures.check(wanted, dataset, source, directory)
  mesh = mesh_lib.create_mesh(**config.mesh)
  checkpoint = at_image_size(
      checkpoint, config.model.image_size, interpolation=config.model.position_interpolation
  )
  how = {key: config.model[key] for key in ("dtype", "scan", "attention")}
  if "model.position_image_size" in overrides:
    how["position_image_size"] = config.model.position_image_size
  model = ViT(**checkpoint.model_config | how)
  bad = BadRecords(max_fraction=config.input.max_bad_fraction)
  out_sharding = mesh_lib.replicated(mesh)
  place = functools.partial(mesh_lib.everywhere, shardings=out_sharding)
  batches = functools.partial(evaluation_batches, config, mesh=mesh, bad=bad)
  metrics, train = {}, dataset.splits.get("train")
  with micro_batch.advice_when_out_of_memory(micro_batch.smaller_evaluation(config, mesh)):
    if measures.need_a_head(wanted):
      params = place(checkpoint.params)
      if measures.CLASSIFICATION in wanted:
        metrics |= make_evaluator(config, source, model=model, mesh=mesh, bad=bad).run(params)
      metrics |= measures.of_predictions(
          wanted, logits=answers_of(config, model), params=params, batches=batches(source),
          examples=len(source), classes=dataset.classes, out_sharding=out_sharding,
          loss_name=config.objective.loss, directory=directory,
      )
    metrics |= measures.of_features(
        wanted, checkpoint=checkpoint, how=how | _pooled(config),
        answers=functools.partial(answers_of, config), place=place, batches=batches,
        train=train and each_once(train), test=source, classes=len(dataset.classes),
        seed=config.seed, out_sharding=out_sharding,
    )
  return told | {"metrics": metrics}


def _note(lines) -> None:
  """Prints lines to stderr, once where there are several processes."""
  for line in lines:
    if jax.process_index() == 0:
      print(line, file=sys.stderr)


def _resolved(checkpoint, config_spec: str | None, overrides: dict[str, str]):
  """The config of the data, in which the checkpoint says what the model and its images are, unless
  the command line does."""
  named = _config_of(checkpoint, config_spec, overrides)
  left_open = {key: config_lib.FIELDS[key].default for key in OPEN if key not in overrides}
  config = config_lib.replace(named, left_open)
  config = resolve(config, checkpoint=checkpoint, platform=jax.default_backend())
  if config_spec is not None:
    _note(_unused(named, config))
  return config


def _config_of(checkpoint, config_spec: str | None, overrides: dict[str, str]):
  """The config that names the data: a recipe's, or the run's own; where the command line names
  other data, without what it says of the run's."""
  config = checkpoint.config
  if config_spec is not None:
    named = config_lib.load(config_spec, overrides)
    if config is None or "objective.loss" in overrides:
      return named
    # The head answers as it was trained, whatever the recipe of the data trains.
    return config_lib.replace(named, {"objective.loss": config.objective.loss})
  if config is None:
    raise ConfigError(
        f"{checkpoint.ref} is not one of our runs, so the data must be named: add --config=folder "
        "--config.input.path=DIR"
    )
  if "input.dataset" in overrides:
    defaults = {key: config_lib.FIELDS[key].default for key in _OF_THE_DATA}
    config = config_lib.replace(config, defaults)
  return config_lib.override(config, overrides)


def _unused(named, config):
  """Yields a line for each key in which a recipe's images are not as the checkpoint's."""
  for key in OPEN:
    section, name = key.split(".")
    theirs, own = named[section][name], config[section][name]
    if name in measures.OTHERWISE and theirs not in (None, own):
      yield (
          f"data: the recipe's {key} {theirs!r} is not used: the checkpoint's is {own!r} "
          f"(--config.{key}=... judges it with another)"
      )


def _otherwise(config, checkpoint, overrides, wanted) -> dict:
  """Those of `measures.OTHERWISE` with which a checkpoint is judged and that are not its own.

  Raises:
    ConfigError: they would make it another model.
  """
  theirs = DEFAULTS | checkpoint.model_config
  sections = {"model": measures.OF_THE_MODEL, "input": measures.OF_THE_IMAGES}
  for key in OPEN:
    section, name = key.split(".")
    asked = config[section][name]
    is_model = name not in sections[section] and key in overrides
    if is_model and theirs.get(name, asked) != asked:
      raise ConfigError(
          f"config.{key} is {asked!r}, but {checkpoint.ref} has {theirs[name]!r}, and is judged as "
          "it is: leave it out"
      )
  pooling, own = config.model.pooling, theirs["pooling"]
  if pooling != own and measures.need_a_head(wanted):
    raise ConfigError(
        f"config.model.pooling is {pooling!r}, but the head of {checkpoint.ref} was trained on "
        f"{own!r}: only --measures=knn,few_shot,linear_probe can pool otherwise"
    )
  if pooling == "map" and "map_head" not in checkpoint.params:
    raise ConfigError(f"config.model.pooling is 'map', and {checkpoint.ref} has no map_head")
  told = {
      name: config[section][name] for section, names in sections.items() for name in names
      if f"{section}.{name}" in overrides
  }
  return told if pooling == own else told | {"pooling": pooling}


def _pooled(config) -> dict:
  """Attributes of a model whose answer is a feature, also where it was trained to give tokens or
  pixels."""
  return {
      "pooling": config.model.pooling, "norm_after_pooling": config.model.norm_after_pooling,
      "pixel_decoder": False,
  }


def evaluation_split(config, dataset) -> str:
  """Returns the split that is evaluated: the configured one, else validation, else test."""
  split = config.evaluate.split or next(
      name for name in ("validation", "test", "train") if name in dataset.splits
  )
  if split not in dataset.splits:
    raise ConfigError(
        f"config.evaluate.split is {split!r}; {dataset.name} has {', '.join(dataset.splits)}"
    )
  return split


def evaluation_source(config, dataset, split: str):
  """Returns the split to evaluate, however training draws from it, with ReaL's labels where they
  are asked for.

  Raises:
    DataError: the file of labels is not usable, or the split has none.
  """
  source = each_once(dataset.splits[split])
  real = config.evaluate.real_labels
  if real:
    return with_real_labels(source, real)
  if not decided_by_first(lambda: has_labels(source), f"whether {split} has labels"):
    raise DataError(
        f"the images of {dataset.name}, split {split}, have no labels, as those of some test "
        "splits: name another with --config.evaluate.split"
    )
  return source


def make_evaluator(config, source, *, model, mesh, bad) -> Classification:
  """Returns the exact evaluation of a model on one split, over a mesh.

  Args:
    source: a `data.source.Source`; its split names the metrics.
    bad: a `data.bad_records.BadRecords` that collects unreadable images.
  """
  return Classification(
      name=source.split, logits=answers_of(config, model),
      batches=evaluation_batches(config, source, mesh=mesh, bad=bad), examples=len(source),
      out_sharding=mesh_lib.replicated(mesh), loss_name=config.objective.loss,
  )


def evaluation_batches(config, source, *, mesh, bad):
  """Returns a function of no arguments to the device batches of a split, in order, padded."""
  unit = mesh_lib.data_shards(mesh)
  batch_size = config.evaluate.batch_size or config.input.batch_size
  batch_size = -(-batch_size // unit) * unit
  shard, shards = mesh_lib.process_slice(mesh)

  def batches():
    host = eval_batches(
        source, batch_size=batch_size, shard=shard, shards=shards,
        preprocessing=Preprocessing.from_dict(preprocessing(config)),
        threads=config.input.threads, workers=config.input.workers, bad=bad,
    )
    return (mesh_lib.to_devices(batch, mesh) for batch in host)

  return batches


def answers_of(config, model):
  """Returns a function of (params, device batch) to the model's answers: logits `[B, C]`, or pooled
  features `[B, D]` where it has no head."""

  def answers(params, batch):
    images = normalize(batch["image"], config.input.mean, config.input.std)
    return model.apply({"params": params}, images)

  return answers


def output_file(ref: str, output: str | None, told: dict) -> epath.Path | None:
  """Where an evaluation's JSON goes, and its tables beside it: the named file, else, of a run, a
  directory in RUN/evaluations for each step and what it is judged on; None for neither.

  Args:
    told: as `evaluate` returns it.
  """
  if output is not None:
    return pathlib.Path(output).absolute()
  run = RunDirectory(split_ref(ref)[0])
  if not run.exists():
    return None
  step, split, data = told["model"].rpartition("@")[2], told["split"], told["data"]
  # Two parts of a split may differ in signs alone, and two folders bear one name.
  judged = {key: told[key] for key in ("split", "data", *measures.OTHERWISE) if key in told}
  digest = hashlib.sha256(json.dumps(judged).encode()).hexdigest()[:8]
  name = f"{step}_{split}_{os.path.basename(data.rstrip('/'))[:80]}_{digest}"
  return run.evaluations / re.sub(r"[^\w.+-]", "-", name, flags=re.ASCII) / "evaluation.json"


def _check_output(output: str | None) -> None:
  """Raises ConfigError where the named file has no directory to lie in."""
  if output is not None and not pathlib.Path(output).absolute().parent.is_dir():
    raise ConfigError(f"--output={output}: there is no such directory to write into")

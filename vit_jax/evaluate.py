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
from vit_jax.evaluated_config import evaluated_config, otherwise, pooled
from vit_jax.evaluators.classification import Classification
from vit_jax.loading import at_image_size, check_classes, load, narrowed, split_ref
from vit_jax.models.vit import ViT
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.resolve import preprocessing
from vit_jax.resume import check_same_data


def evaluate(
    ref: str, *, config_spec: str | None, overrides: dict[str, str],
    wanted: tuple[str, ...] = (measures.CLASSIFICATION,), classes: str | None = None,
    output: str | None = None,
) -> dict:
  """Measures a checkpoint on a split of a data set, exactly.

  Args:
    ref: a checkpoint (see `loading`).
    config_spec: NAME[:ARG] or FILE.py[:ARG] of the data; None for the config of the run.  The
      model, its images (as far as it says how they are preprocessed) and, of a run, its loss and
      dtype are the checkpoint's in either case, unless overridden.
    overrides: config keys to text; input.dataset among them names other data than the run's.
    wanted: some of `measures.NAMES`.
    classes: of the head, those to judge by; see `loading.narrowed`.
    output: as of `output_file`; measures that are tables are written beside that file.

  Returns:
    {"model", "split", "data", "fingerprint" of the data, "metrics"}, and those of
    `measures.OTHERWISE` that are not the checkpoint's own.

  Raises:
    ConfigError: other people's checkpoints need a config that names the data; classes that differ;
      the run's own data has changed; another model than the checkpoint's is asked for; the output
      has no directory to lie in.
    DataError: the split is empty or has no labels.
  """
  _check_output(output)
  checkpoint = load(ref) if classes is None else narrowed(load(ref), classes)
  _note(f"{ref}: {line}" for line in checkpoint.report)
  config, lines = evaluated_config(checkpoint, config_spec, overrides)
  _note(lines)
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
      "model": checkpoint.ref, "split": source.split, "data": config.input.path or dataset.name,
      "fingerprint": dataset.fingerprint,
  }
  if classes is not None:
    told["classes"] = classes
  told |= otherwise(config, checkpoint, overrides, wanted)
  file = output_file(ref, output, told)
  directory = file and file.parent
  measures.check(wanted, dataset, source, directory)
  if measures.need_features(wanted):
    _check_labeled(dataset, "train")
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
        wanted, checkpoint=checkpoint, how=how | pooled(config, checkpoint),
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
    DataError: the split is empty or has no labels, or their file is not usable.
  """
  source = each_once(dataset.splits[split])
  if not len(source):
    raise DataError(
        f"{dataset.name}, split {split}, is empty: hold out more with config.input.held_out, or "
        "name another with --config.evaluate.split"
    )
  if config.evaluate.real_labels:
    return with_real_labels(source, config.evaluate.real_labels)
  _check_labeled(dataset, split)
  return source


def _check_labeled(dataset, split: str) -> None:
  """Raises DataError for a split without labels, as some test splits are published."""
  source = each_once(dataset.splits[split])
  if not decided_by_first(lambda: has_labels(source), f"whether {split} has labels"):
    raise DataError(
        f"the images of {dataset.name}, split {split}, have no labels: name another with "
        f"--config.{'input' if split == 'train' else 'evaluate'}.split"
    )


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
  if told["fingerprint"] != run.read_info()["fingerprint"]:  # the same directory, parted otherwise
    judged["fingerprint"] = told["fingerprint"]
  digest = hashlib.sha256(json.dumps(judged).encode()).hexdigest()[:8]
  name = f"{step}_{split}_{os.path.basename(data.rstrip('/'))[:80]}_{digest}"
  return run.evaluations / re.sub(r"[^\w.+-]", "-", name, flags=re.ASCII) / "evaluation.json"


def _check_output(output: str | None) -> None:
  """Raises ConfigError where the named file has no directory to lie in."""
  if output is not None and not pathlib.Path(output).absolute().parent.is_dir():
    raise ConfigError(f"--output={output}: there is no such directory to write into")

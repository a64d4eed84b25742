"""Evaluation of a checkpoint, top to bottom; also the evaluator that training runs."""

import json

from etils import epath
import jax

from vit_jax import config as config_lib
from vit_jax.batch_ops.normalize import normalize
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.data.bad_records import BadRecords
from vit_jax.data.open import open_dataset
from vit_jax.data.pipeline import eval_batches
from vit_jax.data.preprocess import Preprocessing
from vit_jax.errors import ConfigError
from vit_jax.evaluators.classification import Classification
from vit_jax.load import load
from vit_jax.models.vit import ViT
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.resolve import model_arguments, preprocessing, resolve


def evaluate(ref: str, *, config_spec: str | None, overrides: dict[str, str]) -> dict:
  """Measures a checkpoint on a split of a data set, exactly.

  Args:
    ref: a checkpoint (see `load`).
    config_spec: NAME[:ARG] or FILE.py[:ARG] of the data; None for the config of the run.
    overrides: config keys to text.

  Returns:
    {"model", "step", "split", "metrics"}.

  Raises:
    ConfigError: other people's checkpoints need a config that names the data; classes that differ.
  """
  checkpoint = load(ref)
  if config_spec is None and checkpoint.config is None:
    raise ConfigError(
        f"{ref} is not one of our runs, so the data must be named: add --config=folder "
        "--config.input.path=DIR"
    )
  if config_spec is None:
    config = config_lib.override(checkpoint.config, overrides)
  else:
    config = config_lib.load(config_spec, overrides)
  config = resolve(config, checkpoint=checkpoint, platform=jax.default_backend())
  dataset = open_dataset(
      config.input.dataset, path=config.input.path, held_out=config.input.held_out
  )
  check_classes(ref, checkpoint.labels, dataset)
  split = evaluation_split(config, dataset)
  mesh = mesh_lib.create_mesh(**config.mesh)
  model = ViT(**model_arguments(config, num_classes=checkpoint.model_config["num_classes"]))
  evaluator = make_evaluator(config, dataset, split, model=model, mesh=mesh, bad=BadRecords())
  params = jax.device_put(checkpoint.params, mesh_lib.replicated(mesh))
  return {
      "model": str(ref), "step": checkpoint.step, "split": split, "metrics": evaluator.run(params)
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


def make_evaluator(config, dataset, split: str, *, model, mesh, bad) -> Classification:
  """Returns the exact evaluation of a model on one split, over a mesh.

  Args:
    bad: a `data.bad_records.BadRecords` that collects unreadable images.
  """
  unit = mesh_lib.data_shards(mesh)
  batch_size = config.evaluate.batch_size or config.input.batch_size
  batch_size = -(-batch_size // unit) * unit
  source = dataset.splits[split]
  shard, shards = mesh_lib.process_slice(mesh)

  def batches():
    host = eval_batches(
        source, batch_size=batch_size, shard=shard, shards=shards,
        preprocessing=Preprocessing.from_dict(preprocessing(config)),
        threads=config.input.threads, bad=bad,
    )
    return (mesh_lib.to_devices(batch, mesh) for batch in host)

  def logits(params, batch):
    images = normalize(batch["image"], config.input.mean, config.input.std)
    return model.apply({"params": params}, images)

  return Classification(
      name=split, logits=logits, batches=batches, examples=len(source),
      out_sharding=mesh_lib.replicated(mesh),
  )


def check_classes(ref, labels, dataset) -> None:
  """Raises ConfigError unless the data set's classes are the checkpoint's, in its order."""
  ours = tuple(dataset.classes)
  if labels is None or tuple(labels) == ours:
    return
  odd = next((pair for pair in zip(labels, ours) if pair[0] != pair[1]), None)
  detail = f"the first that differs: {odd[0]!r}, {odd[1]!r}" if odd else "one list is longer"
  raise ConfigError(
      f"{ref} knows {len(labels)} classes, {dataset.name} has {len(ours)} and they are not the same "
      f"({detail}): name the data set that the checkpoint was trained on, or fine-tune it on yours"
  )


def write_result(result: dict, output: str | None) -> None:
  """Writes an evaluation's JSON to a file, by default into the run that was measured."""
  run = RunDirectory(result["model"].partition("@")[0])
  if output is None and not run.exists():
    return
  path = epath.Path(output) if output else run.path / "evaluation.json"
  path.write_text(json.dumps(result, indent=2) + "\n")

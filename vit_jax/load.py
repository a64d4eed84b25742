"""Any REF to a checkpoint: model, parameters, preprocessing and labels.

REF: `RUN[@STEP|@latest|@best]` for a run of ours, or a Hugging Face directory.
"""

import dataclasses
import os
import pathlib
from typing import Any

from vit_jax import config as config_lib
from vit_jax import resolve
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.data.preprocess import Preprocessing
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop import huggingface
from vit_jax.models.positions import resize_position_embedding
from vit_jax.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What a REF names; unpacks as `model, params = load(REF)`.

  Attributes:
    ref: names exactly this checkpoint from anywhere: an absolute path, of a run with its step.
    model_config: attributes of `models.vit.ViT`, plain and JSON-able.
    params: nested dict of float32 NumPy arrays (`models/vit.py` lists them).
    preprocessing: the evaluation transform as a plain dict (`data/preprocess.py`).
    labels: class names, or None.
    config: the run's whole config, or None for other people's checkpoints.
    step: of the run, or None.
    report: what a user should know about how it was read.
  """

  ref: str
  model_config: dict
  params: dict
  preprocessing: dict
  labels: tuple[str, ...] | None = None
  config: Any = None
  step: int | None = None
  report: tuple[str, ...] = ()

  @property
  def model(self) -> ViT:
    return ViT(**self.model_config)

  def preprocess(self, images):
    """Paths, bytes, PIL images or uint8 arrays to float32 `[B, S, S, 3]`, as in evaluation."""
    return Preprocessing.from_dict(self.preprocessing)(images)

  def __iter__(self):
    return iter((self.model, self.params))


def load(ref: str, *, dtype: str | None = None, image_size: int | None = None) -> Checkpoint:
  """Loads a checkpoint.

  Args:
    ref: see the module.
    dtype: of the computation, "float32" or "bfloat16"; None for the checkpoint's own.
    image_size: position embeddings are resampled to it; None for the checkpoint's own.

  Raises:
    CheckpointError: nothing there, or not readable; the text says what was looked for.
  """
  directory, which = split_ref(str(ref))
  if not directory.is_dir():
    raise CheckpointError(
        f"{ref}: there is no directory {directory}. A checkpoint is named by a run's directory "
        "(RUN, RUN@STEP, RUN@best) or by a Hugging Face directory"
    )
  if RunDirectory(directory).exists():
    checkpoint = _load_run(directory, which or "latest")
  elif (directory / "config.json").exists() and not which:
    checkpoint = _load_huggingface(directory)
  else:
    raise CheckpointError(
        f"{ref}: {directory} is neither a run of vit_jax (run.json and checkpoints/) nor a Hugging "
        "Face directory (config.json and model.safetensors)"
    )
  if dtype is not None:
    model_config = checkpoint.model_config | {"dtype": dtype}
    checkpoint = dataclasses.replace(checkpoint, model_config=model_config)
  return checkpoint if image_size is None else at_image_size(checkpoint, image_size)


def split_ref(ref: str) -> tuple[pathlib.Path, str]:
  """Splits RUN@WHICH into an absolute path and what follows the last @, "" where nothing does; a
  directory whose own name holds an @ is found first."""
  path, at, which = ref.rpartition("@")
  if not at or os.sep in which or os.path.exists(ref):
    path, which = ref, ""
  return pathlib.Path(os.path.abspath(os.path.expanduser(path))), which


def at_image_size(
    checkpoint: Checkpoint, image_size: int, *, interpolation: str = "bicubic"
) -> Checkpoint:
  """Returns the checkpoint for images of another size, its position embeddings resampled.

  Raises:
    ConfigError: the size is not a multiple of the patch size.
  """
  if image_size == checkpoint.model_config["image_size"]:
    return checkpoint
  patch = checkpoint.model_config["patch_size"]
  if image_size <= 0 or image_size % patch:
    raise ConfigError(
        f"{checkpoint.ref} has patches of {patch} pixels: image size {image_size} is not a multiple"
    )
  model_config = checkpoint.model_config | {"image_size": image_size}
  table = resize_position_embedding(
      checkpoint.params["position_embedding"],
      patches_per_side=image_size // model_config["patch_size"],
      interpolation=interpolation,
  )
  scale = image_size / checkpoint.model_config["image_size"]
  preprocessing = checkpoint.preprocessing | {"image_size": image_size}
  if preprocessing.get("short_side"):
    preprocessing["short_side"] = round(preprocessing["short_side"] * scale)
  return dataclasses.replace(
      checkpoint,
      model_config=model_config,
      params=checkpoint.params | {"position_embedding": table},
      preprocessing=preprocessing,
  )


def _load_run(directory, which: str) -> Checkpoint:
  """Reads one committed step of a run: "latest", "best" or a number."""
  run = RunDirectory(directory)
  info = run.read_info()
  with Checkpoints(
      run.checkpoints, best_metric=info["best_metric"], read_only=True
  ) as checkpoints:
    if which == "best" and info["best_metric"] is None:
      raise CheckpointError(
          f"{directory}@best: the run kept no best checkpoint; train with "
          "--config.checkpoint.best_metric=accuracy, or name a step"
      )
    named = {"latest": checkpoints.latest, "best": checkpoints.best}
    step = named[which]() if which in named else int(which) if which.isdigit() else which
    if step not in checkpoints.steps():
      have = ", ".join(map(str, checkpoints.steps())) or "none"
      raise CheckpointError(f"{directory}@{which}: no such checkpoint; committed steps: {have}")
    params, meta = checkpoints.restore_params(step)
  config = config_lib.from_json(meta["config"], origin=f"{directory}, step {step}")
  labels = tuple(info["classes"])
  return Checkpoint(
      ref=f"{directory}@{step}",
      model_config=resolve.model_arguments(config, num_classes=len(labels)),
      params=params,
      preprocessing=resolve.preprocessing(config),
      labels=labels,
      config=config,
      step=step,
  )


def _load_huggingface(directory) -> Checkpoint:
  """Reads a Hugging Face directory; without a processor file, transformers' defaults for ViT."""
  read = huggingface.read(directory)
  report, preprocessing = read.report, read.preprocessing
  if preprocessing is None:
    preprocessing = {
        "image_size": read.model["image_size"], "resize": "squash", "short_side": None,
        "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3,
        "exif_orientation": True,
    }
    report += ("assumed ViTImageProcessor's defaults: squash, bilinear, mean and std 0.5",)
  elif preprocessing["image_size"] != read.model["image_size"]:
    raise CheckpointError(
        f"{directory}: preprocessor_config.json makes images of {preprocessing['image_size']} "
        f"pixels, config.json says {read.model['image_size']}: make them agree"
    )
  return Checkpoint(
      ref=str(directory),
      model_config=read.model,
      params=read.params,
      preprocessing=preprocessing,
      labels=read.labels,
      report=report,
  )

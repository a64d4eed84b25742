"""Any REF to a checkpoint: model, parameters, preprocessing and labels.

REF: `RUN[@STEP|@latest|@best][+ema]` for a run of ours; a directory of Hugging Face, of timm or of
an export of ours; a file of weights (.npz, .safetensors, .pth, .bin); `hf:USER/NAME[@REV]`,
`timm:NAME`; or a URL such as `gs://BUCKET/PATH` of a run, directory or file.
"""

import dataclasses
import numbers
import os
import pathlib
from typing import Any

import numpy as np

from vit_jax import config as config_lib
from vit_jax import resolve
from vit_jax.bucket.path import BucketPath, is_bucket, place
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.data.preprocess import Preprocessing
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop import fetch, read
from vit_jax.interop.class_map import IMAGENET_1K, read_class_map, slice_head
from vit_jax.models.positions import counted_image_size, grid, resize_position_embedding
from vit_jax.models.vit import DEFAULTS, ViT


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What a REF names; unpacks as `model, params = load(REF)`.

  Attributes:
    ref: names exactly this checkpoint from anywhere: an absolute path, of a run with its step.
    model_config: attributes of `models.vit.ViT`, plain and JSON-able.
    params: nested dict of float32 NumPy arrays (`models/vit.py` lists them).
    preprocessing: the evaluation transform as a plain dict (`data/preprocess.py`).
    labels: class names, or None.
    preprocessing_known: False where the checkpoint says nothing of it, so that it is assumed.
    config: the run's whole config, or None for other people's checkpoints.
    step: of the run, or None.
    report: what a user should know about how it was read.
  """

  ref: str
  model_config: dict
  params: dict
  preprocessing: dict
  labels: tuple[str, ...] | None = None
  preprocessing_known: bool = True
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


def load(
    ref: str, *, dtype: str | None = None, image_size=None, num_classes: int | None = None
) -> Checkpoint:
  """Loads a checkpoint.

  Args:
    ref: see the module.
    dtype: of the computation, "float32" or "bfloat16"; None for the checkpoint's own.
    image_size: the side in pixels, or (height, width); position embeddings are resampled to it,
      fixed ones stretched.  None for the checkpoint's own.
    num_classes: of the head; another number than the checkpoint's makes a new head of zeros, 0
      leaves it out.  None for the checkpoint's own.

  Raises:
    CheckpointError: nothing there, or not readable; the text says what was looked for.
  """
  checkpoint = _load(str(ref), streamed=False)
  if dtype is not None:
    model_config = checkpoint.model_config | {"dtype": _dtype_name(dtype)}
    checkpoint = dataclasses.replace(checkpoint, model_config=model_config)
  if num_classes is not None:
    checkpoint = with_classes(checkpoint, num_classes)
  if image_size is not None:
    checkpoint = at_image_size(checkpoint, image_size)
  return _noting_sizes(checkpoint)


def _dtype_name(dtype) -> str:
  """"float32" or "bfloat16" of a name or a dtype.

  Raises:
    ConfigError: another one.
  """
  name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
  if name not in ("float32", "bfloat16"):
    raise ConfigError(f"dtype {dtype!r}: the model computes in \"float32\" or \"bfloat16\"")
  return name


def _noting_sizes(checkpoint: Checkpoint) -> Checkpoint:
  """Adds to the report where images are not preprocessed to the size of the positions."""
  made, own = checkpoint.preprocessing["image_size"], checkpoint.model_config["image_size"]
  if _sides(made) == _sides(own):
    return checkpoint
  said = f"images are preprocessed to {made} pixels; positions, of {own} pixels, are interpolated"
  return dataclasses.replace(checkpoint, report=checkpoint.report + (said,))


def open_streamed(ref: str) -> Checkpoint:
  """As `load(ref)`, but the blocks' parameters may be `tensor_table.StoredLeaf`s, which stay in
  their file until they are asked for: to convert a model in less memory than it has."""
  return _noting_sizes(_load(str(ref), streamed=True))


def _load(ref: str, *, streamed: bool) -> Checkpoint:
  """Finds out what a reference names and reads it as it is."""
  if fetch.is_remote(ref) and not is_bucket(ref):
    return _load_foreign(fetch.fetch(ref), ref, streamed)
  path, which = split_ref(ref)
  if RunDirectory(path).exists():
    return _load_run(path, which or "latest")
  if is_bucket(ref) and not which:
    return _load_foreign(fetch.fetch(ref), ref, streamed)
  if not path.exists():
    raise CheckpointError(
        f"{ref}: there is nothing at {path}. A checkpoint is named by a run's directory (RUN, "
        "RUN@STEP, RUN@best, each with +ema for its average), by a directory of Hugging Face or "
        "timm, by a file (.npz, .safetensors), by hf:USER/NAME, timm:NAME or gs://BUCKET/PATH"
    )
  if which:
    raise CheckpointError(f"{ref}: {path} is not a run of vit_jax, so it has no step {which!r}")
  return _load_foreign(path, str(path), streamed)


def split_ref(ref: str) -> tuple[pathlib.Path | BucketPath, str]:
  """Splits RUN@WHICH or RUN+ema into an absolute path and WHICH ("best", "100+ema", "+ema"; ""
  where nothing follows); a local directory whose own name holds an @ or a + is found first."""
  path, at, which = ref.rpartition("@")
  if not at and ref.endswith("+ema"):
    path, which = ref.removesuffix("+ema"), "+ema"
  if not path or os.sep in which or os.path.exists(ref):
    path, which = ref, ""
  if is_bucket(path):
    return place(path), which
  return pathlib.Path(os.path.abspath(os.path.expanduser(path))), which


def at_image_size(
    checkpoint: Checkpoint, image_size, *, interpolation: str | None = None
) -> Checkpoint:
  """Returns the checkpoint for images of another size, its position embeddings resampled, fixed
  ones stretched.

  A centre crop keeps its share of the short side.  For images that are not square the whole image
  is squashed to the size instead, which the report says: a crop would cut most of it away.

  Args:
    image_size: the side in pixels, or (height, width).
    interpolation: of the positions; None for the checkpoint's own `position_interpolation`.

  Raises:
    ConfigError: the size is not a multiple of the patch size.
  """
  model, sides = DEFAULTS | checkpoint.model_config, _sides(image_size)
  image_size = sides[0] if sides[0] == sides[1] else sides
  try:
    old_grid, new_grid = (
        grid(size, model["patch_size"]) for size in (model["image_size"], image_size)
    )
  except ValueError as error:
    raise ConfigError(f"{checkpoint.ref}: {error}") from error
  params, report = checkpoint.params, checkpoint.report
  if old_grid != new_grid and "position_embedding" in params:
    table = resize_position_embedding(
        params["position_embedding"], old_grid=old_grid, new_grid=new_grid,
        interpolation=interpolation or model["position_interpolation"],
    )
    params = params | {"position_embedding": table}
  changes = {
      "image_size": image_size, "position_image_size": counted_image_size(model, image_size)
  }
  preprocessing = dict(checkpoint.preprocessing)
  before = _sides(preprocessing["image_size"])
  if before != sides:
    short_side = preprocessing.get("short_side")
    if short_side and len({*sides}) == len({*before}) == 1:
      preprocessing["short_side"] = max(sides[0], round(short_side * sides[0] / before[0]))
    elif short_side:
      preprocessing |= {"resize": "squash", "short_side": None}
      report += (f"images are squashed to {sides[0]}x{sides[1]}, not cropped",)
    preprocessing["image_size"] = image_size
  return dataclasses.replace(
      checkpoint,
      model_config=checkpoint.model_config | changes,
      params=params,
      preprocessing=preprocessing,
      report=report,
  )


def check_classes(
    checkpoint: Checkpoint, dataset, *, by_order: bool, otherwise: str
) -> tuple[str, str] | None:
  """Holds that a checkpoint's head is one for a data set's classes.

  Args:
    by_order: whether as many classes will do, under other names.
    otherwise: what the error advises.

  Returns:
    The first class of which the checkpoint's name is not the data's, both names; None where all are
    the same, or the checkpoint has none.

  Raises:
    ConfigError: there is no head, or it has another number of classes, or, unless `by_order`, other
      names for them or another order.
  """
  had, ours = checkpoint.model_config["num_classes"], tuple(dataset.classes)
  if not had:
    raise ConfigError(
        f"{checkpoint.ref} has no classifier: fine-tune it first, with --config.init.checkpoint"
    )
  theirs = checkpoint.labels or ours
  odd = next((pair for pair in zip(theirs, ours) if pair[0] != pair[1]), None)
  if had == len(ours) and (by_order or odd is None):
    return odd
  detail = f"; the first that differs: {odd[0]!r}, {odd[1]!r}" if odd else ""
  raise ConfigError(
      f"{checkpoint.ref} knows {had} classes, {dataset.name} has {len(ours)}, and they are not the "
      f"same{detail}: {otherwise}"
      + ("; if the same classes in the same order have only other names, "
         "--config.evaluate.classes=by_order says so" if had == len(ours) else "")
  )


def _sides(image_size) -> tuple[int, int]:
  """(height, width) of a side or of both.

  Raises:
    ConfigError: neither.
  """
  if isinstance(image_size, numbers.Integral):
    return int(image_size), int(image_size)
  if isinstance(image_size, (tuple, list)) and len(image_size) == 2:
    if all(isinstance(side, numbers.Integral) for side in image_size):
      return int(image_size[0]), int(image_size[1])
  raise ConfigError(f"image size {image_size!r}: give a number of pixels, or (height, width)")


def with_classes(checkpoint: Checkpoint, num_classes: int) -> Checkpoint:
  """Returns the checkpoint with a head of so many classes: its own, or a new one of zeros.

  Raises:
    ConfigError: a model whose answer is not a pooled feature takes no head.
  """
  model = DEFAULTS | checkpoint.model_config
  if num_classes == model["num_classes"]:
    return checkpoint
  if num_classes < 0 or (num_classes and model["pooling"] == "none"):
    raise ConfigError(
        f"{checkpoint.ref}: num_classes={num_classes} is not possible: "
        + ("it must not be negative" if num_classes < 0 else 'pooling "none" leaves no feature')
    )
  heads = ("head", "distillation_head")
  params = {k: v for k, v in checkpoint.params.items() if k not in heads}
  model |= {"num_classes": num_classes}
  if not num_classes:
    model |= {"distillation_head": False}
    said = f"the head of {checkpoint.model_config['num_classes']} classes is left out"
  else:
    had = checkpoint.model_config["num_classes"]
    said = f"a new head of {num_classes} classes, all zero"
    said += f", replaces that of {had}" if had else ""
    for name in heads[: 1 + model["distillation_head"]]:
      params[name] = {
          "kernel": np.zeros((model["width"], num_classes), np.float32),
          "bias": np.zeros((num_classes,), np.float32),
      }
  return dataclasses.replace(
      checkpoint, model_config=checkpoint.model_config | model, params=params, labels=None,
      report=checkpoint.report + (said,),
  )


def narrowed(checkpoint: Checkpoint, classes: str) -> Checkpoint:
  """Returns the checkpoint with some of its head's classes.

  Args:
    classes: "imagenet-1k" of a head of ImageNet-21k, or a file with an index or WordNet id a line.

  Raises:
    ConfigError, CheckpointError: as `interop.class_map.slice_head`.
  """
  wanted = classes if classes == IMAGENET_1K else read_class_map(classes)
  model, params, labels, said = slice_head(
      checkpoint.model_config, checkpoint.params, checkpoint.labels, wanted=wanted
  )
  return dataclasses.replace(
      checkpoint, model_config=model, params=params, labels=labels,
      report=checkpoint.report + (said,),
  )


def _load_run(directory, which: str) -> Checkpoint:
  """Reads one committed step of a run: "latest", "best" or a number, +ema where that is demanded.

  The average of the parameters is what a run evaluates and keeps its best by, so it is taken
  wherever there is one.
  """
  which, plus, demanded = which.partition("+")
  if plus and demanded != "ema":
    raise CheckpointError(f"{directory}@{which}+{demanded}: only +ema may follow a step")
  run = RunDirectory(directory)
  info = run.read_info()
  with Checkpoints(
      run.checkpoints, best_metric=info["best_metric"], read_only=True
  ) as checkpoints:
    step = _step(checkpoints, which or "latest", directory, info)
    params, meta = checkpoints.restore_ema(step)
    averaged = params is not None
    if not averaged:
      if demanded:
        raise CheckpointError(
            f"{directory}@{step}+ema: the run keeps no average of its parameters; train with "
            "--config.optimizer.ema_decay=0.9999, or leave +ema out"
        )
      params, meta = checkpoints.restore_params(step)
  config = config_lib.from_json(meta["config"], origin=f"{directory}, step {step}")
  labels = tuple(info["classes"])
  decay = config.optimizer.ema_decay
  return Checkpoint(
      ref=f"{directory}@{step}" + "+ema" * averaged,
      model_config=resolve.model_arguments(config, num_classes=len(labels)),
      params=params,
      preprocessing=resolve.preprocessing(config),
      labels=labels,
      config=config,
      step=step,
      report=(f"the average of the parameters (decay {decay}) at step {step}",) * averaged,
  )


def step_of_run(directory, which: str) -> int:
  """The number of the committed step that "latest", "best" or a number names, +ema or not.

  Raises:
    CheckpointError: there is no such step.
  """
  run = RunDirectory(directory)
  info = run.read_info()
  with Checkpoints(
      run.checkpoints, best_metric=info["best_metric"], read_only=True
  ) as checkpoints:
    return _step(checkpoints, which.partition("+")[0] or "latest", directory, info)


def _step(checkpoints, which: str, directory, info) -> int:
  """The number of the step that "latest", "best" or a number names."""
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
  return step


def _load_foreign(path: pathlib.Path, ref: str, streamed: bool) -> Checkpoint:
  """Reads other people's formats, and exports of ours; where nothing says how images are
  preprocessed, as Google's code and `ViTImageProcessor` do."""
  imported = read.read(path, streamed=streamed)
  report, preprocessing = imported.report, imported.preprocessing
  if preprocessing is None:
    preprocessing = {
        "image_size": imported.model["image_size"], "resize": "squash", "short_side": None,
        "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3,
        "exif_orientation": True,
    }
    report += ("assumed how images are preprocessed: squash, bilinear, mean and std 0.5",)
  return Checkpoint(
      ref=ref,
      model_config=imported.model,
      params=imported.params,
      preprocessing=preprocessing,
      preprocessing_known=imported.preprocessing is not None,
      labels=imported.labels,
      report=report,
  )

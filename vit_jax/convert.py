"""A checkpoint into somebody else's format, proved before it is called done."""

import contextlib
import dataclasses
import pathlib

import numpy as np
import sklearn.datasets

from vit_jax.data.decode import UnreadableImage
from vit_jax.data.open import open_configured
from vit_jax.data.preprocess import Preprocessing
from vit_jax.errors import ConfigError, DataError
from vit_jax.interop.imported import Imported
from vit_jax.interop.targets import target
from vit_jax.interop.verify import export
from vit_jax.loading import at_image_size, narrowed, open_streamed, split_ref, step_of_run
from vit_jax.models.flops import forward_macs

# Images to verify with: as many as cost about this many multiply-accumulates, 1 to 8.
_MACS = 0.25e12
_NO_JUDGE = "  nobody else reads this format, so there is nobody to compare with"


@dataclasses.dataclass(frozen=True)
class Origin:
  """What an export was made of: the attributes of `loading.Checkpoint` without the weights."""

  ref: str
  model_config: dict
  preprocessing: dict
  labels: tuple[str, ...] | None
  config: object
  step: int | None
  report: tuple[str, ...]


def convert(
    ref: str, *, output: str, to: str, architecture: str | None, dtype: str,
    max_shard_bytes: int, classes: str | None = None, image_size=None,
) -> None:
  """Writes an export and verifies it; prints what was written and measured.

  Args:
    ref: the checkpoint (see `loading`); RUN@STEP,STEP,... names several of a run.
    output: directory to write; of several checkpoints each has its own in it, output/STEP.
    to: a key of `interop.targets.TARGETS`.
    architecture: a class of the format, None for the richest that holds the weights.
    dtype: of the stored weights.
    max_shard_bytes: largest file of weights.
    classes: which of the head's classes to keep: "imagenet-1k", or a file (see
      `interop.class_map`); None for all.
    image_size: the side in pixels or (height, width), position embeddings resampled to it; None
      for the checkpoint's own.

  Raises:
    CheckpointError: the format cannot hold the model, or the numbers differ.
  """
  options = {
      "to": to, "architecture": architecture, "dtype": dtype, "max_shard_bytes": max_shard_bytes,
      "classes": classes, "image_size": image_size,
  }
  run, steps = split_ref(ref)
  if "," in steps:
    for step in steps.split(","):  # none is written where one is missing
      step_of_run(run, step)
    for step in steps.split(","):
      convert(f"{run}@{step}", output=f"{output}/{step}", **options)
    return
  report, proof, origin = export_checkpoint(ref, output, **options)
  for line in origin.report:
    print(f"{ref}: {line}")
  print(
      f"{output}: {report['architecture']} in {dtype}, {report['parameters']:,} parameters, read "
      "back bit-equal"
  )
  for note in report["notes"]:
    print(f"  {note}")
  print(_figures(proof, to))


def export_checkpoint(
    ref: str, directory, *, to: str = "huggingface", architecture: str | None = None,
    dtype: str = "float32", max_shard_bytes: int = 5_000_000_000, classes: str | None = None,
    image_size=None,
) -> tuple[dict, dict, Origin]:
  """Writes one export, proved; arguments and errors as of `convert`.

  Returns:
    (report, proof, origin): what conversion.json says, its verification, and what was exported.
  """
  origin = None

  def load_source():
    nonlocal origin
    checkpoint = open_streamed(ref)
    if image_size is not None:
      checkpoint = at_image_size(checkpoint, image_size)
    report = checkpoint.report
    if classes is not None:
      checkpoint = narrowed(checkpoint, classes)
    origin = Origin(**{f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(Origin)})
    source = Imported(
        model=checkpoint.model_config, params=checkpoint.params, labels=checkpoint.labels,
        preprocessing=checkpoint.preprocessing, report=report,
    )
    return source, _sample_images(checkpoint)

  report, proof = export(
      pathlib.Path(directory), target(to), load=load_source, architecture=architecture,
      dtype=dtype, max_shard_bytes=max_shard_bytes,
  )
  return report, proof, origin


def parse_image_size(text: str):
  """"384" as 384, "224x320" as (224, 320): height, width.

  Raises:
    ConfigError: anything else.
  """
  sides = text.lower().split("x")
  if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
    raise ConfigError(f"--image-size={text}: write a side such as 384, or HEIGHTxWIDTH")
  sides = tuple(map(int, sides))
  return sides[0] if len(set(sides)) == 1 else sides


def parse_bytes(text: str) -> int:
  """"5GB", "500MB" or a plain number of bytes, decimal as transformers' `max_shard_size`.

  Raises:
    ConfigError: anything else.
  """
  units = {"GB": 10**9, "MB": 10**6, "KB": 10**3, "": 1}
  number = text.strip().upper()
  unit = next(u for u in units if number.endswith(u))
  try:
    size = int(float(number.removesuffix(unit)) * units[unit])
  except (ValueError, OverflowError):
    size = 0
  if size < 1:
    raise ConfigError(f"--max-shard-size={text}: write a size such as 5GB or 500MB")
  return size


def _figures(proof: dict, to: str) -> str:
  """The measured differences, a line a batch."""
  if proof["pytorch"] is None:
    lines = [_NO_JUDGE] if to == "orbax" else [
        "  not compared with PyTorch: the library that reads this format is not installed here "
        "(pip install 'vit_jax[torch]', and timm for its own)"
    ]
  else:
    lines = [
        f"  PyTorch agrees on {batch}: outputs differ by {figures['outputs']['difference']:.2g}, "
        f"the largest is {figures['outputs']['largest']:.3g}"
        for batch, figures in proof["pytorch"].items()
    ]
  if "rounding" in proof:
    rounding = proof["rounding"]
    lines.append(
        f"  rounding the weights changes our outputs by {rounding['difference']:.2g} of "
        f"{rounding['largest']:.3g}"
    )
  return "\n".join(lines)


def _sample_images(checkpoint) -> np.ndarray:
  """Real images to verify with, float32 `[B, H, W, 3]`: of the run's held-out split, or the photos
  that come with scikit-learn where there is none at hand."""
  model = checkpoint.model_config
  count = int(np.clip(_MACS // forward_macs(**model), 1, 8))
  preprocessing = dict(checkpoint.preprocessing)
  if preprocessing["image_size"] != model["image_size"]:
    preprocessing = {
        "image_size": model["image_size"], "mean": preprocessing["mean"],
        "std": preprocessing["std"],
    }
  preprocess = Preprocessing.from_dict(preprocessing)
  images = []
  if checkpoint.config is not None:
    with contextlib.suppress(DataError):  # the data is elsewhere by now
      dataset = open_configured(checkpoint.config)
      source = list(dataset.splits.values())[-1]
      for index in range(min(4 * count, len(source))):
        with contextlib.suppress(UnreadableImage):
          images.append(preprocess([source.record(index)["image"]]))
        if len(images) == count:
          break
  return np.concatenate(images) if images else preprocess(_photos()[:count])


def _photos() -> list[np.ndarray]:
  """Eight uint8 `[H, W, 3]`: two photos, their halves, and the photos mirrored."""
  whole = sklearn.datasets.load_sample_images().images
  half = whole[0].shape[1] // 2
  halves = [part for image in whole for part in (image[:, :half], image[:, half:])]
  return [*whole, *halves, *(np.ascontiguousarray(image[:, ::-1]) for image in whole)]

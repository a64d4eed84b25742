"""The proof of an export: what was written is read back, and another library judges it.

Memory holds the weights at most once: our answers and the comparison with what is read back go a
block at a time, and the judge loads the export when we hold none.
"""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
import platform
from types import ModuleType
from typing import Callable, Mapping

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.interop import targets
from vit_jax.interop.export_directory import MARK, new_export
from vit_jax.interop.imported import Imported
from vit_jax.interop.safetensors_writer import round_to
from vit_jax.interop.tensor_files import read_json
from vit_jax.interop.tensor_table import first_ten, leaves
from vit_jax.models.positions import grid
from vit_jax.models.reconstruction import masked_l1
from vit_jax.models.streamed import streamed_forward
from vit_jax.models.vit import DEFAULTS, DESCRIPTION

# Largest difference allowed, relative to the largest value: float32 rounding over a whole model
# stays a factor of ten below, and a wrong GELU or epsilon on trained weights far above.
TOLERANCE = 2e-5
# What decides which of a model's features its answer is.
_ANSWER = ("num_classes", "pooling", "pre_logits", "pixel_decoder", "distillation_head")


def export(
    directory, target: ModuleType, *, load: Callable[[], tuple[Imported, np.ndarray]],
    architecture: str | None, dtype: str, max_shard_bytes: int,
) -> tuple[dict, dict]:
  """Writes an export that appears complete and proved, or not at all.

  An earlier export there is replaced once the new one has passed; any other content is refused.

  Args:
    directory: to make; its parents are made too.
    target: a format (see `targets.py`).
    load: gives the checkpoint and float32 images `[B, H, W, 3]`, normalised; called once, here, so
      that the weights are gone when the judge loads its own.
    architecture: a class of the format, None for the richest that holds the weights.
    dtype: of the stored tensors.
    max_shard_bytes: largest file of weights where the format splits them.

  Returns:
    (report, proof): the content of the new conversion.json, and its "verification".

  Raises:
    ConfigError: unknown architecture or dtype.
    CheckpointError: the format cannot hold the model, the place is taken or not writable, or what
      was written is not the model; whatever was in `directory` is there still.
  """
  with new_export(directory) as partial:
    source, images = load()
    architecture = targets.choose(target, source.model, architecture)
    options = {"architecture": architecture, "dtype": dtype, "max_shard_bytes": max_shard_bytes}
    with ThreadPoolExecutor(1) as pool:  # writing waits for the disk, computing does not
      writing = pool.submit(
          target.write, partial, model=source.model, params=source.params,
          preprocessing=source.preprocessing, labels=source.labels, **options,
      )
      try:
        expected = expect(
            target, model=source.model, params=source.params, images=images,
            architecture=architecture, dtype=dtype,
        )
      except Exception:
        writing.result()  # what it finds wrong with the model is the better text
        raise
      report = writing.result()
    del source
    try:
      proof = prove(partial, target, expected)
    except (CheckpointError, OSError) as error:  # transformers raises OSError too
      raise CheckpointError(
          f"{directory} was not written, and an earlier export there is as it was: {error}"
      ) from error
  return report | {"verification": proof}, proof


@dataclasses.dataclass(frozen=True)
class Expected:
  """What an export must hold and compute.

  Attributes:
    model: the description as the format stores it.
    params: the parameters as it stores them, before rounding; emptied once they are compared.
    dtype: of the stored tensors.
    batches: float32 `[B, H, W, 3]` by name.
    patch_mask: bool `[N]` for every image, None for a model without pixel decoder.
    answers: by batch what our model computes, see `streamed_forward`.
    classes: bool `[C]`, False for a class that a sliced head never answers: its logit is so low
      that beside it every error would be small.  None without a head.
  """

  model: dict
  params: dict
  dtype: str
  batches: dict
  patch_mask: np.ndarray | None
  answers: dict
  classes: np.ndarray | None = None


def expect(
    target: ModuleType, *, model: Mapping, params: Mapping, images, architecture: str, dtype: str
) -> Expected:
  """Notes what an export of a model must hold and compute.

  Args:
    model, params: what is exported, the parameters in full precision.
    images: float32 `[B, H, W, 3]`, normalised; noise of half as many is added.
    architecture, dtype: as it was written.
  """
  images = np.asarray(images, np.float32)
  noise = np.random.default_rng(0).standard_normal(
      (max(1, len(images) // 2), *images.shape[1:]), np.float32
  )
  batches = {"images": images, "noise": noise}
  stored_model, stored = target.fit(model, params, architecture)
  # The model itself is run, so that `fit` is proved too, unless its head is left out.
  same = all(_setting(model, key) == _setting(stored_model, key) for key in _ANSWER)
  ours = (model, params) if same else (stored_model, stored)
  rows, columns = grid(images.shape[1:3], model["patch_size"])
  # Every third patch, as good as any: SimMIM masks at random.
  masked = np.arange(rows * columns) % 3 == 0
  patch_mask = masked if _setting(stored_model, "pixel_decoder") else None
  return Expected(
      model=dict(stored_model),
      params=dict(stored),
      dtype=dtype,
      batches=batches,
      patch_mask=patch_mask,
      answers=_answers(*ours, batches, patch_mask),
      classes=_answerable(stored),
  )


def prove(directory, target: ModuleType, expected: Expected) -> dict:
  """Proves that an export is what was expected, and notes it in its conversion.json.

  Reads the directory back and compares settings and every bit; then lets the target's judge, where
  it is installed, compute tokens and outputs on images and noise, and compares them with ours.
  The tokens count beside the outputs because a new head is zero and its logits prove nothing.  Of
  a reduced-precision export the judge is compared with our model on the rounded weights.

  Returns:
    What conversion.json then says under "verification": `bit_equal` (True), `pytorch` (None where
    the judge is not installed, else by batch and name the largest "difference" and "largest"
    value), `tolerance`, `versions`; for reduced precision `rounding`, the largest change of our
    outputs by rounding the weights, with the largest output.

  Raises:
    CheckpointError: the directory does not hold this model; the text says what differs.
  """
  directory = Path(directory)
  imported = target.read(directory, streamed=True)
  compare_bits(imported, expected)
  expected.params.clear()
  result = {"bit_equal": True, "tolerance": TOLERANCE, "pytorch": None, "versions": _versions()}
  answers = expected.answers
  if expected.dtype != "float32":
    answers = _answers(imported.model, imported.params, expected.batches, expected.patch_mask)
    full, coarse = (
        _live("outputs", a["images"]["outputs"], expected.classes)
        for a in (expected.answers, answers)
    )
    result["rounding"] = {
        "difference": float(np.abs(full - coarse).max()), "largest": float(np.abs(full).max())
    }
  del imported
  judged = target.judge(directory, expected.batches, expected.patch_mask)
  if judged is not None:
    result["pytorch"] = compare_answers(answers, judged, classes=expected.classes)
  _note(directory, result)
  return result


def compare_bits(imported: Imported, expected: Expected) -> None:
  """Compares settings and parameters of what was read back exactly.

  Raises:
    CheckpointError: they differ; the text lists where.
  """
  settings = {
      key: (_setting(imported.model, key), _setting(expected.model, key))
      for key in DESCRIPTION
      # Of no consequence at the model's own image size; readers name their library's.
      if key != "position_interpolation"
  }
  wrong = [
      f"{key} is {found!r} instead of {wanted!r}"
      for key, (found, wanted) in settings.items() if found != wanted
  ]
  wanted, found = dict(leaves(expected.params)), dict(leaves(imported.params))
  wrong += [
      f"{'/'.join(path)} differs"
      for path in sorted(wanted.keys() | found.keys())
      if path not in wanted or path not in found
      or not _same(path, wanted[path], found[path], expected.dtype)
  ]
  if wrong:
    raise CheckpointError(
        f"The export read back is not the model that was exported: {first_ten(wrong)}. "
        "Do not use it; export again, on a disk that is in order."
    )


def compare_answers(ours: Mapping, theirs: Mapping, *, classes=None) -> dict:
  """Compares what a judge computed with our answers, each by batch and name.

  Args:
    classes: of `Expected`.

  Returns:
    {batch: {name: {"difference", "largest"}}}.

  Raises:
    CheckpointError: a difference exceeds `TOLERANCE` times the largest value.
  """
  figures = {}
  for batch, answers in theirs.items():
    figures[batch] = {}
    for what, theirs_now in answers.items():
      mine = np.asarray(ours[batch][what])
      if mine.shape != np.shape(theirs_now):
        raise CheckpointError(
            f"With the export PyTorch computes {what} of shape {np.shape(theirs_now)}, this model "
            f"of shape {mine.shape}. Do not publish it: its settings are not the model's."
        )
      mine, theirs_now = (_live(what, a, classes) for a in (mine, theirs_now))
      difference = float(np.abs(mine - theirs_now).max())
      largest = float(np.abs(mine).max())
      figures[batch][what] = {"difference": difference, "largest": largest}
      # Written so that NaN fails too.
      if not difference <= TOLERANCE * largest:
        raise CheckpointError(
            f"With the export PyTorch computes other {what} than this model on {batch}: they "
            f"differ by {difference:.3g} where the largest is {largest:.3g}, and {TOLERANCE:g} "
            "of it is allowed. Do not publish it: its weights or settings are not the model's."
        )
  return figures


def _answerable(params) -> np.ndarray | None:
  """Which classes the head answers: all but those of zero weights and a hopeless bias."""
  if "head" not in params:
    return None
  kernel, bias = (np.asarray(params["head"][name]) for name in ("kernel", "bias"))
  return kernel.any(axis=0) | (bias > -1e3)


def _live(what: str, values, classes) -> np.ndarray:
  """The columns of logits that count; other arrays as they are."""
  values = np.asarray(values)
  is_logits = what in ("outputs", "class_logits", "distillation_logits")
  return values[..., classes] if is_logits and classes is not None else values


def _answers(model, params, batches, patch_mask) -> dict:
  """Ours by batch: one pass over the parameters for all of them."""
  sizes = [len(batch) for batch in batches.values()]
  images = np.concatenate(list(batches.values()))
  mask = None if patch_mask is None else np.tile(patch_mask, (len(images), 1))
  joined = streamed_forward(model, params, images, mask)
  parts = {name: np.split(a, np.cumsum(sizes)[:-1]) for name, a in joined.items()}
  answers = {
      batch: {name: part[i] for name, part in parts.items()} for i, batch in enumerate(batches)
  }
  if mask is not None:
    for batch, values in batches.items():
      rows = np.tile(patch_mask, (len(values), 1))
      loss = masked_l1(values, answers[batch]["outputs"], rows, model["patch_size"])
      answers[batch]["loss"] = np.asarray(loss)
  return answers


def _same(path, wanted, found, dtype: str) -> bool:
  """Whether a leaf that was read back has the bits of ours in `dtype`; layer by layer in the
  blocks, whose leaves may lie in files."""
  if np.shape(wanted) != np.shape(found):
    return False
  layers = zip(wanted, found) if path[0] == "blocks" else ((wanted, found),)
  return all(np.array_equal(_bits(a, dtype), _bits(b, dtype)) for a, b in layers)


def _bits(array, dtype: str) -> np.ndarray:
  rounded = np.ascontiguousarray(round_to(array, dtype)).reshape(-1)
  return rounded.view(np.uint32 if rounded.itemsize == 4 else np.uint16)


def _setting(model: Mapping, key: str):
  """A setting as JSON gives it back, the default where the description leaves it out."""
  value = model.get(key, DEFAULTS.get(key))
  return list(value) if isinstance(value, tuple) else value


def _versions() -> dict[str, str]:
  """Of whatever took part; judges only where they are installed."""
  names = ["vit_jax", "jax", "flax", "numpy", "torch", "transformers", "timm"]
  versions = {"python": platform.python_version()}
  for name in names:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return versions


def _note(directory: Path, verification: Mapping) -> None:
  """Writes the verification into conversion.json, replacing the file in one step."""
  path = directory / MARK
  report = read_json(path)
  partial = directory / f".{MARK}.writing"
  try:
    text = json.dumps({**report, "verification": verification}, indent=2, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
  except OSError as error:
    raise CheckpointError(
        f"{path} cannot be written: {error}. Free some space and convert again."
    ) from error

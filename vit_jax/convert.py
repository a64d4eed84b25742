"""A checkpoint into somebody else's format, proved before it is called done."""

import contextlib

import numpy as np

from vit_jax.data.decode import UnreadableImage
from vit_jax.data.open import open_dataset
from vit_jax.data.preprocess import Preprocessing
from vit_jax.errors import DataError
from vit_jax.interop.verify import export_huggingface
from vit_jax.load import load

_IMAGES = 8


def convert(ref: str, *, output: str, architecture: str | None, dtype: str) -> None:
  """Writes a Hugging Face directory and verifies it; prints what was written and measured.

  Args:
    ref: the checkpoint (see `load`).
    output: directory to write.
    architecture: a class of transformers, None for the richest that holds the weights.
    dtype: of the stored weights.

  Raises:
    CheckpointError: the format cannot hold the model, or the numbers differ.
  """
  checkpoint = load(ref)
  for line in checkpoint.report:
    print(f"{ref}: {line}")
  written, proof = export_huggingface(
      output,
      model=checkpoint.model_config,
      params=checkpoint.params,
      preprocessing=checkpoint.preprocessing,
      labels=checkpoint.labels,
      architecture=architecture,
      dtype=dtype,
      images=_sample_images(checkpoint),
  )
  print(
      f"{output}: {written['architecture']} in {dtype}, {written['parameters']:,} parameters, read "
      "back bit-equal"
  )
  for note in written["notes"]:
    print(f"  {note}")
  print(_figures(proof))


def _figures(proof: dict) -> str:
  """The measured differences, a line a batch."""
  if proof["pytorch"] is None:
    return (
        "  not compared with PyTorch, which is not installed here: pip install 'vit_jax[torch]' and "
        "convert again for the proof"
    )
  lines = [
      f"  PyTorch agrees on {batch}: outputs differ by {figures['outputs']['difference']:.2g}, the "
      f"largest is {figures['outputs']['largest']:.3g}"
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
  """Real images of the run's held-out split, float32 `[B, S, S, 3]`; patterns where the data is
  not at hand."""
  size = checkpoint.model_config["image_size"]
  y, x = np.mgrid[:size, :size] / size
  waves = [np.sin((x * i + y * (_IMAGES - i)) * 6) for i in range(_IMAGES)]
  patterns = np.repeat(np.stack(waves)[..., None], 3, axis=-1).astype(np.float32)
  if checkpoint.config is None:
    return patterns
  inputs, images = checkpoint.config.input, []
  preprocess = Preprocessing.from_dict(checkpoint.preprocessing)
  try:
    dataset = open_dataset(inputs.dataset, path=inputs.path, held_out=inputs.held_out)
    source = list(dataset.splits.values())[-1]
    for index in range(min(4 * _IMAGES, len(source))):
      with contextlib.suppress(UnreadableImage):
        images.append(preprocess([source.record(index)["image"]]))
      if len(images) == _IMAGES:
        break
  except DataError:
    pass  # the data is elsewhere by now
  return np.concatenate(images) if images else patterns

"""A checkpoint into somebody else's format, proved before it is called done."""

import numpy as np

from vit_jax.data.open import open_dataset
from vit_jax.data.preprocess import Preprocessing
from vit_jax.errors import DataError
from vit_jax.interop import huggingface
from vit_jax.interop.verify import verify_huggingface
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
  written = huggingface.write(
      output,
      model=checkpoint.model_config,
      params=checkpoint.params,
      preprocessing=checkpoint.preprocessing,
      labels=checkpoint.labels,
      architecture=architecture,
      dtype=dtype,
  )
  proof = verify_huggingface(
      output,
      model=checkpoint.model_config,
      params=checkpoint.params,
      images=_sample_images(checkpoint),
  )
  print(f"{output}: {written['architecture']}, {written['bytes']:,} bytes, read back bit-equal")
  print(proof["summary"])


def _sample_images(checkpoint) -> np.ndarray:
  """Real images of the run's held-out split, float32 `[B, S, S, 3]`; none where there is no data."""
  size = checkpoint.model_config["image_size"]
  nothing = np.zeros((0, size, size, 3), np.float32)
  if checkpoint.config is None:
    return nothing
  inputs = checkpoint.config.input
  try:
    dataset = open_dataset(inputs.dataset, path=inputs.path, held_out=inputs.held_out)
  except DataError:
    return nothing  # the data is elsewhere by now: noise has to do
  source = list(dataset.splits.values())[-1]
  images = [source.record(i)["image"] for i in range(min(_IMAGES, len(source)))]
  return Preprocessing.from_dict(checkpoint.preprocessing)(images)

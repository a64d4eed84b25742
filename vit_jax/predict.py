"""What a checkpoint sees in image files."""

import sys

import jax
import numpy as np

from vit_jax.data.decode import UnreadableImage
from vit_jax.errors import ConfigError, DataError
from vit_jax.load import load


def predict(ref: str, paths: list[str], *, top: int) -> int:
  """Prints the most probable classes of each image; unreadable files are named and skipped.

  Returns:
    An exit code: 0, or that of DataError when a file was unreadable.

  Raises:
    ConfigError: the checkpoint has no classifier.
  """
  if top < 1:
    raise ConfigError(f"--top={top}: at least one class must be shown")
  checkpoint = load(ref)
  for line in checkpoint.report:
    print(f"{ref}: {line}", file=sys.stderr)
  if not checkpoint.model_config["num_classes"]:
    raise ConfigError(f"{ref} has no classifier: fine-tune it first, with --config.init.checkpoint")
  classes = checkpoint.model_config["num_classes"]
  labels = checkpoint.labels or tuple(map(str, range(classes)))
  probabilities = jax.jit(
      lambda params, images: jax.nn.softmax(checkpoint.model.apply({"params": params}, images))
  )
  failed = 0
  for path in paths:
    try:
      pixels = checkpoint.preprocess([path])
    except UnreadableImage as error:  # its text names the file
      print(error, file=sys.stderr)
      failed += 1
      continue
    except OSError as error:
      print(f"{path}: {error.strerror or error}", file=sys.stderr)
      failed += 1
      continue
    scores = np.asarray(probabilities(checkpoint.params, pixels))[0]
    print(path)
    for index in np.argsort(-scores, kind="stable")[:top]:
      print(f"  {scores[index]:7.2%}  {labels[index]}")
  return DataError.exit_code if failed else 0

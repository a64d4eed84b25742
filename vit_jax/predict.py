"""What a checkpoint sees in image files, and where it looks."""

import pathlib
import sys

import jax
import numpy as np
from PIL import Image

from vit_jax.attention_map import attention_rollout, save_attention
from vit_jax.data.decode import UnreadableImage
from vit_jax.data.preprocess import Preprocessing
from vit_jax.errors import ConfigError, DataError
from vit_jax.loading import load
from vit_jax.models.positions import grid


def predict(ref: str, paths: list[str], *, top: int, attention: str | None = None) -> int:
  """Prints the most probable classes of each image; unreadable files are named and skipped.

  Args:
    ref: the checkpoint (see `loading`).
    paths: of image files.
    top: how many classes are shown.
    attention: a picture to write, a row for each readable image: the image as the model saw it,
      and as bright as it is attended to (`attention_map`).

  Returns:
    An exit code: 0, or that of DataError when a file was unreadable.

  Raises:
    ConfigError: the checkpoint has no classifier and no picture is wanted; `top` or the ending of
      `attention` mean nothing.
  """
  if top < 1:
    raise ConfigError(f"--top={top}: at least one class must be shown")
  if attention is not None:
    _check_picture(attention)
  checkpoint = load(ref)
  for line in checkpoint.report:
    print(f"{ref}: {line}", file=sys.stderr)
  classes = checkpoint.model_config["num_classes"]
  if not classes and attention is None:
    raise ConfigError(f"{ref} has no classifier: fine-tune it first, with --config.init.checkpoint")
  labels = checkpoint.labels or tuple(map(str, range(classes)))
  outputs = ("attentions",) if attention else ()
  run = jax.jit(
      lambda params, images: checkpoint.model.apply({"params": params}, images, outputs=outputs)
  )
  failed, pictures = 0, []
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
    answer = run(checkpoint.params, pixels)
    print(path)
    if attention:
      answer, seen = answer
      pictures.append((_as_seen(checkpoint, pixels[0]), _heat(checkpoint, pixels, seen)))
    if classes:
      _print_top(np.asarray(jax.nn.softmax(answer[0])), labels, top)
  if pictures:
    save_attention(attention, pictures)
    print(f"{attention}: {len(pictures)} images, each as the model saw it and where it looked")
  return DataError.exit_code if failed else 0


def _print_top(scores, labels, top: int) -> None:
  for index in np.argsort(-scores, kind="stable")[:top]:
    print(f"  {scores[index]:7.2%}  {labels[index]}")


def _check_picture(path: str) -> None:
  """Holds that a picture can be written there, before any work."""
  endings = Image.registered_extensions()
  place = pathlib.Path(path)
  if endings.get(place.suffix.lower()) not in Image.SAVE:
    raise ConfigError(f"--attention={path}: name a picture, such as out.png or out.jpg")
  if not place.absolute().parent.is_dir():
    raise ConfigError(f"--attention={path}: there is no directory {place.absolute().parent}")


def _heat(checkpoint, pixels, seen) -> np.ndarray:
  """Attention rollout of one image over the grid of patches; of a distilled model the class
  token's share alone."""
  attentions = np.asarray(seen["attentions"])[:, 0]
  patches = grid(pixels.shape[1:3], checkpoint.model_config["patch_size"])
  return attention_rollout(
      attentions, prefix_tokens=attentions.shape[-1] - patches[0] * patches[1], grid=patches,
      class_token=checkpoint.model.pooling == "cls",
  )


def _as_seen(checkpoint, pixels) -> np.ndarray:
  """uint8 `[H, W, 3]` of a preprocessed image."""
  how = Preprocessing.from_dict(checkpoint.preprocessing)
  return np.round((pixels * how.std + how.mean) * 255).clip(0, 255).astype(np.uint8)

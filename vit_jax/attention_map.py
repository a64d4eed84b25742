"""Where a model looks: attention rollout, and pictures of it.

Attention rollout is of Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (arXiv
2005.00928); figure 6 and appendix D.8 of the ViT paper (arXiv 2010.11929) show it as done here.
"""

import os
from typing import Sequence

import numpy as np
from PIL import Image


def attention_rollout(
    attentions: np.ndarray, *, prefix_tokens: int, grid: tuple[int, int], class_token: bool = True
) -> np.ndarray:
  """How much of each patch reaches the feature that the answer is made of.

  With A_l the attention of layer l averaged over heads, B_l = (A_l + I) / 2 with its rows
  renormalised to 1, the flow of every token into every other is B_L ... B_2 B_1.  Its row of the
  class token is returned, or the mean of the patches' rows.

  Args:
    attentions: float `[L, heads, T, T]` of one image, rows are queries and sum to 1.
    prefix_tokens: tokens before the patches: class, distillation and register tokens.
    grid: (rows, columns) of patches; `prefix_tokens + rows * columns` is T.
    class_token: whether the answer is made of token 0; False for a model without one or with
      another pooling, as is taken for granted where `prefix_tokens` is 0.

  Returns:
    float32 `[rows, columns]`: shares, whose sum is at most 1 (prefix tokens have the rest).

  Raises:
    ValueError: shapes that do not fit together.
  """
  layers, _, tokens, keys = np.shape(attentions)
  if tokens != keys or prefix_tokens + grid[0] * grid[1] != tokens:
    raise ValueError(
        f"attentions of {tokens} x {keys} tokens are not those of {prefix_tokens} tokens and "
        f"{grid[0]} x {grid[1]} patches"
    )
  flow = np.zeros(tokens)
  if class_token and prefix_tokens:
    flow[0] = 1
  else:
    flow[prefix_tokens:] = 1 / (tokens - prefix_tokens)
  # From the last layer down only this row of the product is needed.
  for layer in reversed(range(layers)):
    mixing = np.mean(attentions[layer], axis=0, dtype=np.float64) + np.eye(tokens)
    flow = flow @ (mixing / mixing.sum(axis=-1, keepdims=True))
  return flow[prefix_tokens:].reshape(grid).astype(np.float32)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """The image as bright as it is attended to, as in figure 6 of the ViT paper.

  Args:
    image: uint8 `[H, W, 3]`, as the model saw it.
    heat: `[rows, columns]`, not negative; its largest value leaves the image as it is, 0 is black.

  Returns:
    uint8 `[H, W, 3]`.
  """
  heat = np.asarray(heat, np.float32)
  heat = Image.fromarray(heat / max(float(heat.max()), np.finfo(np.float32).tiny))
  height, width = image.shape[:2]
  brightness = np.asarray(heat.resize((width, height), Image.Resampling.BILINEAR))
  return np.round(image * brightness[..., None]).astype(np.uint8)


def save_attention(
    path: str | os.PathLike, images_and_heats: Sequence[tuple[np.ndarray, np.ndarray]]
) -> None:
  """Writes one picture: a row for each image, on the left the image, on the right its overlay.

  Args:
    path: of a format that Pillow writes, by its extension; an existing file is replaced.
    images_and_heats: at least one (uint8 `[H, W, 3]`, `[rows, columns]`), images all of one size,
      hence the picture has 2 W columns and H rows an image.

  Raises:
    OSError: the file cannot be written.
    ValueError: an unknown extension, or no image.
  """
  rows = [np.hstack([image, overlay(image, heat)]) for image, heat in images_and_heats]
  Image.fromarray(np.vstack(rows)).save(path)

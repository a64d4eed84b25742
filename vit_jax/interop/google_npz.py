"""The .npz of the original ViT code (google-research/vision_transformer), as AugReg published it.

The names are those from before Linen (`MultiHeadDotProductAttention_1`, `LayerNorm_2`,
`MlpBlock_3`), which that code and timm load; newer names alone timm refuses.
"""

from typing import Mapping, Sequence

import numpy as np

from vit_jax.errors import ConfigError
from vit_jax.interop import npz_files
from vit_jax.interop.npz_files import read
from vit_jax.interop.npz_keys import original
from vit_jax.models.positions import learned_positions
from vit_jax.models.vit import DEFAULTS

__all__ = ("choose", "fit", "judge", "read", "write")

FORMAT = "google-npz"
# The class of `vit_jax/models_vit.py` there: classifier "token", "gap" or unpooled.
ARCHITECTURE = "VisionTransformer"


def choose(model: Mapping, architecture: str | None) -> str:
  """"VisionTransformer", where it holds the model.

  Raises:
    ConfigError: another class was asked for.
    CheckpointError: it does not; the text names the targets that do.
  """
  model = {**DEFAULTS, **model}
  pooled = (model["pooling"] == "map", "the original code has no attention pooling")
  return npz_files.choose(
      model, architecture, known=ARCHITECTURE, target=FORMAT, limit=pooled
  )


def fit(model: Mapping, params: Mapping, architecture: str) -> tuple[dict, dict]:
  """The same function as the original code computes it.

  A mask token is left out, missing biases of query, key and value become zeros, fixed positions a
  learned table, and a class token without position gets one of zeros.
  """
  del architecture
  model, params = npz_files.fit(model, params)
  if model["position_embedding"] != "learned":
    model, params = learned_positions(model, params)
  if model["class_token"] and not model["class_token_position"]:
    table = np.asarray(params["position_embedding"])
    row = np.zeros((1, 1, model["width"]), table.dtype)
    params = params | {"position_embedding": np.concatenate([row, table], axis=1)}
  return model | {"class_token_position": True}, params


def write(
    directory, *, model: Mapping, params: Mapping, preprocessing: Mapping | None,
    labels: Sequence[str] | None, architecture: str | None = None, dtype: str = "float32",
    max_shard_bytes: int | None = None,
) -> dict:
  """Fills a directory with model.npz, which the original code and timm load, and conversion.json.

  Args:
    preprocessing, labels: for conversion.json; None where they are not known.
    architecture: "VisionTransformer" or None.
    dtype: "float32", the only one that this code trains on.
    max_shard_bytes: an .npz is one file, so a larger one is only noted.
    Others: as in `huggingface.write`.

  Returns:
    As `huggingface.write`, and "model", "preprocessing" and "labels" too.

  Raises: as `huggingface.write`.
  """
  if dtype != "float32":
    raise ConfigError(
        f"--to=google-npz is written in float32 alone, not {dtype}: the original code trains on "
        "the arrays as they are, and NumPy cannot read bfloat16. --to=big-vision-npz takes it."
    )
  architecture = choose(model, architecture)
  return npz_files.write(
      directory, model=model, params=params, fitted=fit(model, params, architecture),
      preprocessing=preprocessing, labels=labels, architecture=architecture, dtype=dtype,
      max_shard_bytes=max_shard_bytes, rename=original, target=FORMAT,
  )


def judge(directory, batches: Mapping, patch_mask=None) -> dict | None:
  """Lets timm's reader of .npz files compute tokens and outputs: see `npz_files.judge`."""
  del patch_mask
  return npz_files.judge(directory, batches, prefix="")

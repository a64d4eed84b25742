"""The .npz of google-research/big_vision, in its layout of today: `params/`, one array a block."""

from typing import Mapping, Sequence

import numpy as np

from vit_jax.interop import npz_files
from vit_jax.interop.npz_files import read
from vit_jax.interop.safetensors_writer import check_dtype
from vit_jax.models.vit import DEFAULTS

__all__ = ("choose", "fit", "judge", "read", "write")

FORMAT = "big-vision-npz"
# The model_name there: pool_type "tok", "gap", "map" or "none".
ARCHITECTURE = "vit"
_PREFIX = "params/"


def choose(model: Mapping, architecture: str | None) -> str:
  """"vit", where it holds the model.

  Raises:
    ConfigError: another class was asked for.
    CheckpointError: it does not; the text names the targets that do.
  """
  model = {**DEFAULTS, **model}
  unpooled = (model["class_token"] and model["pooling"] == "none",
              "big_vision has a class token only to pool it; --to=google-npz has it unpooled")
  return npz_files.choose(
      model, architecture, known=ARCHITECTURE, target=FORMAT, limit=unpooled
  )


def fit(model: Mapping, params: Mapping, architecture: str) -> tuple[dict, dict]:
  """The same function as big_vision computes it.

  A mask token is left out, missing biases of query, key and value become zeros, MAE's fixed
  positions a learned table; the class token takes up its position, as big_vision's own loader
  has it.
  """
  del architecture
  model, params = npz_files.fit(model, params)
  if not model["class_token"] or model["position_embedding"] != "learned":
    return model, params
  if model["class_token_position"]:
    table, token = np.asarray(params["position_embedding"]), np.asarray(params["class_token"])
    params = params | {"class_token": token + table[:, :1], "position_embedding": table[:, 1:]}
  return model | {"class_token_position": False}, params


def write(
    directory, *, model: Mapping, params: Mapping, preprocessing: Mapping | None,
    labels: Sequence[str] | None, architecture: str | None = None, dtype: str = "float32",
    max_shard_bytes: int | None = None,
) -> dict:
  """Fills a directory with model.npz, which big_vision and timm load, and conversion.json.

  Args:
    architecture: "vit" or None.
    dtype: "float32", "float16" or "bfloat16"; the last lies in the file as big_vision saves it,
      and is read by it and by timm on request.
    Others: as in `google_npz.write`.

  Returns, Raises: as `google_npz.write`.
  """
  check_dtype(dtype)
  architecture = choose(model, architecture)
  return npz_files.write(
      directory, model=model, params=params, fitted=fit(model, params, architecture),
      preprocessing=preprocessing, labels=labels, architecture=architecture, dtype=dtype,
      max_shard_bytes=max_shard_bytes, rename=lambda name: f"{_PREFIX}{name}", target=FORMAT,
  )


def judge(directory, batches: Mapping, patch_mask=None) -> dict | None:
  """Lets timm's reader of .npz files compute tokens and outputs: see `npz_files.judge`."""
  del patch_mask
  return npz_files.judge(directory, batches, prefix=_PREFIX)

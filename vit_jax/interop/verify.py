"""The proof of an export: what was written is read back, and PyTorch judges it.

The one module of this room that computes: it imports jax, and torch where it is installed.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
import platform
from typing import Mapping, Sequence

import jax
import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.interop.export_directory import new_export
from vit_jax.interop.huggingface import FILES, exported, read, write
from vit_jax.interop.huggingface_keys import leaves
from vit_jax.interop.tensor_files import first_ten, read_json, round_to
from vit_jax.models.vit import ViT

# Largest difference allowed, relative to the largest value: float32 rounding over a whole model
# stays a factor of ten below, and a wrong GELU or epsilon on trained weights far above.
TOLERANCE = 2e-5


def export_huggingface(
    directory, *, model: Mapping, params: Mapping, preprocessing: Mapping | None,
    labels: Sequence[str] | None, architecture: str | None, dtype: str, images,
) -> tuple[dict, dict]:
  """Writes a Hugging Face directory that appears complete and proved, or not at all.

  An earlier export there is replaced once the new one has passed; any other content is refused.

  Args:
    directory: to make; its parents are made too.
    images: as in `verify_huggingface`.
    Others: as in `huggingface.write`.

  Returns:
    (report, proof): the content of the new conversion.json, and its "verification".

  Raises:
    ConfigError: unknown architecture or dtype.
    CheckpointError: the class cannot hold the model, the place is taken or not writable, or what
      was written is not the model; whatever was in `directory` is there still.
  """
  with new_export(directory, files=FILES) as partial:
    report = write(
        partial, model=model, params=params, preprocessing=preprocessing, labels=labels,
        architecture=architecture, dtype=dtype,
    )
    try:
      proof = verify_huggingface(partial, model=model, params=params, images=images)
    except (CheckpointError, OSError) as error:  # transformers raises OSError too
      raise CheckpointError(
          f"{directory} was not written, and an earlier export there is as it was: {error}"
      ) from error
  return report | {"verification": proof}, proof


def verify_huggingface(directory, *, model: Mapping, params: Mapping, images) -> dict:
  """Proves that a Hugging Face directory holds this model, and notes it in its conversion.json.

  Reads the directory back and compares every bit; then, where torch and transformers are
  installed, compares the final tokens and the outputs that transformers computes with ours, on
  `images` and on noise, both sides in float32 (ours at the highest matmul precision).  The
  tokens count beside the outputs because a new head is zero and its logits then prove nothing.

  Args:
    directory: as `huggingface.write` left it.
    model: the model dict that was exported.
    params: its parameters in full precision; a reduced-precision export is compared with our
      model on the rounded ones.
    images: float32 `[B, S, S, 3]`, normalised.

  Returns:
    What conversion.json then says under "verification": `bit_equal` (True), `pytorch` (None
    where it is not installed, else for "images" and "noise" the largest differences and values
    of tokens and outputs), `tolerance`, `versions`; for reduced precision `rounding`, the
    largest change of our outputs by rounding the weights, with the largest output.

  Raises:
    CheckpointError: the directory does not hold this model; the text says what differs.
  """
  directory = Path(directory)
  images = np.asarray(images, np.float32)
  noise = np.random.default_rng(0).standard_normal(images.shape, np.float32)
  config = read_json(directory / "config.json")
  architecture, dtype = config["architectures"][0], config["dtype"]
  model, params = exported(model, params, architecture)
  rounded = _map(lambda leaf: round_to(leaf, dtype).astype(np.float32), params)
  compare_bits(directory, model=model, params=rounded)
  result = {"bit_equal": True, "tolerance": TOLERANCE, "pytorch": None, "versions": _versions()}
  if _has_pytorch():
    batches = {"images": images, "noise": noise}
    result["pytorch"] = compare_pytorch(directory, model=model, params=rounded, batches=batches)
  if dtype != "float32":
    ours = _ours(model)
    full, coarse = (ours(p, images)["outputs"] for p in (params, rounded))
    result["rounding"] = {
        "difference": float(np.abs(full - coarse).max()), "largest": float(np.abs(full).max())
    }
  _note(directory, result)
  return result


def compare_bits(directory, *, model: Mapping, params: Mapping):
  """Reads a directory back and compares settings and parameters exactly.

  Args:
    model, params: what it must hold, the parameters float32 and already rounded to its dtype.

  Raises:
    CheckpointError: they differ; the text lists where.
  """
  imported = read(directory)
  wrong = [
      f"{key} is {value!r} instead of {model[key]!r}"
      for key, value in imported.model.items() if value != model[key]
  ]
  found = dict(leaves(imported.params))
  wrong += [
      f"{'/'.join(path)} differs"
      for path, leaf in leaves(params)
      if path not in found or not _same_bits(found[path], np.asarray(leaf, np.float32))
  ]
  if wrong:
    raise CheckpointError(
        f"The export read back is not the model that was exported: {first_ten(wrong)}. "
        "Do not use it; export again, on a disk that is in order."
    )


def compare_pytorch(
    directory, *, model: Mapping, params: Mapping, batches: Mapping[str, np.ndarray]
) -> dict:
  """Lets transformers load a directory and compares its tokens and outputs with ours.

  Args:
    model, params: what it must hold, the parameters float32.
    batches: float32 `[B, S, S, 3]` images by name.

  Returns:
    For each batch the largest "difference" and the "largest" value of "tokens" (after the final
    norm) and "outputs" (logits, or pooled features).

  Raises:
    CheckpointError: keys are missing, unexpected or mismatched, or a difference exceeds
      `TOLERANCE` times the largest value.
  """
  judge, ours = _load_pytorch(Path(directory), pooler=model["pre_logits"]), _ours(model)
  figures = {}
  for name, images in batches.items():
    theirs = _theirs(judge, images)
    figures[name] = {}
    for what, mine in ours(params, images).items():
      difference = float(np.abs(mine - theirs[what]).max())
      largest = float(np.abs(mine).max())
      figures[name][what] = {"difference": difference, "largest": largest}
      # Written so that NaN fails too.
      if not difference <= TOLERANCE * largest:
        raise CheckpointError(
            f"With the export transformers computes other {what} than this model on {name}: they "
            f"differ by {difference:.3g} where the largest is {largest:.3g}, and {TOLERANCE:g} "
            "of it is allowed. Do not publish it: its weights or settings are not the model's."
        )
  return figures


def _has_pytorch() -> bool:
  return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def _ours(model: Mapping):
  """A function of (params, images): our final tokens `[B, N, D]` and outputs `[B, C or D]`."""
  # Scanned blocks keep the compilation short however deep the model is.
  module = ViT(**{**model, "dtype": "float32", "attention": "xla", "scan": True})

  @jax.jit
  def run(params, images):
    return module.apply(
        {"params": params}, images, capture_intermediates=lambda layer, _: layer.name == "norm",
        mutable=["intermediates"],
    )

  def forward(params, images):
    with jax.default_matmul_precision("highest"):
      outputs, captured = run(params, images)
    tokens = captured["intermediates"]["norm"]["__call__"][0]
    return {"tokens": np.asarray(tokens), "outputs": np.asarray(outputs)}

  return forward


def _load_pytorch(directory: Path, *, pooler: bool):
  """Loads the directory's class in float32 for inference, and refuses any unclean load."""
  import transformers

  architecture = read_json(directory / "config.json")["architectures"][0]
  options = {"add_pooling_layer": pooler} if architecture == "ViTModel" else {}
  with _quiet(transformers.utils.logging):
    judge, info = getattr(transformers, architecture).from_pretrained(
        directory, output_loading_info=True, local_files_only=True, **options
    )
  unclean = [
      f"{kind} {first_ten(map(str, info[kind]))}"
      for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]
  ]
  if unclean:
    raise CheckpointError(
        f"transformers {transformers.__version__} does not load the export cleanly: "
        f"{'; '.join(unclean)}. Do not publish it."
    )
  return judge.float().eval()


@contextlib.contextmanager
def _quiet(logging):
  """Keeps the bars of transformers' loading out of our output."""
  shown = logging.is_progress_bar_enabled()
  logging.disable_progress_bar()
  try:
    yield
  finally:
    if shown:
      logging.enable_progress_bar()


def _theirs(judge, images) -> dict[str, np.ndarray]:
  """Final tokens and outputs of a transformers model, as `_ours` names them."""
  import torch

  tokens = []
  hook = judge.base_model.layernorm.register_forward_hook(lambda *call: tokens.append(call[-1]))
  try:
    with torch.no_grad():
      answer = judge(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
  finally:
    hook.remove()
  if "logits" in answer:
    outputs = answer.logits
  elif judge.pooler is not None:
    outputs = answer.pooler_output
  else:
    outputs = answer.last_hidden_state[:, 0]
  return {"tokens": tokens[0].numpy(), "outputs": outputs.numpy()}


def _map(function, tree: Mapping) -> dict:
  """Applies a function to the leaves of a nested dict."""
  return {
      key: _map(function, value) if isinstance(value, Mapping) else function(value)
      for key, value in tree.items()
  }


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def _versions() -> dict[str, str]:
  """Of whatever took part; torch and transformers only where they are installed."""
  names = ["vit_jax", "jax", "flax", "numpy", "safetensors"]
  names += ["torch", "transformers"] if _has_pytorch() else []
  versions = {"python": platform.python_version()}
  for name in names:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return versions


def _note(directory: Path, verification: Mapping):
  """Writes the verification into conversion.json, replacing the file in one step."""
  path = directory / "conversion.json"
  report = read_json(path) if path.is_file() else {}
  partial = directory / ".conversion.json.writing"
  try:
    text = json.dumps({**report, "verification": verification}, indent=2, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
  except OSError as error:
    raise CheckpointError(
        f"{path} cannot be written: {error}. Free some space and convert again."
    ) from error

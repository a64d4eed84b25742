"""What a config leaves open (None), decided by the checkpoint a run starts from, by the devices, or
by defaults.

The result is written into the run, so that resuming and loading it need neither again.
"""

import types

from vit_jax import config as config_lib
from vit_jax.errors import ConfigError
from vit_jax.models import remat
from vit_jax.models.positions import counted_image_size
from vit_jax.models.variants import variant_shape
from vit_jax.models.vit import DEFAULTS, DESCRIPTION, check

# What a config says of its model; the number of classes is the data set's, and an objective adds
# its own decoder.
_MODEL = tuple(name for name in DESCRIPTION if name not in ("num_classes", "pixel_decoder"))
_INPUT_DEFAULTS = {
    "resize": "squash", "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3,
    "exif_orientation": True,
}
# A checkpoint's weights go with any value of these; under another value of the rest they mean
# nothing.
_FREE = (
    "image_size", "position_image_size", "position_interpolation", "pooling",
    "norm_after_pooling", "pre_logits", "distillation_head", "mask_token",
)
# The evaluation transform, beside the image size.
_IMAGES = ("resize", "short_side", "interpolation", "mean", "std", "exif_orientation")
# Every key that a checkpoint decides where it is left open.
OPEN = (
    "model.variant", *(f"model.{name}" for name in _MODEL),
    *(f"input.{name}" for name in _IMAGES),
)
_FIXED_BY_CHECKPOINT = tuple(name for name in _MODEL if name not in _FREE)
# Heads belong to the task that a checkpoint was trained on, a run has its own.
_NOT_INHERITED = ("pre_logits", "distillation_head", "mask_token")


def resolve(config, *, checkpoint, platform: str):
  """Fills the open keys of `config.model` and `config.input`.

  Args:
    checkpoint: a `loading.Checkpoint` to start from, or None.
    platform: of the devices, as jax names it; on "cpu", whose bfloat16 is emulated, the computation
      is in float32 unless the config says otherwise; on "tpu" blocks are scanned.

  Raises:
    ConfigError: the config contradicts the checkpoint or itself.
  """
  model = _resolve_model(config.model, checkpoint, keep_head=config.init.head == "keep")
  dtype = config.model.dtype or ("float32" if platform == "cpu" else "bfloat16")
  on_tpu = platform == "tpu"
  scan = on_tpu if config.model.scan is None else config.model.scan
  # A loop keeps every intermediate of each block, where unrolled blocks let XLA choose.
  remat_choice = config.model.remat or ("dots" if scan and on_tpu else "none")
  values = {f"model.{key}": value for key, value in model.items()}
  values |= {"model.dtype": dtype, "model.scan": scan, "model.remat": remat_choice}
  values |= {
      f"input.{key}": value
      for key, value in _resolve_input(config.input, model["image_size"], checkpoint).items()
  }
  return config_lib.replace(config, values)


def model_arguments(config, *, num_classes: int) -> dict:
  """Returns the attributes of `models.vit.ViT` that a resolved config describes."""
  names = _MODEL + (
      "dropout", "attention_dropout", "stochastic_depth", "stochastic_depth_schedule", "dtype",
      "gradient_dtype", "scan", "remat", "attention", "attention_initialization",
  )
  given = {name: config.model[name] for name in names if config.model[name] is not None}
  return _open_defaults(given) | given | {"num_classes": num_classes}


def preprocessing(config) -> dict:
  """Returns the evaluation transform that a resolved config describes, as `data.preprocess` takes
  it."""
  return {name: config.input[name] for name in _IMAGES} | {"image_size": config.model.image_size}


def _resolve_model(model, checkpoint, *, keep_head: bool) -> dict:
  """Shape and numerics of the model, each key from the config, the checkpoint or the default."""
  given = {}
  if model.variant or not checkpoint:
    try:
      given = variant_shape(model.variant or "S/16")
    except ValueError as error:
      raise ConfigError(f"config.model.variant: {error}") from error
  given |= {k: model[k] for k in _MODEL if model[k] is not None}
  theirs = DEFAULTS | checkpoint.model_config if checkpoint else {}
  for key in _FIXED_BY_CHECKPOINT:
    if checkpoint and given.get(key, theirs[key]) != theirs[key]:
      raise ConfigError(
          f"config.model.{key} is {given[key]!r}, but {checkpoint.ref} has "
          f"{theirs[key]!r}: leave model.variant and model.{key} unset to take the checkpoint's"
      )
  kept = {k: theirs[k] for k in _MODEL if k in theirs and k not in _NOT_INHERITED}
  if keep_head and checkpoint:  # with the layers that are its
    kept["distillation_head"] = theirs["distillation_head"]
    given["pre_logits"] |= theirs["pre_logits"]
  if kept.get("pooling") == "none":  # of masked pre-training
    kept["pooling"] = "cls" if kept["class_token"] else "gap"
  if given.get("pooling", kept.get("pooling")) != "gap":
    kept.pop("norm_after_pooling", None)
  shape = _open_defaults(given) | kept | given
  side = shape["image_size"]
  if not isinstance(side, int):
    raise ConfigError(
        f"{checkpoint.ref} is for images of {side[0]} x {side[1]} pixels: set "
        "config.model.image_size, the side of the squares that training takes"
    )
  if side % shape["patch_size"]:
    near = max(1, round(side / shape["patch_size"])) * shape["patch_size"]
    raise ConfigError(
        f"config.model.image_size {side} is not a multiple of the patch size "
        f"{shape['patch_size']}; the nearest that is: {near}"
    )
  if checkpoint and model.position_image_size is None:
    counted = counted_image_size(theirs, side)
    # A run's images are squares of one size: what counted others counts anew.
    shape["position_image_size"] = counted if isinstance(counted, int) else None
  try:
    if model.remat not in (None, *remat.CHOICES):
      remat.names_of(model.remat)
    # A head of one class stands for that of the data set.
    check(types.SimpleNamespace(**shape, num_classes=1, pixel_decoder=False))
  except ValueError as error:
    raise ConfigError(f"config.model: {error}") from error
  return shape


def _open_defaults(given: dict) -> dict:
  """Values of the keys that neither config nor checkpoint decides."""
  pooling = given.get("pooling", "cls")
  return {
      **{key: DEFAULTS[key] for key in _MODEL if key in DEFAULTS},
      "image_size": 224, "pooling": pooling, "class_token": pooling == "cls",
  }


def _resolve_input(inputs, image_size: int, checkpoint) -> dict:
  """The evaluation transform, each key from the config, the checkpoint or the default."""
  theirs = dict(checkpoint.preprocessing) if checkpoint and checkpoint.preprocessing else {}
  chosen = {
      key: inputs[key] if inputs[key] is not None else theirs.get(key, default)
      for key, default in _INPUT_DEFAULTS.items()
  }
  share = 8 / 7 if chosen["resize"] == "center" else None
  if theirs.get("short_side") and chosen["resize"] in ("center", theirs["resize"]):
    # The checkpoint's crop is a share of what it is cut from; keep that share at another size.
    size = theirs["image_size"]
    share = theirs["short_side"] / (size if isinstance(size, int) else max(size))
  short_side = inputs.short_side
  if short_side is None and share:
    short_side = round(image_size * share)
  if short_side is not None and share is None and inputs.resize is None:
    raise ConfigError(
        f"config.input.short_side {short_side} is for a crop, and this run only squashes images: "
        "set config.input.resize=center (or squash, to squash to short_side and then crop)"
    )
  if short_side is not None and short_side < image_size:
    raise ConfigError(
        f"config.input.short_side {short_side} is smaller than config.model.image_size "
        f"{image_size}, which is cropped out of it"
    )
  return chosen | {"short_side": short_side}

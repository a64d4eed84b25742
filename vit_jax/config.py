"""Configs: every key with its type, default and class; loading, overriding, comparing, storing.

A recipe (`configs/*.py`) sets the keys it cares about; the rest have the defaults below.  Keys are
of three classes, which decide what may change when a run is resumed:
  RUNTIME   how it is computed or watched; may differ, the change is recorded.
  RECIPE    what is optimised and how; differs only with `--amend`.
  IDENTITY  what the run is; a difference is refused.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import json
import math
import os
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from vit_jax import durations
from vit_jax.errors import ConfigError

RUNTIME, RECIPE, IDENTITY = "runtime", "recipe", "identity"
RECIPES = pathlib.Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True)
class Field:
  """One config key: its default, class, and which values it takes.

  `kind` is the type where the default is None, which then stays allowed; `units` makes a string a
  duration, `is_regex` a regular expression, `is_path` one that is made absolute; `choices`,
  `minimum` and `maximum` bound the value, `prefixes` begin what is allowed beside the choices;
  `words` are texts that are allowed beside a number or mean no path; `length` makes it a tuple of
  that many `kind`, `is_rules` one of (regular expression, number) pairs.
  """

  default: Any
  key_class: str
  doc: str
  kind: Any = None
  choices: tuple = ()
  prefixes: tuple[str, ...] = ()
  minimum: float | None = None
  maximum: float | None = None
  units: tuple[str, ...] = ()
  is_regex: bool = False
  is_path: bool = False
  length: int = 0
  words: tuple[str, ...] = ()
  is_rules: bool = False

  @property
  def value_type(self) -> type:
    return self.kind or type(self.default)

  @property
  def optional(self) -> bool:
    return self.kind is not None


_STEPS = durations.STEP_UNITS
_ANY_UNIT = durations.STEP_UNITS + durations.TIME_UNITS

FIELDS = {
    "seed": Field(0, IDENTITY, "seed of everything random", minimum=0, maximum=2**31 - 1),
    "total": Field("90 epochs", RECIPE, "length of training", units=_STEPS[:-1]),
    "micro_batch": Field(
        None, RUNTIME, "examples computed at a time; auto: the most that fit [all of a batch]", int,
        minimum=1, words=("auto",),
    ),
    "log_every": Field("50 steps", RUNTIME, "between two progress lines", units=_STEPS),
    # The model.  None: as the checkpoint in init.checkpoint, or the value in brackets.
    "model.variant": Field(None, IDENTITY, 'size and patch, as "B/16" ["S/16"]', str),
    "model.width": Field(None, IDENTITY, "replaces the variant's", int, minimum=1),
    "model.depth": Field(None, IDENTITY, "replaces the variant's", int, minimum=1),
    "model.mlp_dim": Field(None, IDENTITY, "replaces the variant's", int, minimum=1),
    "model.num_heads": Field(None, IDENTITY, "replaces the variant's", int, minimum=1),
    "model.patch_size": Field(None, IDENTITY, "replaces the variant's", int, minimum=1),
    "model.image_size": Field(None, IDENTITY, "side in pixels [224]", int, minimum=1),
    "model.class_token": Field(None, IDENTITY, "prepend one [where pooling is cls]", bool),
    "model.distillation_token": Field(None, IDENTITY, "prepend a second, DeiT's [False]", bool),
    "model.distillation_head": Field(None, IDENTITY, "a second classifier on it [False]", bool),
    "model.register_tokens": Field(None, IDENTITY, "further tokens [0]", int, minimum=0),
    "model.mask_token": Field(None, IDENTITY, "for masked patches [False]", bool),
    "model.pooling": Field(
        None, IDENTITY, "class token, mean over patches or attention pooling [cls]", str,
        choices=("cls", "gap", "map"),
    ),
    "model.norm_after_pooling": Field(
        None, IDENTITY, "norm the mean of the patches instead of each [False]", bool
    ),
    "model.pre_logits": Field(False, IDENTITY, "dense layer with tanh before the head"),
    "model.position_embedding": Field(
        None, IDENTITY, "learned, or fixed as big_vision's or MAE's [learned]", str,
        choices=("learned", "sincos2d", "sincos2d_mae"),
    ),
    "model.class_token_position": Field(
        None, IDENTITY, "learned positions cover class and distillation token [True]", bool
    ),
    "model.position_interpolation": Field(
        None, IDENTITY, "of positions at another image size [bicubic]", str,
        choices=("bicubic", "bilinear", "bicubic_antialias", "bilinear_antialias"),
    ),
    "model.qkv_bias": Field(None, IDENTITY, "biases of query, key and value [True]", bool),
    "model.qk_norm": Field(None, IDENTITY, "layer norm of queries and keys [False]", bool),
    "model.layer_scale": Field(
        None, IDENTITY, "initial value of LayerScale [off]", float, minimum=0
    ),
    "model.mlp": Field(
        None, IDENTITY, "the MLP's kind [gelu]", str, choices=("gelu", "swiglu")
    ),
    "model.gelu": Field(
        None, IDENTITY, "tanh approximation or exact erf [tanh]", str, choices=("tanh", "erf")
    ),
    "model.layer_norm_epsilon": Field(
        None, IDENTITY, "of every layer norm [1e-6]", float, minimum=0
    ),
    "model.dropout": Field(0.0, RECIPE, "rate after dense layers", minimum=0, maximum=0.99),
    "model.attention_dropout": Field(
        0.0, RECIPE, "rate on attention weights", minimum=0, maximum=0.99
    ),
    "model.stochastic_depth": Field(
        0.0, RECIPE, "rate of the last block", minimum=0, maximum=0.99
    ),
    "model.stochastic_depth_schedule": Field(
        "linear", RECIPE, "over the blocks, from 0 or constant", choices=("linear", "constant")
    ),
    "model.dtype": Field(
        None, RECIPE, "of the computation [bfloat16, on a CPU float32]", str,
        choices=("bfloat16", "float32"),
    ),
    "model.scan": Field(False, RUNTIME, "run the blocks by lax.scan instead of unrolled"),
    "model.attention": Field(
        "auto", RUNTIME, "implementation of attention", choices=("auto", "xla", "cudnn")
    ),
    "input.dataset": Field(
        "folder", IDENTITY, "where examples come from, or tfds:NAME[/CONFIG][:VERSION]",
        choices=(
            "folder", "array_record", "digits", "cifar10", "cifar100", "mnist", "fashion_mnist",
            "imagenet_v2", "mixture",
        ),
        prefixes=("tfds:",),
    ),
    "input.path": Field(
        None, RUNTIME, "directory of the data set; of a mixture the file that lists it", str,
        is_path=True,
    ),
    "input.split": Field(
        "train", IDENTITY, 'trained on; a part of one as "train[:99%]", then none is held out'
    ),
    "input.sampling": Field(
        "uniform", RECIPE, "each example once an epoch, or each class equally often",
        choices=("uniform", "class_balanced"),
    ),
    "input.held_out": Field(
        0.1, IDENTITY, "share held out where no such split exists; 0: none", minimum=0, maximum=0.9
    ),
    "input.batch_size": Field(128, RECIPE, "examples of one step, over all devices", minimum=2),
    "input.crop": Field(
        "random_resized", RECIPE, "of training images; see data/augment.py",
        choices=(
            "random_resized", "simple", "random", "center", "squash_random", "pad", "none",
        ),
    ),
    "input.crop_min_area": Field(
        0.08, RECIPE, "smallest share of a random_resized crop", minimum=0.001, maximum=1
    ),
    "input.crop_padding": Field(0, RECIPE, "pixels added on each side by a pad crop", minimum=0),
    "input.crop_short_side": Field(
        None, RECIPE, "resized to this before a random, center or squash_random crop [8/7 image]",
        int, minimum=1,
    ),
    "input.crop_filter": Field(
        "bilinear", RECIPE, "of training crops and of timm's RandAugment",
        choices=("bilinear", "bicubic", "random"),
    ),
    "input.antialias": Field(
        False, RECIPE, "average where a random_resized crop is made smaller; others always are"
    ),
    "input.scaled_decoding": Field(
        False, RECIPE, "decode JPEGs at 1/2, 1/4 or 1/8 where the crop stays large enough"
    ),
    "input.flip": Field(True, RECIPE, "mirror every second training image"),
    "input.rand_augment": Field(
        None, RECIPE, 'LAYERS,MAGNITUDE as "2,15", or timm\'s "rand-m9-mstd0.5-inc1"; None: off',
        str,
    ),
    "input.three_augment": Field(False, RECIPE, "DeiT-III's: gray, solarized or blurred"),
    "input.color_jitter": Field(
        0.0, RECIPE, "strength, of brightness, contrast and saturation; 0: off", minimum=0
    ),
    "input.random_erasing": Field(
        0.0, RECIPE, "probability that a box is erased", minimum=0, maximum=1
    ),
    "input.random_erasing_mode": Field(
        "pixel", RECIPE, "fill with noise or with the mean colour", choices=("pixel", "const")
    ),
    "input.resize": Field(
        None, IDENTITY, "evaluation: squash, or centre crop [squash]", str,
        choices=("squash", "center"),
    ),
    "input.short_side": Field(
        None, IDENTITY, "resized to this before a centre crop [8/7 of the image]", int, minimum=1
    ),
    "input.interpolation": Field(
        None, IDENTITY, "of evaluation resizing [bilinear]", str, choices=("bilinear", "bicubic")
    ),
    "input.mean": Field(None, IDENTITY, "of pixels in 0..1 [.5 .5 .5]", float, length=3),
    "input.std": Field(
        None, IDENTITY, "of pixels in 0..1 [.5 .5 .5]", float, length=3, minimum=1e-6
    ),
    "input.exif_orientation": Field(
        None, IDENTITY, "turn photos as their EXIF data says [True]", bool
    ),
    "input.threads": Field(2, RUNTIME, "that decode images", minimum=0),
    "input.workers": Field(
        0, RUNTIME, "processes that decode images instead of the threads", minimum=0
    ),
    "input.max_bad_fraction": Field(
        0.01, RUNTIME, "share of unreadable images above which the run stops", minimum=0, maximum=1
    ),
    "input.repeated_augmentation": Field(
        1, RECIPE, "times each image stands in the order, so that R epochs visit each R times",
        minimum=1,
    ),
    "batch_ops.mixup_alpha": Field(0.0, RECIPE, "of Mixup's Beta distribution; 0: off", minimum=0),
    "batch_ops.cutmix_alpha": Field(
        0.0, RECIPE, "of CutMix's Beta distribution; 0: off", minimum=0
    ),
    "batch_ops.switch_probability": Field(
        0.5, RECIPE, "of CutMix where Mixup is on, too", minimum=0, maximum=1
    ),
    "batch_ops.mix_per_pair": Field(
        False, RECIPE, "each pair of neighbours draws for itself, not once a batch"
    ),
    "batch_ops.label_smoothing": Field(
        0.0, RECIPE, "share of a target that is spread over the classes", minimum=0, maximum=0.999
    ),
    "objective.loss": Field(
        "softmax", RECIPE, "cross-entropy among all classes, or of each class's own sigmoid",
        choices=("softmax", "sigmoid"),
    ),
    "objective.class_weights": Field(
        None, RECIPE, "balanced, or a JSON file of {class: weight}; None: all 1", str,
        is_path=True, words=("balanced",),
    ),
    "objective.head_bias": Field(0.0, RECIPE, "of the new head, as -10 for 21 843 sigmoids"),
    "optimizer.name": Field("adamw", RECIPE, "the rule", choices=("adam", "adamw", "sgd")),
    "optimizer.learning_rate": Field(1e-3, RECIPE, "the peak", minimum=1e-12),
    "optimizer.learning_rate_batch_size": Field(
        None, RECIPE, "batch that the rate is meant for: it is scaled to the run's; None: as it is",
        int, minimum=1,
    ),
    "optimizer.learning_rate_rules": Field(
        (), RECIPE, '((regex, multiplier), ...) of paths; the first that matches counts',
        is_rules=True,
    ),
    "optimizer.layer_decay": Field(
        None, RECIPE, "the rate falls by this factor from layer to layer towards the input", float,
        minimum=0.01, maximum=1,
    ),
    "optimizer.freeze": Field(
        None, IDENTITY, "regex of paths that are not trained", str, is_regex=True
    ),
    "optimizer.b1": Field(0.9, RECIPE, "decay of Adam's first moment", minimum=0, maximum=1),
    "optimizer.b2": Field(0.999, RECIPE, "decay of Adam's second moment", minimum=0, maximum=1),
    "optimizer.epsilon": Field(1e-8, RECIPE, "added to Adam's denominator", minimum=0),
    "optimizer.moment_dtype": Field(
        None, IDENTITY, "of Adam's first moment or sgd's momentum [float32]", str,
        choices=("bfloat16",),
    ),
    "optimizer.momentum": Field(0.9, RECIPE, "of sgd", minimum=0, maximum=1),
    "optimizer.weight_decay": Field(
        0.0, RECIPE, "times the learning rate; of adam added to the gradient", minimum=0
    ),
    "optimizer.weight_decay_independent": Field(
        False, RECIPE, "times the schedule's share of its peak instead, as big_vision writes it"
    ),
    "optimizer.weight_decay_mask": Field(
        "kernel$", RECIPE, "regex of paths that decay", is_regex=True
    ),
    "optimizer.clip_global_norm": Field(
        1.0, RECIPE, "largest gradient norm; None: off", float, minimum=1e-12
    ),
    "optimizer.ema_decay": Field(
        None, RECIPE, "of the average of parameters that is evaluated and exported; None: off",
        float, minimum=0, maximum=0.9999999,
    ),
    "schedule.name": Field(
        "cosine", RECIPE, "decay", choices=("cosine", "linear", "rsqrt", "constant")
    ),
    "schedule.warmup": Field("0 steps", RECIPE, "linear from 0", units=_STEPS),
    "schedule.cooldown": Field(
        "0 steps", RECIPE, "linear to the end, of rsqrt and constant", units=_STEPS
    ),
    "schedule.timescale": Field(
        "10000 steps", RECIPE, "of rsqrt, at which the rate is the peak / sqrt(2)", units=_STEPS
    ),
    "schedule.end_learning_rate": Field(0.0, RECIPE, "where the decay ends", minimum=0),
    "init.checkpoint": Field(
        None, IDENTITY, "REF whose weights the run starts from", str, is_path=True
    ),
    "init.required": Field(False, IDENTITY, "init.checkpoint has to be given, as to fine-tune"),
    "evaluate.every": Field("1 epochs", RUNTIME, "between two evaluations", units=_STEPS),
    "evaluate.split": Field(
        None, RUNTIME, 'perhaps a part as "train[99%:]" [validation where it exists, else test]',
        str,
    ),
    "evaluate.real_labels": Field(
        None, RUNTIME, "ImageNet-ReaL's real.json, whose labels replace the split's own", str,
        is_path=True,
    ),
    "evaluate.classes": Field(
        "by_name", RUNTIME, "how a checkpoint's classes must agree with those of the data",
        choices=("by_name", "by_order"),
    ),
    "evaluate.batch_size": Field(None, RUNTIME, "[input.batch_size]", int, minimum=1),
    "checkpoint.every": Field("10 minutes", RUNTIME, "between two checkpoints", units=_ANY_UNIT),
    "checkpoint.keep_latest": Field(2, RUNTIME, "newest checkpoints kept", minimum=1),
    "checkpoint.best_metric": Field(
        None, RUNTIME, "evaluation metric whose best checkpoint is kept; None: off", str,
        choices=("accuracy",),
    ),
    "debug.repeat_batch": Field(
        False, IDENTITY, "train on the first batch for ever: measures the step without the input"
    ),
    "mesh.replica": Field(None, RUNTIME, "data-parallel copies [what is left]", int, minimum=1),
    "mesh.fsdp": Field(1, RUNTIME, "data-parallel shards of the parameters", minimum=1),
    "mesh.tensor": Field(1, RUNTIME, "tensor-parallel shards of each layer", minimum=1),
}


def load(spec: str, overrides: dict[str, str] | None = None) -> FrozenConfigDict:
  """Loads a recipe, applies overrides, validates every key, and freezes.

  Args:
    spec: NAME[:ARG] of a shipped recipe, or FILE.py[:ARG].
    overrides: key to text, as given on the command line without `--config.`.

  Raises:
    ConfigError: no such recipe, unknown key, wrong type or value; with the nearest valid name.
  """
  config = complete(_flatten(_run_recipe(spec)), origin=f"recipe {spec!r}")
  return override(config, overrides or {})


def override(config: FrozenConfigDict, overrides: dict[str, str]) -> FrozenConfigDict:
  """Returns the config with keys (dotted) set from the text of a command line.

  Raises:
    ConfigError: unknown key, wrong type or value.
  """
  for key in overrides:
    _check_known(key, origin="the command line")
  values = {key: _parse(key, text) for key, text in overrides.items()}
  return override_values(config, values, origin="the command line")


def override_values(config: FrozenConfigDict, values: dict[str, Any], *, origin: str):
  """Returns the config with keys (dotted) set to values; raises as `override`."""
  for key in values:
    _check_known(key, origin=origin)
  return complete(_flatten(config) | values, origin=origin)


def sweep(spec: str) -> list[dict[str, Any]]:
  """What a recipe's `sweep(arg)` varies: dotted keys to values, one dict for each run.

  Raises:
    ConfigError: it has no such function, or that returns something else.
  """
  path, arg, module = _recipe_module(spec)
  if not hasattr(module, "sweep"):
    raise ConfigError(
        f"--config={spec}: {path} defines no sweep(arg), a function that returns a list such as "
        '[{"optimizer.learning_rate": 0.01}, {"optimizer.learning_rate": 0.03}]'
    )
  with _refusals(spec, path):
    found = list(module.sweep(arg or None))
  if not found or not all(isinstance(values, dict) and values for values in found):
    raise ConfigError(f"{path}: sweep(arg) must return a list of dicts of keys and values")
  return found


def complete(values: dict[str, Any], *, origin: str) -> FrozenConfigDict:
  """Validates dotted keys and fills in the defaults of the missing ones."""
  for key in values:
    _check_known(key, origin=origin)
  config = ConfigDict()
  for key, field in FIELDS.items():
    section, _, name = key.rpartition(".")
    if section and section not in config:
      config[section] = ConfigDict()
    target = config[section] if section else config
    target[name] = _check(key, values.get(key, field.default), origin)
  return FrozenConfigDict(config)


def replace(config: FrozenConfigDict, values: dict[str, Any]) -> FrozenConfigDict:
  """Returns the config with some keys (dotted) set to new values."""
  return complete(_flatten(config) | values, origin="the resolved config")


def to_json(config) -> dict:
  """Returns plain nested dicts, lists and scalars."""
  return json.loads(json.dumps(config.to_dict()))


def from_json(tree: dict, *, origin: str) -> FrozenConfigDict:
  """The inverse of `to_json`; keys added since the tree was written get their defaults."""
  return complete(_flatten(tree), origin=origin)


def differences(old, new) -> dict[str, dict[str, tuple]]:
  """Returns {class: {key: (old value, new value)}} of the keys whose values differ."""
  before, after = _flatten(old), _flatten(new)
  found = {RUNTIME: {}, RECIPE: {}, IDENTITY: {}}
  for key in FIELDS:
    if before[key] != after[key]:
      found[_class_of(key, after)][key] = (before[key], after[key])
  return found


def _class_of(key: str, values: dict) -> str:
  """A key's class; each micro-batch has dropout of its own, so it then belongs to the recipe."""
  random = ("model.dropout", "model.attention_dropout", "model.stochastic_depth")
  if key == "micro_batch" and any(values[name] for name in random):
    return RECIPE
  return FIELDS[key].key_class


def recipes() -> dict[str, pathlib.Path]:
  """Returns the shipped recipes by name."""
  files = sorted(RECIPES.glob("*.py"))
  return {f.stem: f for f in files if f.stem not in ("__init__", "common")}


def _run_recipe(spec: str):
  """Executes `get_config(ARG)` of NAME[:ARG] or FILE.py[:ARG]."""
  path, arg, module = _recipe_module(spec)
  with _refusals(spec, path):
    if not hasattr(module, "get_config"):
      raise ValueError(f"{path} has no function get_config(arg) that returns a ConfigDict")
    config = module.get_config(arg or None)
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"{path}: get_config(arg) returned {type(config).__name__}, no ConfigDict")
  return config


def _recipe_module(spec: str):
  """File, argument and executed module of NAME[:ARG] or FILE.py[:ARG]."""
  file = re.fullmatch(r"(.*?\.py)(?::(.*))?", spec)
  name, arg = file.groups() if file else spec.partition(":")[::2]
  path = pathlib.Path(name) if name.endswith(".py") else recipes().get(name)
  if path is None:
    near = difflib.get_close_matches(name, recipes(), n=1, cutoff=0.0)
    raise ConfigError(
        f"--config={spec}: there is no recipe {name!r}; did you mean {near[0]!r}? "
        "`vit-jax configs` lists them; a file of yours is named with its .py"
    )
  if not path.is_file():
    raise ConfigError(f"--config={spec}: there is no file {path}")
  module_spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
  module = importlib.util.module_from_spec(module_spec)
  with _refusals(spec, path):
    module_spec.loader.exec_module(module)
  return path, arg, module


@contextlib.contextmanager
def _refusals(spec: str, path: pathlib.Path):
  """Turns what a recipe raises into a ConfigError."""
  try:
    yield
  except ValueError as error:  # how a recipe refuses its argument
    raise ConfigError(f"--config={spec}: {error}") from error
  except Exception as error:  # a file of the user's, which may hold any mistake
    raise ConfigError(
        f"{path} does not run: {type(error).__name__}: {error}. --debug shows where; "
        "get_config(arg) must return a ConfigDict"
    ) from error


def _flatten(tree, prefix: str = "") -> dict[str, Any]:
  """Nested mapping to dotted keys."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, (dict, ConfigDict)):
      flat |= _flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def _check_known(key: str, *, origin: str):
  if key in FIELDS:
    return
  if any(name.startswith(key + ".") for name in FIELDS):
    raise ConfigError(
        f"{origin} sets config.{key}, which is a section: set one of its keys, such as "
        f"config.{next(name for name in FIELDS if name.startswith(key + '.'))}"
    )
  last = {name.rpartition(".")[2]: name for name in FIELDS}
  near = difflib.get_close_matches(key, FIELDS, n=1, cutoff=0.6) or [
      last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], last, 1, 0.5)
  ]
  hint = f"; did you mean config.{near[0]}?" if near else "."
  raise ConfigError(
      f"{origin} sets config.{key}, which does not exist{hint} `vit-jax configs --keys` lists all"
  )


def _check(key: str, value, origin: str):
  """Returns the value in its field's exact type, or raises ConfigError."""
  field = FIELDS[key]
  if value is None:
    if field.optional:
      return None
    _refuse(key, value, "a value (it cannot be None)", origin)
  if field.length:
    if not isinstance(value, (tuple, list)) or len(value) != field.length:
      _refuse(key, value, f"{field.length} numbers, as in (0.5, 0.5, 0.5)", origin)
    return tuple(_check_scalar(key, item, origin) for item in value)
  if field.is_rules:
    return _check_rules(key, value, origin)
  value = _check_scalar(key, value, origin)
  if field.is_path and value not in field.words:
    # A run is resumed and evaluated from anywhere.
    value = os.path.abspath(os.path.expanduser(value))
  if field.is_regex:
    _check_regex(key, value, value, origin)
  begins = isinstance(value, str) and value.startswith(field.prefixes)
  if field.choices and value not in field.choices and not begins:
    near = difflib.get_close_matches(str(value), map(str, field.choices), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    _refuse(key, value, f"one of {', '.join(map(repr, field.choices))}{hint}", origin)
  if field.units:
    try:
      durations.parse(value, units=field.units)
    except ValueError as error:
      raise ConfigError(f"{origin} sets config.{key}: {error}") from error
  return value


def _check_rules(key, value, origin) -> tuple[tuple[str, float], ...]:
  pairs = value if isinstance(value, (tuple, list)) else (None,)
  for pair in pairs:
    if not isinstance(pair, (tuple, list)) or [*map(type, pair)] not in ([str, int], [str, float]):
      _refuse(key, value, "(regex, number) pairs, as in (('^head/', 10.0),)", origin)
    _check_regex(key, value, pair[0], origin)
  return tuple((pattern, float(number)) for pattern, number in pairs)


def _check_regex(key, value, pattern: str, origin) -> None:
  try:
    re.compile(pattern)
  except re.error as error:
    _refuse(key, value, f"a regular expression ({error})", origin)


def _check_scalar(key, value, origin):
  """Exact types: an int becomes a float where a float is due, a bool is never a number."""
  expected = FIELDS[key].value_type
  if isinstance(value, str) and value in FIELDS[key].words:
    return value
  if expected is float and type(value) is int:
    value = float(value)
  if type(value) is not expected:
    words = "".join(f", or {word!r}" for word in FIELDS[key].words)
    _refuse(key, value, f"of type {expected.__name__}{words}", origin)
  low, high = FIELDS[key].minimum, FIELDS[key].maximum
  if expected is float and not math.isfinite(value):
    _refuse(key, value, "a finite number", origin)
  if low is not None and value < low:
    _refuse(key, value, f"at least {low}", origin)
  if high is not None and value > high:
    _refuse(key, value, f"at most {high}", origin)
  return value


def _refuse(key, value, wanted, origin):
  raise ConfigError(f"{origin} sets config.{key} to {value!r}; it must be {wanted}")


def _parse(key: str, text: str):
  """Reads the text of a command-line override as the field's type."""
  field = FIELDS[key]
  is_text = field.value_type is str and not field.length
  # Of a key with choices "none" may be meant as one of them; only None leaves it open.
  nothing = ("None", "null") if field.choices else ("None", "none", "null", "NONE", "NULL", "Null")
  if text in nothing and (field.optional or not is_text):
    return None
  if is_text:
    return text
  if field.value_type is bool and text.lower() in ("true", "false"):
    return text.lower() == "true"
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError):
    return text

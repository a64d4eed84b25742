"""Configs: loading, overriding, comparing and storing them.

A recipe (`configs/*.py`) sets the keys it cares about; the rest have the defaults of `fields.py`,
which also says what each takes and whether it may change when a run is resumed.
"""

import ast
import contextlib
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
from vit_jax.errors import ConfigError, redacted
from vit_jax.fields import FIELDS, IDENTITY, RECIPE, RUNTIME

RECIPES = pathlib.Path(__file__).parent / "configs"


def load(spec: str, overrides: dict[str, str] | None = None) -> FrozenConfigDict:
  """Loads a recipe, applies overrides, validates every key, and freezes.

  Args:
    spec: NAME[:ARG] of a shipped recipe, or FILE.py[:ARG].
    overrides: key to text, as given on the command line without `--config.`.

  Raises:
    ConfigError: no such recipe, unknown key, wrong type or value; with the nearest valid name.
  """
  config = complete(flatten(_run_recipe(spec)), origin=f"recipe {spec!r}")
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
  return complete(flatten(config) | values, origin=origin)


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
  return complete(flatten(config) | values, origin="the resolved config")


def to_json(config) -> dict:
  """Returns plain nested dicts, lists and scalars."""
  return json.loads(json.dumps(config.to_dict()))


def from_json(tree: dict, *, origin: str) -> FrozenConfigDict:
  """The inverse of `to_json`; keys added since the tree was written get their defaults."""
  return complete(flatten(tree), origin=origin)


def flatten(tree, prefix: str = "") -> dict[str, Any]:
  """Returns {dotted key: value} of a config, or of a nested dict as of `to_json`."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, (dict, ConfigDict)):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def differences(old, new) -> dict[str, dict[str, tuple]]:
  """Returns {class: {key: (old value, new value)}} of the keys whose values differ."""
  before, after = flatten(old), flatten(new)
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
  if isinstance(value, str) and redacted(value) != value:
    raise ConfigError(
        f"{origin} sets config.{key} to {redacted(value)!r}, with a secret, and the config is on "
        "record in the run and its checkpoints: fetch what it leads to, and give its path"
    )
  is_reference = isinstance(value, str) and (value.startswith(("hf:", "timm:")) or "://" in value)
  if field.is_path and value not in field.words and not is_reference:
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

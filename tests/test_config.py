"""Configs: unknown keys, exact types, durations, classes of keys, storage, recipes."""

import ast
import json
import os
import pathlib
import re

import pytest

from vit_jax import config as config_lib
from vit_jax.config import IDENTITY, RECIPE, RUNTIME
from vit_jax.errors import ConfigError
from vit_jax.objectives.supervised import LOSSES
from vit_jax.optim.optimizer import OPTIMIZERS
from vit_jax.optim.schedule import SCHEDULES


def defaults(**values):
  return config_lib.complete(
      {key.replace("__", "."): value for key, value in values.items()}, origin="a test"
  )


def refused(call, *arguments, **keywords):
  with pytest.raises(ConfigError) as error:
    call(*arguments, **keywords)
  return str(error.value)


def complete(key, value):
  config = config_lib.complete({key: value}, origin="a test")
  for part in key.split("."):
    config = config[part]
  return config


# Unknown keys.


@pytest.mark.parametrize(
    "key, near",
    [
        ("optimizer.learning_rte", "optimizer.learning_rate"),
        ("optimizer.lr_learning_rate", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("input.batchsize", "input.batch_size"),
        ("batch_size", "input.batch_size"),
        ("model.drop_out", "model.dropout"),
        ("sed", "seed"),
        ("mesh.replicas", "mesh.replica"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key, near):
  said = refused(config_lib.override, defaults(), {key: "1"})
  assert f"config.{key}, which does not exist; did you mean config.{near}?" in said
  assert "the command line" in said and "vit-jax configs --keys" in said


def test_a_key_like_no_other_is_refused_without_a_guess():
  said = refused(config_lib.complete, {"xyzzy": 1}, origin="recipe 'mine'")
  assert "recipe 'mine' sets config.xyzzy, which does not exist." in said
  assert "did you mean" not in said


@pytest.mark.parametrize("key", ["optimizer", "model"])
def test_a_section_is_not_a_key(key):
  said = refused(config_lib.override, defaults(), {key: "1"})
  assert f"config.{key}, which is a section" in said


def test_a_key_has_no_keys_below():
  said = refused(config_lib.override, defaults(), {"input.batch_size.more": "1"})
  assert "config.input.batch_size.more, which does not exist" in said


@pytest.mark.parametrize("key, text", [
    ("model.dropout", "1"), ("model.stochastic_depth", "1.0"), ("input.std", "(0, 0, 0)"),
    ("input.crop_min_area", "3"), ("optimizer.clip_global_norm", "-1"), ("input.held_out", "1"),
    ("optimizer.learning_rate", "1e999"), ("optimizer.learning_rate", "0"),
    ("optimizer.weight_decay_mask", "("), ("total", "1e400 steps"), ("model.depth", "0"),
])
def test_values_out_of_bounds(key, text):
  assert f"config.{key}" in refused(config_lib.override, defaults(), {key: text})


@pytest.mark.parametrize("content", [
    "def get_config(arg):\n  return", "def get_config():\n  return 1", "def get_config(arg:",
    "import nowhere_at_all",
])
def test_a_file_with_a_mistake(tmp_path, content):
  (tmp_path / "mine.py").write_text(content)
  assert str(tmp_path / "mine.py") in refused(config_lib.load, str(tmp_path / "mine.py"))


# Types.


@pytest.mark.parametrize(
    "key, value, wanted",
    [
        ("seed", True, "of type int"),
        ("seed", 1.0, "of type int"),
        ("seed", "1", "of type int"),
        ("model.scan", 1, "of type bool"),
        ("model.scan", "true", "of type bool"),
        ("optimizer.learning_rate", True, "of type float"),
        ("optimizer.learning_rate", "1e-3", "of type float"),
        ("optimizer.name", 3, "of type str"),
        ("total", 90, "of type str"),
        ("model.width", True, "of type int"),
        ("model.layer_norm_epsilon", False, "of type float"),
        ("input.mean", (0.5, 0.5, True), "of type float"),
        ("input.mean", (0.5, 0.5, None), "of type float"),
    ],
)
def test_types_are_exact(key, value, wanted):
  said = refused(complete, key, value)
  assert f"sets config.{key} to " in said and wanted in said


@pytest.mark.parametrize(
    "key", ["optimizer.learning_rate", "model.layer_norm_epsilon", "optimizer.clip_global_norm"]
)
def test_an_int_becomes_a_float_where_one_is_due(key):
  value = complete(key, 1)
  assert value == 1.0 and type(value) is float
  assert [type(v) for v in complete("input.mean", (0, 1, 0.5))] == [float] * 3


MAY_BE_NONE = {
    "model.variant", "model.width", "model.depth", "model.mlp_dim", "model.num_heads",
    "model.patch_size", "model.image_size", "model.pooling", "model.gelu", "model.dtype",
    "input.exif_orientation", "model.class_token", "model.distillation_token",
    "model.distillation_head", "model.register_tokens", "model.mask_token",
    "model.norm_after_pooling", "model.position_embedding", "model.class_token_position",
    "model.position_interpolation", "model.qkv_bias", "model.qk_norm", "model.layer_scale",
    "model.position_image_size",
    "model.mlp", "optimizer.ema_decay", "mesh.fsdp", "model.scan", "model.remat",
    "model.layer_norm_epsilon", "input.path", "input.resize", "input.short_side",
    "input.interpolation", "input.mean", "input.std", "optimizer.clip_global_norm",
    "input.crop_short_side", "input.rand_augment",
    "objective.class_weights", "evaluate.real_labels", "micro_batch", "optimizer.freeze",
    "optimizer.learning_rate_batch_size", "optimizer.layer_decay", "optimizer.moment_dtype",
    "init.checkpoint", "fork.checkpoint", "skip.spike_factor", "evaluate.split",
    "evaluate.batch_size", "checkpoint.best_metric", "mesh.replica", "watchdog", "checkpoint.grace",
    "checkpoint.local",
}


@pytest.mark.parametrize("key", config_lib.FIELDS)
def test_none_is_allowed_only_where_declared(key):
  if key in MAY_BE_NONE:
    assert complete(key, None) is None
  else:
    assert f"config.{key} to None; it must be a value" in refused(complete, key, None)


@pytest.mark.parametrize("value", [(0.5,), (0.5, 0.5), (0.5,) * 4, 0.5, "0.5"])
def test_tuples_have_their_length(value):
  said = refused(complete, "input.mean", value)
  assert "3 numbers, as in (0.5, 0.5, 0.5)" in said


def test_a_list_becomes_a_tuple():
  assert complete("input.std", [0.1, 0.2, 0.3]) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    "key, value, near",
    [
        ("optimizer.name", "adamww", "'adamw'"),
        ("schedule.name", "cosin", "'cosine'"),
        ("model.dtype", "bf16", "'bfloat16'"),
        ("model.pooling", "gop", "'gap'"),
        ("input.dataset", "digit", "'digits'"),
    ],
)
def test_choices_are_listed_and_the_nearest_named(key, value, near):
  said = refused(complete, key, value)
  assert f"did you mean {near}?" in said
  for choice in config_lib.FIELDS[key].choices:
    assert repr(choice) in said


@pytest.mark.parametrize("key, known", [
    ("objective.loss", LOSSES), ("optimizer.name", OPTIMIZERS), ("schedule.name", SCHEDULES),
])
def test_choices_are_what_the_code_knows(key, known):
  """The keys lie on a lower floor than what they choose."""
  assert config_lib.FIELDS[key].choices == known


@pytest.mark.parametrize(
    "key, value",
    [("optimizer.learning_rate", -1e-3), ("input.batch_size", 1), ("mesh.fsdp", 0),
     ("model.depth", 0), ("model.dropout", -0.1), ("checkpoint.keep_latest", 0)],
)
def test_values_below_the_minimum_are_refused(key, value):
  said = refused(complete, key, value)
  assert f"config.{key}" in said and "at least" in said


@pytest.mark.parametrize(
    "key, value",
    [
        ("total", "90"),
        ("total", "10 percent"),
        ("total", "10 minutes"),
        ("schedule.warmup", "5 minutes"),
        ("log_every", "often"),
        ("checkpoint.every", "10 fortnights"),
    ],
)
def test_durations_need_a_unit_that_makes_sense(key, value):
  said = refused(complete, key, value)
  assert f"config.{key}" in said and "is not a duration" in said and "steps" in said


@pytest.mark.parametrize(
    "key, value",
    [("total", "40 steps"), ("schedule.warmup", "5%"), ("checkpoint.every", "1 hour"),
     ("checkpoint.every", "500 steps")],
)
def test_durations_keep_their_text(key, value):
  assert complete(key, value) == value


# Overrides, as text.


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("seed", "3", 3),
        ("total", "40 steps", "40 steps"),
        ("model.scan", "true", True),
        ("model.scan", "False", False),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.clip_global_norm", "none", None),
        ("init.checkpoint", "None", None),
        ("init.checkpoint", "runs/1@best", os.path.abspath("runs/1@best")),
        ("input.path", "123", os.path.abspath("123")),
        ("input.mean", "(0.1,0.2,0.3)", (0.1, 0.2, 0.3)),
        ("input.mean", "[0, 0, 0]", (0.0, 0.0, 0.0)),
        ("optimizer.weight_decay_mask", "kernel$|bias$", "kernel$|bias$"),
    ],
)
def test_text_is_read_as_the_keys_type(key, text, value):
  config = config_lib.override(defaults(), {key: text})
  for part in key.split("."):
    config = config[part]
  assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
    "key, text",
    [("seed", "1.5"), ("seed", "true"), ("seed", ""), ("model.scan", "1"),
     ("model.scan", "yes"), ("optimizer.learning_rate", "fast"), ("seed", "none"),
     ("input.mean", "0.5"), ("seed", "__import__('os')")],
)
def test_text_of_another_type_is_refused(key, text):
  assert f"the command line sets config.{key}" in refused(
      config_lib.override, defaults(), {key: text}
  )


def test_overriding_leaves_the_original_and_the_rest():
  before = defaults(seed=5)
  after = config_lib.override(before, {"optimizer.b2": "0.95"})
  assert before.optimizer.b2 == 0.999 and after.optimizer.b2 == 0.95
  assert after.seed == 5


def test_a_config_is_frozen():
  config = defaults()
  with pytest.raises((AttributeError, ValueError, TypeError)):
    config.seed = 1
  with pytest.raises((AttributeError, ValueError, TypeError)):
    config.optimizer.name = "sgd"


# Classes of keys.


def test_differences_are_sorted_by_class():
  before = defaults(seed=1, total="10 epochs", mesh__fsdp=2)
  after = defaults(seed=2, total="20 epochs", mesh__fsdp=4, log_every="5 steps")
  assert config_lib.differences(before, after) == {
      RUNTIME: {"mesh.fsdp": (2, 4), "log_every": ("50 steps", "5 steps")},
      RECIPE: {"total": ("10 epochs", "20 epochs")},
      IDENTITY: {"seed": (1, 2)},
  }


def test_equal_configs_have_no_differences():
  nothing = {RUNTIME: {}, RECIPE: {}, IDENTITY: {}}
  assert config_lib.differences(defaults(seed=1), defaults(seed=1)) == nothing
  # An int that stands for a float is no difference.
  one, other = defaults(optimizer__weight_decay=1), defaults(optimizer__weight_decay=1.0)
  assert config_lib.differences(one, other) == nothing


@pytest.mark.parametrize(
    "key_class, keys",
    [
        (RUNTIME, ["mesh.replica", "mesh.fsdp", "mesh.tensor", "model.scan", "model.attention",
                   "input.threads", "input.workers", "input.path", "input.max_bad_fraction",
                   "log_every", "evaluate.every",
                   "checkpoint.every", "checkpoint.keep_latest",
                   "checkpoint.keep_every", "checkpoint.retries"]),
        (RECIPE, ["total", "input.batch_size", "optimizer.name", "optimizer.learning_rate",
                  "schedule.name", "schedule.warmup", "batch_ops.mixup_alpha", "input.crop",
                  "input.flip", "model.dropout"]),
        (IDENTITY, ["seed", "model.variant", "model.image_size", "model.pooling",
                    "input.dataset", "init.checkpoint"]),
    ],
)
def test_keys_have_the_class_that_was_decided(key_class, keys):
  assert {config_lib.FIELDS[key].key_class for key in keys} == {key_class}


@pytest.mark.parametrize("key", config_lib.FIELDS)
def test_every_key_has_a_class_a_meaning_and_a_valid_default(key):
  field = config_lib.FIELDS[key]
  assert field.key_class in (RUNTIME, RECIPE, IDENTITY) and field.doc
  assert complete(key, field.default) == field.default


# Storage.


def test_json_and_back_is_the_same_config():
  config = defaults(
      seed=7, input__mean=(0.1, 0.2, 0.3), optimizer__clip_global_norm=None,
      model__layer_norm_epsilon=1e-12, total="1e6 examples",
  )
  text = json.dumps(config_lib.to_json(config))
  back = config_lib.from_json(json.loads(text), origin="a test")
  assert not any(config_lib.differences(config, back).values())
  assert type(back.input.mean) is tuple and back == config


def test_json_of_an_older_version_gets_the_new_keys_defaults():
  tree = config_lib.to_json(defaults(seed=7))
  del tree["schedule"], tree["optimizer"]["b2"]
  back = config_lib.from_json(tree, origin="a test")
  assert back.seed == 7 and back.optimizer.b2 == 0.999 and back.schedule.name == "cosine"


def test_json_with_a_key_that_is_gone_is_refused():
  tree = config_lib.to_json(defaults()) | {"momentun": 3}
  said = refused(config_lib.from_json, tree, origin="RUN/config.json")
  assert "RUN/config.json sets config.momentun" in said


# Recipes.


def documented_arguments(path):
  """What the recipe's docstring puts after its name: NAME:ARG."""
  text = ast.get_docstring(ast.parse(path.read_text()))
  return set(re.findall(rf"--config={path.stem}:([\w./,-]*\w)", text))


RECIPES = [
    f"{name}{arg}"
    for name, path in config_lib.recipes().items()
    for arg in ["", *(f":{arg}" for arg in sorted(documented_arguments(path)))]
]


def test_the_documented_recipes_are_found():
  assert {"quickstart", "quickstart:finetune", "folder", "folder:scratch"} <= set(RECIPES)


@pytest.mark.parametrize("spec", RECIPES)
def test_every_shipped_recipe_loads_with_every_documented_argument(spec):
  config = config_lib.load(spec, {"seed": "11", "total": "3 steps"})
  assert config.seed == 11 and config.total == "3 steps"


@pytest.mark.parametrize("name", config_lib.recipes())
def test_a_recipe_refuses_other_arguments_by_name(name):
  said = refused(config_lib.load, f"{name}:xyzzy")
  assert f"--config={name}:xyzzy" in said and "'xyzzy'" in said


def test_an_unknown_recipe_is_refused_with_the_nearest():
  said = refused(config_lib.load, "quikstart:finetune")
  assert "there is no recipe 'quikstart'; did you mean 'quickstart'?" in said


def write_recipe(directory, body):
  path = pathlib.Path(directory, "mine.py")
  path.write_text("from ml_collections import ConfigDict\n\n" + body)
  return path


GOOD = """\
def get_config(arg=None):
  config = ConfigDict()
  config.seed = int(arg or 0)
  config.optimizer = dict(learning_rate=1, name="sgd")
  return config
"""


def test_a_file_of_ones_own_takes_an_argument(tmp_path):
  path = write_recipe(tmp_path, GOOD)
  config = config_lib.load(f"{path}:42", {"optimizer.momentum": "0.5"})
  assert config.seed == 42
  assert config.optimizer.name == "sgd" and config.optimizer.learning_rate == 1.0
  assert config.optimizer.momentum == 0.5 and config.optimizer.b1 == 0.9
  assert config_lib.load(str(path)).seed == 0


def test_an_argument_may_hold_colons_and_dots(tmp_path):
  body = "def get_config(arg=None):\n  return ConfigDict({'input': {'path': arg}})\n"
  path = write_recipe(tmp_path, body)
  assert config_lib.load(f"{path}:/bucket/x.py").input.path == "/bucket/x.py"


def test_a_recipe_with_a_wrong_key_is_named(tmp_path):
  path = write_recipe(tmp_path, GOOD.replace("learning_rate=1", "learning_rat=1"))
  said = refused(config_lib.load, str(path))
  assert str(path) in said and "did you mean config.optimizer.learning_rate?" in said


def test_a_recipes_complaint_becomes_a_config_error(tmp_path):
  path = write_recipe(tmp_path, GOOD)
  assert f"--config={path}:x: invalid literal" in refused(config_lib.load, f"{path}:x")


def test_a_missing_file_is_refused(tmp_path):
  path = tmp_path / "missing.py"
  assert f"there is no file {path}" in refused(config_lib.load, f"{path}:1")


def test_a_file_without_get_config_is_refused(tmp_path):
  path = write_recipe(tmp_path, "def config():\n  return ConfigDict()\n")
  assert "has no function get_config(arg)" in refused(config_lib.load, str(path))


@pytest.mark.parametrize("text, value", [
    ("()", ()), ("(('^head/', 10),)", (("^head/", 10.0),)),
    ("[['a', 1.5], ['b', 0]]", (("a", 1.5), ("b", 0.0))),
])
def test_rules_are_pairs_of_expression_and_number(text, value):
  config = config_lib.override(
      config_lib.complete({}, origin="a test"), {"optimizer.learning_rate_rules": text}
  )
  assert config.optimizer.learning_rate_rules == value
  assert config_lib.from_json(config_lib.to_json(config), origin="a test") == config


@pytest.mark.parametrize("value, wanted", [
    ((("(", 1.0),), "a regular expression"), (("a", 1.0), "(regex, number) pairs"),
    ((("a", True),), "(regex, number) pairs"), ("a", "(regex, number) pairs"),
])
def test_what_are_no_rules(value, wanted):
  assert wanted in refused(complete, "optimizer.learning_rate_rules", value)


def test_a_word_beside_a_number():
  assert complete("micro_batch", "auto") == "auto" and complete("micro_batch", 8) == 8
  assert "of type int" in refused(complete, "micro_batch", "all")

"""Who may know whom: the floors of the house, read off the imports of every module."""

import ast
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "vit_jax"
ROOMS = (
    "data", "objectives", "evaluators", "batch_ops", "optim", "parallel", "checkpoint",
    "interop", "observe",
)
# From the roof to the ground.  A module may import what lies on lower floors, never what lies
# on its own floor or above.  Rooms know `models`, `bucket` and `errors` alone.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("sweep",),
    ("train", "plan_verb", "checkpoint_verb"),
    ("publish", "run_state"),
    ("evaluate", "convert", "predict", "warm_start", "provenance"),
    ("evaluated_config",),
    ("measures", "forecast", "forecast_table", "sanity", "fork"),
    ("estimate", "program"),
    ("loading", "plan", "resume"),
    ("diagnosis",),
    ("resolve", "step", "doctor", "attention_map"),
    ("recipes", "pace", "micro_batch", "roofline", "known_data", "train_input"),
    ROOMS,
    ("models",),
    ("config",),
    ("fields",),
    ("durations", "huge_pages"),
    ("bucket",),
    ("errors",),
)
BELOW_ROOMS = {"models", "bucket", "errors"}
# What a room may import from outside; None for anything that is installed with the package.
LIBRARIES = {
    "models": {"jax", "flax", "numpy"},
    "batch_ops": {"jax"},
    "data": {"numpy", "cv2", "PIL", "grain", "sklearn", "etils", "array_record", "scipy", "absl"},
    "bucket": {"etils"},
    "errors": set(),
    "durations": set(),
    "config": {"ml_collections"},
}
# Judges, imported only inside the function that calls them.
OPTIONAL = {
    "torch": {"interop"}, "transformers": {"interop"}, "timm": {"interop"},
    "huggingface_hub": {"interop"}, "fsspec": {"interop", "bucket"},
    "gcsfs": {"bucket"},
    "tensorflow_datasets": {"data"}, "pyarrow": {"data"},
}
FORBIDDEN = {"tensorflow", "torchvision", "clu"}

MODULES = sorted(
    path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] != "configs"
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def part_of(path):
  """The room, or the module's own name where it stands alone; "" for the package itself."""
  first = path.relative_to(ROOT).with_suffix("").parts[0]
  return "" if first == "__init__" else first


def imports_of(path):
  """Yields (dotted name, whether at the top of the module) of everything imported."""
  tree = ast.parse(path.read_text())
  inner = {
      id(node)
      for function in ast.walk(tree)
      if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
      for node in ast.walk(function)
  }
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}:{node.lineno}: relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      yield name, id(node) not in inner


def ours_imported_by(path):
  """Parts of vit_jax that a module imports; the package itself (its version) is for all."""
  parts = set()
  for name, _ in imports_of(path):
    package, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    if package == "vit_jax" and first and not first.startswith("__"):
      parts.add(first)
  return parts


def module_id(path):
  return str(path.relative_to(ROOT))


def test_every_module_has_its_floor():
  parts = {part_of(path) for path in MODULES} - {""}
  assert parts == set(FLOOR_OF), "say in FLOORS where a new module belongs"


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_imports_go_down_only(path):
  part = part_of(path)
  if not part:
    return
  for other in ours_imported_by(path) - {part}:
    assert other in FLOOR_OF, f"{module_id(path)} imports vit_jax.{other}, which is unknown"
    assert FLOOR_OF[other] > FLOOR_OF[part], (
        f"{module_id(path)} imports vit_jax.{other}, which is not on a lower floor"
    )
    if part in ROOMS:
      assert other in BELOW_ROOMS, f"{module_id(path)} imports vit_jax.{other}"


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_libraries_are_those_of_the_room(path):
  part = part_of(path)
  for name, at_top in imports_of(path):
    library = name.partition(".")[0]
    if library == "vit_jax" or library in sys.stdlib_module_names:
      continue
    assert library not in FORBIDDEN, f"{module_id(path)} imports {name}"
    if library in OPTIONAL:
      assert part in OPTIONAL[library] and not at_top, f"{module_id(path)} imports {name}"
    elif part in LIBRARIES:
      assert library in LIBRARIES[part], f"{module_id(path)} imports {name}"


def test_the_package_imports_nothing_until_asked():
  assert list(imports_of(ROOT / "__init__.py")) == [("vit_jax.loading.load", False)]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_recipes_need_config_dicts_alone(path):
  """And the functions that they share, so that a copy of a recipe runs wherever it lies."""
  names = {name for name, _ in imports_of(path)}
  libraries = {name.partition(".")[0] for name in names - {"vit_jax.configs.common"}}
  standard = {"difflib", "types"} if path.stem == "common" else set()
  assert libraries <= {"ml_collections"} | standard


def test_the_floors_catch_a_wrong_import(tmp_path):
  wrong = tmp_path / "wrong.py"
  wrong.write_text("def f():\n  from vit_jax.data.open import open_dataset\n  import torch\n")
  assert ours_imported_by(wrong) == {"data"}
  assert list(imports_of(wrong)) == [
      ("vit_jax.data.open.open_dataset", False), ("torch", False)
  ]


def loaded_after(statement):
  """Runs a statement in a fresh process; which heavy modules it loaded, and jax's backends."""
  program = f"""
import sys
{textwrap.dedent(statement)}
heavy = ("torch", "tensorflow", "transformers", "timm", "huggingface_hub", "jax")
loaded = [name for name in heavy if name in sys.modules]
started = False
if "jax" in sys.modules:
  from jax._src import xla_bridge
  started = xla_bridge.backends_are_initialized()
print("loaded:", *loaded, "started:", started)
"""
  done = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(program)],
      capture_output=True, text=True, check=True, cwd=ROOT.parent,
  )
  words = done.stdout.split()
  assert words[0] == "loaded:", done.stdout
  return set(words[1:-2]), words[-1] == "True"


@pytest.mark.parametrize("statement", ["import vit_jax", "import vit_jax.cli, vit_jax.config"])
def test_the_package_and_its_command_line_load_nothing_heavy(statement):
  assert loaded_after(statement) == (set(), False)


def test_training_loads_jax_alone_and_starts_no_device():
  assert loaded_after("import vit_jax.train, vit_jax.convert") == ({"jax"}, False)


def test_preprocessing_needs_no_jax():
  assert loaded_after("import vit_jax.data.preprocess, vit_jax.data.open") == (set(), False)


def test_formats_start_no_device_and_load_no_judge():
  """A model's shapes are traced, never computed; a TPU host converts while its TPU trains."""
  statement = """
      from vit_jax.interop import read, targets, verify
      from vit_jax.models.vit import param_shapes
      for name in targets.TARGETS:
        targets.target(name)
      model = dict(width=8, depth=1, mlp_dim=8, num_heads=2, patch_size=4, image_size=8)
      param_shapes(model | {"num_classes": 2})
  """
  loaded, started = loaded_after(statement)
  assert not loaded & {"torch", "transformers", "timm", "huggingface_hub"} and not started


def test_the_data_pipeline_starts_no_device():
  loaded, started = loaded_after("import vit_jax.data.pipeline")
  assert loaded <= {"jax"} and not started

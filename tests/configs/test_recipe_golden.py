"""Each recipe's resolved config against the JSON that lies in golden/.

After a change that is meant, look at what `git diff` then shows:
    VIT_JAX_WRITE_GOLDEN=1 python -m pytest tests/configs/test_recipe_golden.py
"""

import json
import os
import pathlib

import pytest

from vit_jax import config as config_lib

from published import resolved

GOLDEN = pathlib.Path(__file__).parent / "golden"
SPECS = {
    # file: (recipe, variant of the checkpoint that it starts from)
    "vit_i21k": ("vit_i21k:B/16", None),
    "vit_i1k": ("vit_i1k:B/16", None),
    "augreg_i21k": ("augreg_i21k:B/16,medium2-drop-wd.03", None),
    "augreg_i1k": ("augreg_i1k:S/16", None),
    "plain_vit_i1k": ("plain_vit_i1k:90", None),
    "finetune": ("finetune:imagenet,384", "B/16"),
    "fashion_mnist": ("fashion_mnist", None),
    "cifar10_scratch": ("cifar10_scratch", None),
    "cifar10_scratch_finetune": ("cifar10_scratch:finetune", None),
    "folder": ("folder:scratch", None),
    "quickstart": ("quickstart", None),
    "quickstart_finetune": ("quickstart:finetune", None),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_recipe_is_what_it_was(name):
  spec, start = SPECS[name]
  file, found = GOLDEN / f"{name}.json", resolved(spec, start=start)
  if os.environ.get("VIT_JAX_WRITE_GOLDEN"):
    GOLDEN.mkdir(exist_ok=True)
    text = json.dumps(config_lib.to_json(found), indent=1, sort_keys=True)
    file.write_text(text + "\n")
  assert config_lib.to_json(found) == json.loads(file.read_text())


def test_every_recipe_has_one():
  assert {spec.partition(":")[0] for spec, _ in SPECS.values()} == set(config_lib.recipes())
  assert set(SPECS) == {file.stem for file in GOLDEN.glob("*.json")}

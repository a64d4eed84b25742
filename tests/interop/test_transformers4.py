"""Both directions against transformers 4.57, whose FlaxViT is an implementation in JAX of its own.

`launch/test.sh --all` installs it beside; the tests run it in a process of its own.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_models import SMALLER, random_params, write

from vit_jax.interop import huggingface
from vit_jax.models.streamed import streamed_forward
from vit_jax.models.vit import ViT

BESIDE = pathlib.Path(sys.prefix) / "transformers4"
pytestmark = [
    pytest.mark.legacy,
    pytest.mark.skipif(
        not BESIDE.is_dir(), reason=f"{BESIDE} is not there: launch/test.sh --all makes it"
    ),
]
WRITTEN = {
    "ViTForImageClassification": {},
    "ViTForMaskedImageModeling": {
        "num_classes": 0, "pooling": "none", "pixel_decoder": True, "mask_token": True,
    },
    "ViTModel": {"num_classes": 0, "pre_logits": True},
    "DeiTModel": {"num_classes": 0, "distillation_token": True, "pre_logits": True},
    "DeiTForImageClassification": {"distillation_token": True},
    "DeiTForImageClassificationWithTeacher": {
        "distillation_token": True, "distillation_head": True,
    },
    "Dinov2Model": {"num_classes": 0, "layer_scale": 0.5, "mask_token": True, "gelu": "erf"},
    "Dinov2WithRegistersModel": {
        "num_classes": 0, "layer_scale": 0.5, "mask_token": True, "register_tokens": 3,
        "gelu": "erf",
    },
    "IJepaModel": {"num_classes": 0, "class_token": False, "pooling": "gap"},
    "IJepaForImageClassification": {"class_token": False, "pooling": "gap"},
    "SiglipVisionModel": {"num_classes": 0, "class_token": False, "pooling": "map"},
}
CONFIG = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 16, "patch_size": 4, "encoder_stride": 4, "num_labels": 5,
    "hidden_act": "gelu_new", "layer_norm_eps": 1e-6,
}
MADE = {name: CONFIG for name in WRITTEN if not name.startswith("Dinov2")} | {
    "Dinov2Model": CONFIG | {"mlp_ratio": 2, "use_swiglu_ffn": True},
    "Dinov2WithRegistersModel": CONFIG | {"mlp_ratio": 2, "num_register_tokens": 3},
    "FlaxViTModel": CONFIG,
    "FlaxViTForImageClassification": CONFIG,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  """A directory in which transformers 4.57 has made and judged everything."""
  root = tmp_path_factory.mktemp("transformers4")
  rng = np.random.default_rng(0)
  images = rng.standard_normal((3, 16, 16, 3)).astype(np.float32)
  np.savez(root / "images.npz", images=images, mask=np.arange(16) % 3 == 0)
  tasks = []
  for name, changes in WRITTEN.items():
    directory = root / f"written-{name}"
    write(huggingface, directory, SMALLER | changes, architecture=name)
    tasks.append({"directory": str(directory)})
  for name, config in MADE.items():
    tasks.append({"directory": str(root / f"made-{name}"), "make": name, "config": config})
  for task in tasks:
    task |= {"images": str(root / "images.npz"), "answers": f"{task['directory']}.npz"}
  (root / "tasks.json").write_text(json.dumps(tasks))
  worker = pathlib.Path(__file__).with_name("transformers4_worker.py")
  done = subprocess.run(
      [sys.executable, worker, root / "tasks.json"], capture_output=True, text=True,
      env=os.environ | {"PYTHONPATH": str(BESIDE), "HF_HUB_OFFLINE": "1"},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return root


def images_of(work):
  with np.load(work / "images.npz") as file:
    return file["images"], file["mask"]


def close(got, wanted):
  assert np.abs(wanted).max() > 0.05
  np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", WRITTEN)
def test_what_we_write_it_loads_and_computes(name, work):
  model = SMALLER | WRITTEN[name]
  images, mask = images_of(work)
  mask = np.tile(mask, (len(images), 1)) if model["pixel_decoder"] else None
  ours = streamed_forward(model, random_params(model), images, mask)
  with np.load(work / f"written-{name}.npz") as theirs:
    assert {"tokens", "outputs"} <= set(theirs.files)
    for what in theirs.files:
      if what != "loss":
        close(ours[what], theirs[what])


@pytest.mark.parametrize("name", [name for name in MADE if not name.startswith("Flax")])
def test_what_it_writes_we_read(name, work):
  imported = huggingface.read(work / f"made-{name}")
  images, mask = images_of(work)
  mask = np.tile(mask, (len(images), 1)) if imported.model["pixel_decoder"] else None
  ours = streamed_forward(imported.model, imported.params, images, mask)
  with np.load(work / f"made-{name}.npz") as theirs:
    close(ours["tokens"], theirs["tokens"])
    close(ours["outputs"], theirs["outputs"])


@pytest.mark.parametrize("name", [name for name in MADE if name.startswith("Flax")])
def test_flax_vit_is_ours_inside_too(name, work):
  directory = work / f"made-{name}"
  assert (directory / "flax_model.msgpack").is_file()
  imported = huggingface.read(directory)
  images, _ = images_of(work)
  with jax.default_matmul_precision("highest"):
    outputs, inside = ViT(**imported.model).apply(
        {"params": imported.params}, images, outputs=("hidden_states", "attentions")
    )
  with np.load(work / f"made-{name}.npz") as theirs:
    close(outputs, theirs["outputs"])
    close(inside["hidden_states"], theirs["hidden_states"])
    close(inside["attentions"], theirs["attentions"])

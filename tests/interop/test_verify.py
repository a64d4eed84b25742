"""The gate after a conversion, and the mutations that must not pass it."""

import json

import jax
import numpy as np
import pytest

from vit_jax.errors import CheckpointError
from vit_jax.interop import verify
from vit_jax.interop.huggingface_keys import leaf_shapes, leaves
from vit_jax.models.vit import ViT

QUERY = "vit.encoder.layer.1.attention.attention.query."
POSITIONS = "vit.embeddings.position_embeddings"


@pytest.fixture
def images():
  return np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


def swap_heads(tensors):
  for kind in ("weight", "bias"):
    heads = tensors[QUERY + kind].reshape(4, 8, -1)
    tensors[QUERY + kind] = heads[[1, 0, 2, 3]].reshape(tensors[QUERY + kind].shape)
  return tensors


def transpose_query(tensors):
  return tensors | {QUERY + "weight": tensors[QUERY + "weight"].T}


def drop_bias(tensors):
  return tensors | {QUERY + "bias": np.zeros_like(tensors[QUERY + "bias"])}


def shift_positions(tensors):
  return tensors | {POSITIONS: np.roll(tensors[POSITIONS], 1, axis=1)}


# Settings in config.json, or a function of the tensors.
MUTATIONS = {
    "epsilon": {"layer_norm_eps": 1e-3},
    "gelu": {"hidden_act": "gelu"},
    "heads": swap_heads,
    "query": transpose_query,
    "bias": drop_bias,
    "positions": shift_positions,
}


@pytest.fixture(params=list(MUTATIONS))
def mutated(request, export, edit_json, edit_tensors, model, params):
  directory = export(model, params=params)
  mutation = MUTATIONS[request.param]
  if callable(mutation):
    edit_tensors(directory / "model.safetensors", mutation)
  else:
    edit_json(directory / "config.json", **mutation)
  return directory


def test_reading_back_catches_every_mutation(mutated, model, params):
  with pytest.raises(CheckpointError, match="read back is not the model"):
    verify.compare_bits(mutated, model=model, params=params)


@pytest.mark.torch
def test_pytorch_catches_every_mutation(mutated, model, params, images):
  pytest.importorskip("transformers")
  with pytest.raises(CheckpointError, match="transformers computes other"):
    verify.compare_pytorch(mutated, model=model, params=params, batches={"images": images})


def test_the_gate_refuses_a_mutation_and_notes_nothing(mutated, model, params, images):
  with pytest.raises(CheckpointError):
    verify.verify_huggingface(mutated, model=model, params=params, images=images)
  assert json.loads((mutated / "conversion.json").read_text())["verification"] is None


def test_the_smallest_change_of_one_weight_is_found(export, edit_tensors, model, params):
  directory = export(model, params=params)

  def nudge(tensors):
    tensors["classifier.bias"][3] = np.nextafter(tensors["classifier.bias"][3], np.float32(9))
    return tensors

  edit_tensors(directory / "model.safetensors", nudge)
  with pytest.raises(CheckpointError, match="head/bias differs"):
    verify.compare_bits(directory, model=model, params=params)


def test_the_tree_is_the_models(model):
  model |= {"pre_logits": True}
  init = lambda: ViT(**model).init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
  shapes = {path: leaf.shape for path, leaf in leaves(jax.eval_shape(init)["params"])}
  assert shapes == leaf_shapes(model)


def test_without_pytorch_only_bits_are_compared(export, model, params, images, monkeypatch):
  monkeypatch.setattr(verify, "_has_pytorch", lambda: False)
  directory = export(model, params=params)
  result = verify.verify_huggingface(directory, model=model, params=params, images=images)
  assert (result["bit_equal"], result["pytorch"]) == (True, None)
  assert "torch" not in result["versions"]
  assert json.loads((directory / "conversion.json").read_text())["verification"] == result


@pytest.mark.torch
@pytest.mark.parametrize("change, dtype, gelu", [
    ({}, "float32", "tanh"),
    ({}, "bfloat16", "erf"),
    ({"num_classes": 0}, "float32", "erf"),
    ({"num_classes": 0, "pre_logits": True}, "float16", "tanh"),
])
def test_pytorch_agrees(export, random_params, model, images, change, dtype, gelu):
  pytest.importorskip("transformers")
  # What only training reads must not disturb.
  model |= change | {"gelu": gelu, "dropout": 0.1, "dtype": "bfloat16", "scan": False}
  directory = export(model, dtype=dtype)
  result = verify.verify_huggingface(
      directory, model=model, params=random_params(model), images=images
  )
  for batch in ("images", "noise"):
    for what in ("tokens", "outputs"):
      figure = result["pytorch"][batch][what]
      assert 0 < figure["difference"] <= 5e-6 * figure["largest"]
  assert ("rounding" in result) == (dtype != "float32")
  if dtype == "bfloat16":
    assert 1e-4 < result["rounding"]["difference"] < 0.1
  report = json.loads((directory / "conversion.json").read_text())
  assert report["verification"] == result
  assert report["dtype"] == dtype


@pytest.mark.torch
def test_a_new_zero_head_still_proves_the_encoder(export, edit_json, model, params, images):
  pytest.importorskip("transformers")
  params["head"] = {key: np.zeros_like(leaf) for key, leaf in params["head"].items()}
  directory = export(model, params=params)
  batches = {"images": images}
  figures = verify.compare_pytorch(directory, model=model, params=params, batches=batches)
  assert figures["images"]["outputs"] == {"difference": 0.0, "largest": 0.0}
  assert figures["images"]["tokens"]["largest"] > 0.1
  edit_json(directory / "config.json", layer_norm_eps=1e-3)
  with pytest.raises(CheckpointError, match="other tokens"):
    verify.compare_pytorch(directory, model=model, params=params, batches=batches)


@pytest.mark.torch
def test_an_unclean_load_is_refused(export, edit_tensors, model, params, images):
  pytest.importorskip("transformers")
  directory = export(model, params=params)
  edit_tensors(
      directory / "model.safetensors",
      lambda t: {k: v for k, v in t.items() if k != "classifier.bias"},
  )
  with pytest.raises(CheckpointError, match="missing_keys classifier.bias"):
    verify.compare_pytorch(directory, model=model, params=params, batches={"images": images})

"""What `read` accepts and how it refuses the rest, without torch."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit_jax.errors import CheckpointError
from vit_jax.interop.huggingface import read
from vit_jax.interop.tensor_table import leaves

QUERY = "encoder.layer.0.attention.attention.query.weight"


def assert_same_params(imported, params):
  expected = dict(leaves(params))
  found = dict(leaves(imported.params))
  assert set(found) == set(expected)
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg="/".join(path))


def new_names(tensors):
  """The names of transformers 5.9 and later."""
  renames = [
      ("encoder.layer.", "layers."), ("attention.attention.query", "attention.q_proj"),
      ("attention.attention.key", "attention.k_proj"),
      ("attention.attention.value", "attention.v_proj"),
      ("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1"),
      ("output.dense", "mlp.fc2"),
  ]

  def rename(name):
    for old, new in renames:
      name = name.replace(old, new)
    return name

  return {rename(name): values for name, values in tensors.items()}


def bare(tensors):
  return {name.removeprefix("vit."): values for name, values in tensors.items()}


@pytest.mark.parametrize("rename", [new_names, bare, lambda t: bare(new_names(t))])
def test_both_generations_with_and_without_prefix(export, edit_tensors, model, params, rename):
  directory = export(model, params=params)
  edit_tensors(directory / "model.safetensors", rename)
  imported = read(directory)
  assert imported.model == model
  assert_same_params(imported, params)


def shard(directory):
  """Splits a directory's tensors over three files and an index."""
  tensors = load_file(directory / "model.safetensors")
  (directory / "model.safetensors").unlink()
  owner = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(tensors)}
  for file in set(owner.values()):
    save_file({k: v for k, v in tensors.items() if owner[k] == file}, directory / file)
  (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owner}))


def test_shards(export, model, params):
  directory = export(model, params=params)
  shard(directory)
  assert_same_params(read(directory), params)


def test_a_missing_shard_is_named(export, model):
  directory = export(model)
  shard(directory)
  (directory / "model-1.safetensors").unlink()
  with pytest.raises(CheckpointError, match="model-1.safetensors"):
    read(directory)


def test_missing_unexpected_and_misshapen_tensors_are_listed(export, edit_tensors, model):
  directory = export(model)

  def damage(tensors):
    del tensors["vit." + QUERY]
    tensors["vit.embeddings.extra"] = np.zeros(1, np.float32)
    tensors["vit.layernorm.bias"] = np.zeros(31, np.float32)
    return tensors

  edit_tensors(directory / "model.safetensors", damage)
  with pytest.raises(CheckpointError) as error:
    read(directory)
  text = str(error.value)
  assert str(directory / "model.safetensors") in text
  assert f"Missing (1): {QUERY}." in text
  assert "Unexpected (1): vit.embeddings.extra." in text
  assert "layernorm.bias is (31,) instead of (32,)" in text


def test_long_lists_of_tensors_end_in_a_count(export, edit_json, model):
  directory = export(model)
  edit_json(directory / "config.json", num_hidden_layers=4)
  with pytest.raises(CheckpointError, match=r"Missing \(32\): .* and 22 more"):
    read(directory)


def test_one_tensor_under_two_names(export, edit_tensors, model):
  directory = export(model)
  edit_tensors(
      directory / "model.safetensors",
      lambda t: t | {"vit.layers.0.attention.q_proj.weight": t["vit." + QUERY]},
  )
  with pytest.raises(CheckpointError, match="one tensor under two names"):
    read(directory)


def test_siglips_numbers_of_positions_are_left_out_aloud(export, edit_tensors, model):
  directory = export(model | {"num_classes": 0, "class_token": False, "pooling": "map"})
  numbers = np.arange(16)[None]  # older releases stored this buffer
  edit_tensors(
      directory / "model.safetensors",
      lambda t: t | {"vision_model.embeddings.position_ids": numbers},
  )
  assert "left out the numbers of the positions (1 tensor)" in read(directory).report


def test_a_classifier_without_weights(export, edit_tensors, model):
  directory = export(model)
  edit_tensors(
      directory / "model.safetensors",
      lambda t: {k: v for k, v in t.items() if not k.startswith("classifier")},
  )
  with pytest.raises(CheckpointError, match="classifier.weight, classifier.bias"):
    read(directory)


@pytest.mark.parametrize("changes, message", [
    ({"model_type": "resnet"}, "model_type is 'resnet'; what is read is vit, deit, ijepa"),
    ({"model_type": "beit"}, "BEiT adds relative position biases"),
    ({"model_type": "dinov3_vit"}, "DINOv3 rotates queries and keys"),
    ({"architectures": ["ViTBackbone"]}, r"architectures is \['ViTBackbone'\]"),
    ({"architectures": ["Dinov2ForImageClassification"]}, "Dinov2Model.from_pretrained"),
    ({"architectures": ["SiglipForImageClassification"]}, "Read the SiglipVisionModel"),
    ({"hidden_act": "quick_gelu"}, "supported ones are gelu, gelu_pytorch_tanh, gelu_new"),
    ({"qkv_bias": 1}, "qkv_bias is 1; true or false"),
    ({"num_channels": 1}, "num_channels is 1"),
    ({"image_size": [16, 18]}, "image_size 18 is not a multiple of patch_size 4"),
    ({"image_size": [16, "16"]}, "two whole numbers"),
    ({"patch_size": 3}, "not a multiple of patch_size 3"),
    ({"num_attention_heads": 5}, "not a multiple of num_attention_heads 5"),
    ({"hidden_size": "32"}, "hidden_size is '32'"),
    ({"layer_norm_eps": "1e-6"}, "layer_norm_eps is '1e-6'"),
    ({"id2label": {"0": "a", "2": "b"}}, "id2label does not map"),
    ({"id2label": {"0": "a", "1": "b"}}, "names 2 classes, but classifier.weight"),
])
def test_configs_that_do_not_fit_are_refused(export, edit_json, model, changes, message):
  directory = export(model)
  edit_json(directory / "config.json", **changes)
  with pytest.raises(CheckpointError, match=message) as error:
    read(directory)
  assert str(directory / "config.json") in str(error.value)


@pytest.mark.parametrize("changes, message", [
    ({"pooler_act": "gelu"}, "pooler_act 'gelu'"),
    ({"pooler_output_size": 16}, "pooler_output_size 16"),
])
def test_a_pooler_unlike_pre_logits_is_refused(export, edit_json, model, changes, message):
  directory = export(model | {"num_classes": 0, "pre_logits": True})
  edit_json(directory / "config.json", **changes)
  with pytest.raises(CheckpointError, match=message):
    read(directory)


def test_what_a_config_leaves_out_is_transformers_default(export, edit_json, model):
  directory = export(model | {"layer_norm_epsilon": 1e-12, "gelu": "erf"})
  edit_json(
      directory / "config.json", layer_norm_eps=None, hidden_act=None, qkv_bias=None,
      num_channels=None, architectures=None, id2label=None, label2id=None,
  )
  imported = read(directory)
  assert imported.model == model | {"layer_norm_epsilon": 1e-12, "gelu": "erf"}
  assert imported.labels is None


@pytest.mark.parametrize("activation, gelu", [
    ("gelu", "erf"), ("gelu_new", "tanh"), ("gelu_pytorch_tanh", "tanh"),
])
def test_activations(export, edit_json, model, activation, gelu):
  directory = export(model)
  edit_json(directory / "config.json", hidden_act=activation, patch_size=[4, 4])
  assert read(directory).model == model | {"gelu": gelu}


@pytest.mark.parametrize("content, message", [
    (None, "truncated or not a safetensors file"), (b"<html>", "HTML page"),
])
def test_damaged_weights(export, model, content, message):
  path = export(model) / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-1] if content is None else content)
  with pytest.raises(CheckpointError, match=message):
    read(path.parent)


def test_integer_tensors_are_refused(export, edit_tensors, model):
  directory = export(model)
  bias = np.zeros(5, np.int8)
  edit_tensors(directory / "model.safetensors", lambda t: t | {"classifier.bias": bias})
  with pytest.raises(CheckpointError, match="classifier.bias is of dtype I8"):
    read(directory)


def test_directories_without_the_files(export, tmp_path, model):
  with pytest.raises(CheckpointError, match="has no config.json"):
    read(tmp_path / "nowhere")
  directory = export(model)
  (directory / "model.safetensors").unlink()
  with pytest.raises(CheckpointError, match="has none of model.safetensors"):
    read(directory)


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_config(export, model, content):
  path = export(model) / "config.json"
  path.write_text(content)
  with pytest.raises(CheckpointError, match="config.json"):
    read(path.parent)


def test_the_model_is_json(export, model):
  imported = read(export(model))
  assert json.loads(json.dumps(imported.model)) == imported.model
  assert json.loads(json.dumps(imported.preprocessing)) == imported.preprocessing


@pytest.mark.torch
def test_i_jepas_pooler_is_refused(tmp_path):
  """It sees the first patch, where the model's answer is the mean of all."""
  transformers = pytest.importorskip("transformers")
  config = transformers.IJepaConfig(
      hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
      image_size=16, patch_size=4,
  )
  transformers.IJepaModel(config, add_pooling_layer=True).save_pretrained(tmp_path)
  with pytest.raises(CheckpointError, match="pooler sees the first patch alone"):
    read(tmp_path)

"""What `write` puts into a directory, judged without torch."""

import hashlib
import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop.huggingface import read, write
from vit_jax.interop.huggingface_keys import leaves


def tensors_of(directory):
  return load_file(directory / "model.safetensors")


def test_names_are_those_every_release_reads(export, model):
  names = set(tensors_of(export(model)))
  block = [
      "layernorm_before", "layernorm_after", "attention.attention.query",
      "attention.attention.key", "attention.attention.value", "attention.output.dense",
      "intermediate.dense", "output.dense",
  ]
  expected = {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}
  for layer in ["vit.embeddings.patch_embeddings.projection", "vit.layernorm", "classifier"] + [
      f"vit.encoder.layer.{i}.{part}" for i in range(2) for part in block
  ]:
    expected |= {f"{layer}.weight", f"{layer}.bias"}
  assert names == expected


def test_layouts_are_pytorchs(export, model, params):
  tensors = tensors_of(export(model, params=params))
  patch = tensors["vit.embeddings.patch_embeddings.projection.weight"]
  np.testing.assert_array_equal(patch[7, 1], params["patch_embedding"]["kernel"][:, :, 1, 7])
  attention = params["blocks"]["attention"]
  query = tensors["vit.encoder.layer.1.attention.attention.query.weight"]
  # Row 2 * 8 + 3 is output 3 of head 2.
  np.testing.assert_array_equal(query[19], attention["query"]["kernel"][1, :, 2, 3])
  out = tensors["vit.encoder.layer.0.attention.output.dense.weight"]
  np.testing.assert_array_equal(out[:, 19], attention["out"]["kernel"][0, 2, 3])
  fc1 = tensors["vit.encoder.layer.1.intermediate.dense.weight"]
  np.testing.assert_array_equal(fc1, params["blocks"]["mlp"]["fc1"]["kernel"][1].T)
  np.testing.assert_array_equal(tensors["classifier.weight"], params["head"]["kernel"].T)


def test_config_has_the_exact_types_of_strict_releases(export, model):
  model |= {"layer_norm_epsilon": 0}
  config = json.loads((export(model, labels=list("abcde")) / "config.json").read_text())
  assert type(config["layer_norm_eps"]) is float
  assert config["qkv_bias"] is True
  for key in ("hidden_size", "image_size", "encoder_stride"):
    assert type(config[key]) is int
  assert config["hidden_act"] == "gelu_pytorch_tanh"
  assert config["dtype"] == config["torch_dtype"] == "float32"
  assert config["id2label"] == {str(i): c for i, c in enumerate("abcde")}
  assert config["label2id"] == {c: i for i, c in enumerate("abcde")}


def test_metadata_says_pt(export, model):
  with safe_open(export(model) / "model.safetensors", framework="numpy") as file:
    assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip_is_exact_up_to_the_dtype(export, model, params, preprocessing, dtype):
  labels = ("ant", "bee", "cat", "dog", "eel")
  imported = read(export(model, params=params, labels=labels, dtype=dtype))
  assert imported.model == model
  assert imported.preprocessing == preprocessing
  assert imported.labels == labels
  stored = np.dtype(getattr(ml_dtypes, dtype, dtype))
  expected = dict(leaves(params))
  found = dict(leaves(imported.params))
  assert set(found) == set(expected)
  for path, leaf in found.items():
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, expected[path].astype(stored).astype(np.float32))


@pytest.mark.parametrize("shape", [{"pre_logits": False}, {"pre_logits": True}])
def test_models_without_head_become_vitmodel(export, model, shape):
  model |= {"num_classes": 0} | shape
  directory = export(model)
  config = json.loads((directory / "config.json").read_text())
  assert config["architectures"] == ["ViTModel"]
  assert "id2label" not in config
  names = set(tensors_of(directory))
  assert not any(name.startswith("vit.") for name in names)
  assert ("pooler.dense.weight" in names) == model["pre_logits"]
  assert read(directory).model == model


def test_vitmodel_on_request_leaves_the_head_out_and_says_so(tmp_path, model, params):
  report = write(
      tmp_path, model=model, params=params, preprocessing=None, labels=None,
      architecture="ViTModel",
  )
  assert "head of 5 classes is left out" in report["notes"][0]
  assert read(tmp_path).model == model | {"num_classes": 0}


def test_report_describes_the_files(tmp_path, model, params, preprocessing):
  report = write(
      tmp_path, model=model, params=params, preprocessing=preprocessing, labels=None,
      dtype="bfloat16",
  )
  count = sum(leaf.size for _, leaf in leaves(params))
  assert report["architecture"] == "ViTForImageClassification"
  assert (report["tensors"], report["parameters"], report["bytes"]) == (40, count, 2 * count)
  for name, digest in report["files"].items():
    assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
  assert json.loads((tmp_path / "conversion.json").read_text()) == report
  assert set(report["files"]) | {"conversion.json"} == {
      path.name for path in tmp_path.iterdir()
  }


def test_classes_of_one_name_keep_their_names(export, model):
  directory = export(model, labels=["crane", "maillot", "crane", "cat", "dog"])
  config = json.loads((directory / "config.json").read_text())
  assert list(config["id2label"].values()) == ["crane", "maillot", "crane", "cat", "dog"]
  assert config["label2id"]["crane"] == 0
  assert "share a name" in json.loads((directory / "conversion.json").read_text())["notes"][0]


@pytest.mark.parametrize("change, options, message", [
    ({"pooling": "gap"}, {}, "no class token"),
    ({"pre_logits": True}, {}, "Architecture ViTModel holds"),
    ({"num_classes": 0}, {"architecture": "ViTForImageClassification"}, "ViTModel can"),
    ({}, {"labels": ["a", "b"]}, "2 labels were given for a head of 5"),
])
def test_what_the_target_cannot_hold_is_refused(
    export, tmp_path, model, change, options, message
):
  with pytest.raises(CheckpointError, match=message):
    export(model | change, **options)
  assert list((tmp_path / "export").iterdir()) == []


def test_pre_logits_with_head_fit_into_vitmodel_on_request(export, model):
  directory = export(model | {"pre_logits": True}, architecture="ViTModel")
  assert read(directory).model == model | {"pre_logits": True, "num_classes": 0}


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"architecture": "DeiTModel"}])
def test_unknown_options_are_a_usage_error(export, model, options):
  with pytest.raises(ConfigError, match="choose one of"):
    export(model, **options)


def test_preprocessing_of_another_size_is_refused(export, model, preprocessing):
  with pytest.raises(CheckpointError, match="images of 20 pixels, the model takes 16"):
    export(model, preprocessing=preprocessing | {"image_size": 20})


def test_parameters_of_another_model_are_listed(export, tmp_path, model, params):
  params["blocks"]["norm1"]["scale"] = np.zeros((3, 32), np.float32)
  params["extra"] = np.zeros(1, np.float32)
  del params["norm"]["bias"]
  with pytest.raises(CheckpointError) as error:
    export(model, params=params)
  text = str(error.value)
  assert "Missing (1): norm/bias." in text
  assert "Unexpected (1): extra." in text
  assert "blocks/norm1/scale is (3, 32) instead of (2, 32)" in text
  assert list((tmp_path / "export").iterdir()) == []


@pytest.mark.parametrize("value, dtype", [(np.nan, "float32"), (1e5, "float16")])
def test_values_that_are_not_finite_are_refused(export, model, params, value, dtype):
  params["head"]["bias"][2] = value
  with pytest.raises(CheckpointError, match="classifier.bias has values"):
    export(model, params=params, dtype=dtype)


def test_reading_and_writing_need_numpy_alone():
  code = (
      "import sys, vit_jax.interop.huggingface; "
      "print([m for m in ('jax', 'torch', 'transformers', 'tensorflow') if m in sys.modules])"
  )
  assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"

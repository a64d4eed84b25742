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
from vit_jax.interop.huggingface import choose, fit, read, write
from vit_jax.interop.tensor_table import leaves
from vit_jax.models.vit import DEFAULTS, param_shapes


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


GAP = {"class_token": False, "pooling": "gap"}
MAP = {"class_token": False, "pooling": "map"}
DISTILLED = {"distillation_token": True}


@pytest.mark.parametrize("change, architecture, refused, can", [
    (GAP, "ViTForImageClassification", "tokens are class, the model's patches",
     "IJepaForImageClassification, --architecture=IJepaModel without the head of 5 classes."),
    ({"pooling": "gap"}, None, r"No Hugging Face class .* \(pooling 'gap', 5 classes\)",
     ""),
    ({"pooling": "gap"}, "ViTForImageClassification", "has no pooling 'gap'", ""),
    (GAP | {"norm_after_pooling": True}, None, "norm_after_pooling True", ""),
    ({"pre_logits": True}, None, "pre_logits True, 5 classes",
     "--architecture=ViTModel without the head of 5 classes."),
    ({"pre_logits": True}, "ViTForImageClassification", "no layer for pre_logits", "=ViTModel"),
    ({"num_classes": 0}, "ViTForImageClassification", "has no head", "=ViTModel"),
    ({"qk_norm": True}, "ViTForImageClassification", "no qk_norm", ""),
    (MAP, None, "pooling 'map'", "=SiglipVisionModel without the head of 5 classes."),
    (DISTILLED, "ViTForImageClassification", "class and distillation",
     "=DeiTForImageClassification, "),
    (DISTILLED, "DeiTForImageClassificationWithTeacher", "no distillation head",
     "=DeiTForImageClassification, "),
    ({"layer_scale": 0.1}, None, "layer_scale 0.1", "=Dinov2Model without the head"),
    ({"register_tokens": 2}, "ViTModel", "2 register tokens", "=Dinov2WithRegistersModel without"),
    ({"layer_scale": 0.1, "num_classes": 0, "mlp_dim": 80}, None, "layer_scale", ""),
    ({"mlp": "swiglu", "mlp_dim": 64}, "ViTModel", "no swiglu MLP", "=Dinov2Model without"),
    ({"num_classes": 0, "pooling": "none", "pixel_decoder": True, "image_size": [16, 20]}, None,
     "pixel_decoder True", "=ViTModel without the pixel decoder"),
    (MAP | {"num_classes": 0, "image_size": [16, 20]}, "SiglipVisionModel", "square images only",
     ""),
])
def test_what_the_target_cannot_hold_is_refused(
    export, tmp_path, model, change, architecture, refused, can
):
  with pytest.raises(CheckpointError, match=refused) as error:
    export(model | change, architecture=architecture)
  assert can in str(error.value)
  assert list((tmp_path / "export").iterdir()) == []


def test_labels_are_as_many_as_classes(export, tmp_path, model):
  with pytest.raises(CheckpointError, match="2 labels were given for a head of 5"):
    export(model, labels=["a", "b"])
  assert list((tmp_path / "export").iterdir()) == []


@pytest.mark.parametrize("change, expected", [
    ({}, "ViTForImageClassification"),
    ({"num_classes": 0}, "ViTModel"),
    ({"num_classes": 0, "pooling": "none"}, "ViTModel"),
    ({"num_classes": 0, "pooling": "none", "pixel_decoder": True}, "ViTForMaskedImageModeling"),
    (DISTILLED | {"distillation_head": True}, "DeiTForImageClassificationWithTeacher"),
    (DISTILLED, "DeiTForImageClassification"),
    (DISTILLED | {"num_classes": 0, "pre_logits": True}, "DeiTModel"),
    (GAP, "IJepaForImageClassification"),
    (GAP | {"num_classes": 0}, "IJepaModel"),
    (MAP | {"num_classes": 0}, "SiglipVisionModel"),
    ({"num_classes": 0, "layer_scale": 0.1}, "Dinov2Model"),
    ({"num_classes": 0, "mlp": "swiglu", "mlp_dim": 64}, "Dinov2Model"),
    ({"num_classes": 0, "register_tokens": 4}, "Dinov2WithRegistersModel"),
])
def test_the_richest_class_is_chosen(model, change, expected):
  assert choose(model | change, None) == expected


def test_descriptions_need_not_name_defaults(model):
  brief = {k: v for k, v in model.items() if k not in DEFAULTS}
  assert choose(brief, None) == "ViTForImageClassification"
  with pytest.raises(CheckpointError, match="description lacks width, depth"):
    choose({k: v for k, v in brief.items() if k not in ("width", "depth")}, None)


@pytest.mark.parametrize("change, architecture", [
    ({"class_token_position": False}, None),
    ({"position_embedding": "sincos2d"}, None),
    ({"position_embedding": "sincos2d_mae", "mask_token": True}, None),
    ({"mask_token": True, "position_interpolation": "bilinear"}, "ViTModel"),
    (DISTILLED | {"distillation_head": True, "class_token_position": False}, "DeiTModel"),
    (DISTILLED | {"distillation_head": True}, "DeiTForImageClassification"),
    (GAP | {"position_embedding": "sincos2d"}, None),
    ({"position_embedding": "sincos2d", "position_image_size": 8}, None),
    (MAP | {"qkv_bias": False, "num_classes": 0}, None),
    ({"num_classes": 0, "pooling": "none", "pixel_decoder": True}, None),
    ({"num_classes": 0, "pooling": "none"}, None),
    ({"register_tokens": 2}, "Dinov2WithRegistersModel"),
    ({"mlp": "swiglu", "mlp_dim": 48, "layer_scale": 0.1}, "Dinov2Model"),
])
def test_fit_gives_what_is_read_back(
    export, model, random_params, change, architecture
):
  model |= change
  params = random_params(model)
  architecture = choose(model, architecture)
  fitted, stored = fit(model, params, architecture)
  assert {path: np.shape(leaf) for path, leaf in leaves(stored)} == param_shapes(fitted)
  imported = read(export(model, params=params, architecture=architecture))
  assert imported.model == fitted
  found = dict(leaves(imported.params))
  for path, leaf in leaves(stored):
    np.testing.assert_array_equal(found[path], leaf, err_msg="/".join(path))


def test_fit_leaves_what_it_was_given(model, random_params):
  model |= {"class_token_position": False, "mask_token": True, "qkv_bias": False}
  params = random_params(model)
  before = {path: (id(leaf), leaf.shape) for path, leaf in leaves(params)}
  described = dict(model)
  fit(model, params, "ViTForImageClassification")
  assert model == described
  assert {path: (id(leaf), leaf.shape) for path, leaf in leaves(params)} == before


def test_what_fit_changes_is_said(tmp_path, model, random_params):
  model |= DISTILLED | {
      "distillation_head": True, "mask_token": True, "position_embedding": "sincos2d",
      "position_interpolation": "bilinear",
  }
  report = write(
      tmp_path, model=model, params=random_params(model), preprocessing=None, labels=None,
      architecture="DeiTForImageClassification",
  )
  text = "; ".join(report["notes"])
  assert "the distillation head is left out: DeiTForImageClassification has none" in text
  assert "the mask token is left out" in text
  assert "the fixed position embedding sincos2d is written as a table" in text
  assert "transformers resamples positions bicubic, this model bilinear" in text


def test_large_models_are_written_in_shards(export, model, params):
  directory = export(model, params=params, max_shard_bytes=30_000)
  index = json.loads((directory / "model.safetensors.index.json").read_text())
  files = set(index["weight_map"].values())
  assert len(files) > 2 and not (directory / "model.safetensors").exists()
  report = json.loads((directory / "conversion.json").read_text())
  assert files | {"model.safetensors.index.json", "config.json"} <= set(report["files"])
  assert index["metadata"]["total_size"] == report["bytes"]
  assert dict(leaves(read(directory).params)).keys() == dict(leaves(params)).keys()


def test_images_that_are_not_square(export, model, preprocessing):
  model |= {"image_size": [16, 24]}
  directory = export(model, preprocessing=None)
  assert json.loads((directory / "config.json").read_text())["image_size"] == [16, 24]
  assert read(directory).model == model


def test_pre_logits_with_head_fit_into_vitmodel_on_request(export, model):
  directory = export(model | {"pre_logits": True}, architecture="ViTModel")
  assert read(directory).model == model | {"pre_logits": True, "num_classes": 0}


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"architecture": "BeitModel"}])
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


def test_reading_and_writing_need_no_other_framework():
  code = (
      "import sys, vit_jax.interop.huggingface; "
      "print([m for m in ('torch', 'transformers', 'tensorflow') if m in sys.modules])"
  )
  assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"

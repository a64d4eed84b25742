"""Directories that transformers wrote, read by us; and ours, used as its users do."""

import jax
import numpy as np
from PIL import Image
import pytest

from vit_jax.errors import CheckpointError
from vit_jax.interop.huggingface import read
from vit_jax.interop.huggingface_keys import leaves
from vit_jax.models.vit import ViT

pytestmark = pytest.mark.torch

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "image_size": 16, "patch_size": 4,
}


def build(kind, *, options=None, **config):
  """A transformers model with every parameter from a normal distribution of deviation 0.2."""
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  model = getattr(transformers, kind)(
      transformers.ViTConfig(**SIZES | config), **(options or {})
  ).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0, 0.2)
  return model


def judge(model, images):
  """Logits, or pooled features, of a transformers model on `[B, S, S, 3]` images."""
  import torch

  with torch.no_grad():
    answer = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  if "logits" in answer:
    return answer.logits.numpy()
  pooled = answer.pooler_output
  return (answer.last_hidden_state[:, 0] if pooled is None else pooled).numpy()


def assert_same_outputs(imported, theirs):
  images = np.random.default_rng(2).standard_normal((3, 16, 16, 3), np.float32)
  with jax.default_matmul_precision("highest"):
    ours = ViT(**imported.model, scan=True).apply({"params": imported.params}, images)
  expected = judge(theirs, images)
  assert np.abs(expected).max() > 0.1
  assert np.abs(ours - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("original", [True, False], ids=["old names", "new names"])
@pytest.mark.parametrize("kind, options, config, expected", [
    (
        "ViTForImageClassification", {}, {"num_labels": 7, "hidden_act": "gelu_new"},
        {"num_classes": 7, "pre_logits": False, "gelu": "tanh", "layer_norm_epsilon": 1e-12},
    ),
    (
        "ViTModel", {}, {"layer_norm_eps": 1e-3},
        {"num_classes": 0, "pre_logits": True, "gelu": "erf", "layer_norm_epsilon": 1e-3},
    ),
    (
        "ViTModel", {"add_pooling_layer": False}, {"hidden_act": "gelu_pytorch_tanh"},
        {"num_classes": 0, "pre_logits": False, "gelu": "tanh", "layer_norm_epsilon": 1e-12},
    ),
], ids=["classifier", "pooler", "bare"])
def test_what_transformers_writes_gives_its_outputs(
    tmp_path, original, kind, options, config, expected
):
  theirs = build(kind, options=options, **config)
  theirs.save_pretrained(tmp_path, save_original_format=original)
  imported = read(tmp_path)
  assert expected.items() <= imported.model.items()
  assert imported.labels is None
  assert_same_outputs(imported, theirs)


def test_shards_of_transformers(tmp_path):
  theirs = build("ViTForImageClassification")
  theirs.save_pretrained(tmp_path / "whole")
  theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
  assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
  whole = dict(leaves(read(tmp_path / "whole").params))
  for path, leaf in leaves(read(tmp_path / "shards").params):
    np.testing.assert_array_equal(leaf, whole[path])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_of_transformers(tmp_path, dtype):
  import torch

  theirs = build("ViTForImageClassification").to(getattr(torch, dtype))
  theirs.save_pretrained(tmp_path)
  assert_same_outputs(read(tmp_path), theirs.float())


def test_labels_and_processor_of_transformers(tmp_path):
  names = {0: "ant", 1: "bee", 2: "cat"}
  theirs = build("ViTForImageClassification", id2label=names)
  theirs.save_pretrained(tmp_path)
  import transformers

  transformers.ViTImageProcessorPil(
      size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3]
  ).save_pretrained(tmp_path)
  imported = read(tmp_path)
  assert imported.labels == ("ant", "bee", "cat")
  assert imported.preprocessing["image_size"] == 16
  assert imported.preprocessing["mean"] == [0.1, 0.2, 0.3]


def test_masked_image_modelling_of_transformers(tmp_path):
  build("ViTForMaskedImageModeling", encoder_stride=4).save_pretrained(tmp_path)
  with pytest.raises(CheckpointError, match="ViTForMaskedImageModeling"):
    read(tmp_path)
  theirs = build("ViTModel", options={"use_mask_token": True})
  theirs.save_pretrained(tmp_path)
  imported = read(tmp_path)
  assert any("mask_token" in line for line in imported.report)
  assert_same_outputs(imported, theirs)


def test_models_without_biases_are_refused(tmp_path):
  build("ViTForImageClassification", qkv_bias=False).save_pretrained(tmp_path)
  with pytest.raises(CheckpointError, match="qkv_bias"):
    read(tmp_path)


@pytest.mark.parametrize("resize, short_side, interpolation", [
    ("squash", None, "bilinear"), ("center", 20, "bicubic"),
])
def test_the_image_processor_repeats_our_preprocessing(
    export, model, preprocessing, resize, short_side, interpolation
):
  transformers = pytest.importorskip("transformers")
  preprocessing |= {"resize": resize, "short_side": short_side, "interpolation": interpolation}
  processor = transformers.AutoImageProcessor.from_pretrained(
      export(model, preprocessing=preprocessing)
  )
  pixels = np.random.default_rng(3).integers(0, 256, (30, 45, 3), np.uint8)
  image = Image.fromarray(pixels)
  if resize == "squash":
    small = image.resize((16, 16), Image.Resampling.BILINEAR)
  else:
    small = image.resize((30, 20), Image.Resampling.BICUBIC).crop((7, 2, 23, 18))
  expected = (np.asarray(small) / 255 - preprocessing["mean"]) / preprocessing["std"]
  found = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  for mode in ("L", "RGBA", "P", "CMYK"):
    assert processor(image.convert(mode), return_tensors="np")["pixel_values"].shape[1] == 3


def test_a_pipeline_names_our_classes(export, model, preprocessing):
  transformers = pytest.importorskip("transformers")
  labels = ["crane", "maillot", "crane", "cat", "dog"]
  directory = export(model, labels=labels)
  classify = transformers.pipeline("image-classification", model=str(directory))
  answers = classify(Image.new("RGB", (40, 30), "red"), top_k=5)
  assert sorted(answer["label"] for answer in answers) == sorted(labels)

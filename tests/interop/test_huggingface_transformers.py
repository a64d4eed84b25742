"""What transformers wrote, read by us; and what we write, as transformers and its users see it."""

import functools

import jax
import numpy as np
from PIL import Image
import pytest

from vit_jax.errors import CheckpointError
from vit_jax.interop.huggingface import choose, judge, read, write
from vit_jax.interop.huggingface_classes import ARCHITECTURES, READ_ONLY
from vit_jax.interop.tensor_table import leaves
from vit_jax.models.reconstruction import masked_l1
from vit_jax.models.vit import ViT

pytestmark = pytest.mark.torch

# Differences are rounding: this much of the largest value.
TOLERANCE = 2e-6
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 4,
}
MASK = np.arange(16) % 3 == 0


@pytest.fixture(scope="module")
def transformers():
  return pytest.importorskip("transformers")


def build(kind, *, options=None, **config):
  """A transformers model with random parameters so large that every one of them shows."""
  import torch
  import transformers

  torch.manual_seed(0)
  cls = getattr(transformers, kind)
  config = SIZES | config
  if not kind.startswith("Dinov2"):
    config.setdefault("intermediate_size", 64)
  if kind.startswith("Siglip2"):
    config["num_patches"] = 16
    del config["image_size"]
  if kind in ("SiglipModel", "Siglip2Model"):
    config = {"vision_config": config, "text_config": TEXT}
  model = cls(cls.config_class(**config), **(options or {})).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(float("norm" in name and "weight" in name), 0.2)
  return model


def random_images(height=32, width=32, count=2):
  return np.random.default_rng(2).standard_normal((count, height, width, 3), np.float32)


def run(theirs, images, **options):
  """What a transformers model answers to `[B, H, W, 3]` images."""
  import torch

  kind = type(theirs).__name__
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  if kind.startswith("ViTMAE"):  # nothing masked, nothing shuffled
    theirs = theirs.base_model
    options["noise"] = torch.arange(16.0).expand(len(images), 16)
  if kind in ("SiglipModel", "Siglip2Model"):
    theirs = theirs.vision_model
  if kind.startswith("Siglip2"):
    batch, height, width, _ = images.shape
    rows, columns = height // 8, width // 8
    patches = images.reshape(batch, rows, 8, columns, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    pixels = torch.from_numpy(patches.reshape(batch, rows * columns, -1).copy())
    options.pop("interpolate_pos_encoding", None)  # it always does
    options |= {
        "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[rows, columns]] * batch),
    }
  with torch.no_grad():
    return theirs(pixels, **options)


def outputs_of(answer, *, mean=False):
  """The part of a transformers answer that is our model's answer."""
  if "reconstruction" in answer:
    return answer.reconstruction.permute(0, 2, 3, 1).numpy()
  if "logits" in answer:
    return answer.logits.numpy()
  if answer.get("pooler_output") is not None:
    return answer.pooler_output.numpy()
  tokens = answer.last_hidden_state
  return (tokens.mean(1) if mean else tokens[:, 0]).numpy()


# Each program runs once: compiling it fast matters more than running it fast.
COMPILER = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def ours(model, params, images, patch_mask=None, outputs=()):
  """(answer, dict of outputs) of our model."""
  module = ViT(**model, scan=True)

  @functools.partial(jax.jit, compiler_options=COMPILER)
  def apply(params, images, patch_mask):
    return module.apply(
        {"params": params}, images, patch_mask=patch_mask, outputs=("tokens", *outputs)
    )

  with jax.default_matmul_precision("highest"):
    return apply(params, images, patch_mask)


def assert_close(found, expected):
  found, expected = np.asarray(found), np.asarray(expected)
  assert found.shape == expected.shape
  assert np.abs(expected).max() > 0.1
  assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


# By a name: class, arguments of its constructor, its config, what our description must say.
CLASSES = {
    "classifier": (
        "ViTForImageClassification", {}, {"num_labels": 7, "hidden_act": "gelu_new"},
        {"num_classes": 7, "pre_logits": False, "gelu": "tanh", "layer_norm_epsilon": 1e-12},
    ),
    "no qkv bias": (
        "ViTForImageClassification", {}, {"qkv_bias": False}, {"num_classes": 2, "qkv_bias": False}
    ),
    "pooler": (
        "ViTModel", {}, {"layer_norm_eps": 1e-3},
        {"num_classes": 0, "pre_logits": True, "gelu": "erf", "layer_norm_epsilon": 1e-3},
    ),
    "bare": (
        "ViTModel", {"add_pooling_layer": False}, {"hidden_act": "gelu_pytorch_tanh"},
        {"num_classes": 0, "pre_logits": False, "mask_token": False},
    ),
    "mask token": ("ViTModel", {"use_mask_token": True}, {}, {"mask_token": True}),
    "not square": (
        "ViTModel", {"add_pooling_layer": False}, {"image_size": [32, 48]},
        {"image_size": [32, 48]},
    ),
    "masked": (
        "ViTForMaskedImageModeling", {}, {"encoder_stride": 8},
        {"pixel_decoder": True, "mask_token": True, "pooling": "none", "num_classes": 0},
    ),
    "DeiT": (
        "DeiTModel", {}, {},
        {"distillation_token": True, "pre_logits": True, "distillation_head": False},
    ),
    "DeiT classifier": (
        "DeiTForImageClassification", {}, {"num_labels": 3},
        {"distillation_token": True, "num_classes": 3, "distillation_head": False},
    ),
    "DeiT teacher": (
        "DeiTForImageClassificationWithTeacher", {}, {"num_labels": 3},
        {"distillation_token": True, "num_classes": 3, "distillation_head": True},
    ),
    "I-JEPA": (
        "IJepaModel", {}, {}, {"class_token": False, "pooling": "gap", "num_classes": 0}
    ),
    "I-JEPA classifier": (
        "IJepaForImageClassification", {}, {"num_labels": 3},
        {"class_token": False, "pooling": "gap", "num_classes": 3},
    ),
    "DINOv2": (
        "Dinov2Model", {}, {"mlp_ratio": 2, "layerscale_value": 0.5},
        {"mlp": "gelu", "mlp_dim": 64, "layer_scale": 0.5, "mask_token": True},
    ),
    "DINOv2 without mask": (
        "Dinov2Model", {}, {"mlp_ratio": 2, "use_mask_token": False}, {"mask_token": False}
    ),
    "DINOv2 SwiGLU": (
        "Dinov2Model", {}, {"mlp_ratio": 3, "use_swiglu_ffn": True},
        {"mlp": "swiglu", "mlp_dim": 64},
    ),
    "DINOv2 registers": (
        "Dinov2WithRegistersModel", {}, {"mlp_ratio": 2, "num_register_tokens": 3},
        {"register_tokens": 3, "position_interpolation": "bicubic_antialias"},
    ),
    "SigLIP": (
        "SiglipVisionModel", {}, {},
        {"class_token": False, "pooling": "map", "num_classes": 0, "gelu": "tanh"},
    ),
    "SigLIP headless": (
        "SiglipVisionModel", {}, {"vision_use_head": False}, {"pooling": "none"}
    ),
    "SigLIP whole": ("SiglipModel", {}, {}, {"pooling": "map", "layer_norm_epsilon": 1e-6}),
    "SigLIP 2": (
        "Siglip2VisionModel", {}, {},
        {"pooling": "map", "image_size": 32, "position_interpolation": "bilinear_antialias"},
    ),
    "SigLIP 2 whole": ("Siglip2Model", {}, {}, {"pooling": "map", "image_size": 32}),
    "MAE": ("ViTMAEModel", {}, {"mask_ratio": 0.0}, {"pre_logits": False, "num_classes": 0}),
    "MAE with decoder": (
        "ViTMAEForPreTraining", {},
        {"mask_ratio": 0.0, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
         "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16},
        {"pre_logits": False, "num_classes": 0},
    ),
    "MSN": ("ViTMSNModel", {}, {}, {"layer_norm_epsilon": 1e-6}),
    "MSN classifier": ("ViTMSNForImageClassification", {}, {"num_labels": 3}, {"num_classes": 3}),
}


def test_every_class_that_is_read_is_tested():
  assert {kind for kind, *_ in CLASSES.values()} == {*ARCHITECTURES, *READ_ONLY}


@pytest.mark.parametrize("case", CLASSES)
def test_what_transformers_writes_gives_its_outputs(transformers, tmp_path, case):
  kind, options, config, expected = CLASSES[case]
  theirs = build(kind, options=options, **config)
  theirs.save_pretrained(tmp_path / "old", save_original_format=True)
  theirs.save_pretrained(tmp_path / "new", save_original_format=False)
  imported = read(tmp_path / "old")
  assert expected.items() <= imported.model.items()
  assert imported.labels is None
  again = read(tmp_path / "new")
  assert again.model == imported.model
  found = dict(leaves(again.params))
  for path, leaf in leaves(imported.params):
    np.testing.assert_array_equal(found[path], leaf, err_msg="/".join(path))
  size = imported.model["image_size"]
  images = random_images(*((size, size) if isinstance(size, int) else size))
  names = ("hidden_states", "attentions")
  answer, extra = ours(imported.model, imported.params, images, outputs=names)
  theirs.set_attn_implementation("eager")  # the others give no attentions
  theirs_now = run(theirs, images, output_hidden_states=True, output_attentions=True)
  for name in names:
    assert_close(extra[name], np.stack([part.numpy() for part in theirs_now[name]]))
  if "last_hidden_state" in theirs_now:
    assert_close(extra["tokens"], theirs_now.last_hidden_state)
  if imported.model["pooling"] != "none" or imported.model["pixel_decoder"]:
    assert_close(answer, outputs_of(theirs_now, mean=kind == "IJepaModel"))


@pytest.mark.parametrize("case, ignored", [
    ("SigLIP whole", "left out the text tower ("),
    ("SigLIP 2 whole", "left out the scale and bias of the contrastive loss (2 tensors)"),
    ("MAE with decoder", "left out the pixel decoder ("),
])
def test_what_is_left_out_is_said(transformers, tmp_path, case, ignored):
  kind, options, config, _ = CLASSES[case]
  build(kind, options=options, **config).save_pretrained(tmp_path)
  assert any(line.startswith(ignored) for line in read(tmp_path).report)


@pytest.mark.parametrize("case", ["mask token", "DINOv2", "DINOv2 registers"])
def test_masked_patches(transformers, tmp_path, case):
  import torch

  kind, options, config, _ = CLASSES[case]
  theirs = build(kind, options=options, **config)
  theirs.save_pretrained(tmp_path)
  imported, images = read(tmp_path), random_images()
  mask = np.tile(MASK, (len(images), 1))
  answer, _ = ours(imported.model, imported.params, images, mask)
  assert_close(answer, outputs_of(run(theirs, images, bool_masked_pos=torch.from_numpy(mask))))


def test_the_loss_of_masked_modelling(transformers, tmp_path):
  import torch

  theirs = build("ViTForMaskedImageModeling", encoder_stride=8)
  theirs.save_pretrained(tmp_path)
  imported, images = read(tmp_path), random_images()
  mask = np.tile(MASK, (len(images), 1))
  expected = run(theirs, images, bool_masked_pos=torch.from_numpy(mask))
  answer, _ = ours(imported.model, imported.params, images, mask)
  assert_close(answer, outputs_of(expected))
  loss = masked_l1(images, answer, mask, 8)
  assert float(loss) == pytest.approx(float(expected.loss), rel=1e-6)


@pytest.mark.parametrize("case", [
    "bare", "DeiT", "DINOv2", "DINOv2 registers", "I-JEPA", "SigLIP", "SigLIP 2",
])
def test_images_of_another_size(transformers, tmp_path, case):
  kind, options, config, _ = CLASSES[case]
  theirs = build(kind, options=options, **config)
  theirs.save_pretrained(tmp_path)
  imported = read(tmp_path)
  flag = {} if kind.startswith("Dinov2") else {"interpolate_pos_encoding": True}
  images = random_images(24, 56)  # less of one side, more of the other
  _, extra = ours(imported.model, imported.params, images)
  assert_close(extra["tokens"], run(theirs, images, **flag).last_hidden_state)


def test_shards_of_transformers(transformers, tmp_path):
  theirs = build("ViTForImageClassification")
  theirs.save_pretrained(tmp_path / "whole")
  theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
  assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
  whole = dict(leaves(read(tmp_path / "whole").params))
  for path, leaf in leaves(read(tmp_path / "shards").params):
    np.testing.assert_array_equal(leaf, whole[path])


@pytest.mark.parametrize("kind", ["safetensors", "bin", "msgpack"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_file_in_every_precision(transformers, tmp_path, dtype, kind):
  import torch

  theirs = build("ViTForImageClassification").to(getattr(torch, dtype))
  theirs.save_pretrained(tmp_path)
  expected = {name: values.float().numpy() for name, values in theirs.state_dict().items()}
  safetensors = tmp_path / "model.safetensors"
  if kind == "bin":
    torch.save(_old_names(safetensors), tmp_path / "pytorch_model.bin")
    safetensors.unlink()
  elif kind == "msgpack":
    _write_flax(_old_names(safetensors), tmp_path / "flax_model.msgpack")
    safetensors.unlink()
  params = read(tmp_path).params
  np.testing.assert_array_equal(params["head"]["kernel"].T, expected["classifier.weight"])
  np.testing.assert_array_equal(
      params["blocks"]["attention"]["query"]["kernel"][1].reshape(32, 32).T,
      expected["vit.layers.1.attention.q_proj.weight"],
  )
  np.testing.assert_array_equal(
      params["patch_embedding"]["kernel"].transpose(3, 2, 0, 1),
      expected["vit.embeddings.patch_embeddings.projection.weight"],
  )
  np.testing.assert_array_equal(params["norm"]["scale"], expected["vit.layernorm.weight"])


def _old_names(path):
  from safetensors.torch import load_file

  return load_file(path)


def _write_flax(tensors, path):
  """flax_model.msgpack as FlaxViTForImageClassification of transformers 4.57 wrote it."""
  from flax import serialization
  from flax.traverse_util import unflatten_dict
  import ml_dtypes

  flat = {}
  for name, values in tensors.items():
    dtype = ml_dtypes.bfloat16 if "bfloat16" in str(values.dtype) else str(values.dtype)[6:]
    values = values.float().numpy().astype(dtype)
    *parents, leaf = name.split(".")
    if leaf == "weight":
      leaf = "scale" if values.ndim == 1 else "kernel"
      values = values.T if values.ndim == 2 else values
      values = values.transpose(2, 3, 1, 0) if values.ndim == 4 else values
    flat[(*parents, leaf)] = values
  path.write_bytes(serialization.msgpack_serialize(unflatten_dict(flat)))


def test_labels_and_processor_of_transformers(transformers, tmp_path):
  names = {0: "ant", 1: "bee", 2: "cat"}
  build("ViTForImageClassification", id2label=names).save_pretrained(tmp_path)
  transformers.ViTImageProcessorPil(
      size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]
  ).save_pretrained(tmp_path)
  imported = read(tmp_path)
  assert imported.labels == ("ant", "bee", "cat")
  assert imported.preprocessing["image_size"] == 32
  assert imported.preprocessing["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("kind", [
    "Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification", "BeitModel",
    "SiglipForImageClassification", "DeiTForMaskedImageModeling",
])
def test_classes_that_are_not_read_say_why(transformers, tmp_path, kind):
  cls = getattr(transformers, kind)
  config = {"vision_config": SIZES | {"intermediate_size": 64}} if "Siglip" in kind else SIZES
  cls(cls.config_class(**config)).save_pretrained(tmp_path)
  with pytest.raises(CheckpointError, match=f"{kind}|BEiT adds relative position biases"):
    read(tmp_path)


DINOV2 = {"num_classes": 0, "layer_scale": 0.1}
# Changes of the description, class asked for, class expected.
WRITTEN = [
    ({}, None, "ViTForImageClassification"),
    ({"class_token_position": False, "qkv_bias": False}, None, "ViTForImageClassification"),
    ({"position_embedding": "sincos2d", "image_size": [16, 24]}, None,
     "ViTForImageClassification"),
    ({"position_embedding": "sincos2d", "position_image_size": 8}, None,
     "ViTForImageClassification"),
    ({"num_classes": 0, "mask_token": True}, None, "ViTModel"),
    ({"num_classes": 0, "pre_logits": True, "gelu": "erf"}, None, "ViTModel"),
    ({"pixel_decoder": True, "num_classes": 0, "pooling": "none", "mask_token": True}, None,
     "ViTForMaskedImageModeling"),
    ({"distillation_token": True, "num_classes": 0, "pre_logits": True}, None, "DeiTModel"),
    ({"distillation_token": True, "class_token_position": False}, None,
     "DeiTForImageClassification"),
    ({"distillation_token": True, "distillation_head": True}, None,
     "DeiTForImageClassificationWithTeacher"),
    (DINOV2 | {"mask_token": True}, None, "Dinov2Model"),
    (DINOV2 | {"mlp": "swiglu"}, None, "Dinov2Model"),
    ({"num_classes": 0, "qkv_bias": False}, "Dinov2Model", "Dinov2Model"),
    (DINOV2 | {"register_tokens": 3}, None, "Dinov2WithRegistersModel"),
    ({"class_token": False, "pooling": "gap", "position_embedding": "sincos2d_mae"}, None,
     "IJepaForImageClassification"),
    ({"class_token": False, "pooling": "gap", "num_classes": 0, "mask_token": True}, None,
     "IJepaModel"),
    ({"class_token": False, "pooling": "map", "num_classes": 0}, None, "SiglipVisionModel"),
    ({"class_token": False, "pooling": "map", "num_classes": 0, "qkv_bias": False}, None,
     "SiglipVisionModel"),
]


def test_every_class_that_is_written_is_tested():
  assert {architecture for *_, architecture in WRITTEN} == set(ARCHITECTURES)


@pytest.mark.parametrize("change, asked, expected", WRITTEN)
def test_what_we_write_is_our_model_to_transformers(
    transformers, tmp_path, model, random_params, change, asked, expected
):
  model |= change
  params = random_params(model)
  report = write(
      tmp_path, model=model, params=params, preprocessing=None, labels=None, architecture=asked,
      max_shard_bytes=100_000,
  )
  assert report["architecture"] == expected == choose(model, asked)
  size = model["image_size"]
  images = random_images(*((size, size) if isinstance(size, int) else size))
  mask = MASK if model["pixel_decoder"] else None
  judged = judge(tmp_path, {"noise": images}, mask)["noise"]
  names = ("class_logits", "distillation_logits") if model["distillation_head"] else ()
  rows = None if mask is None else np.tile(mask, (len(images), 1))
  answer, extra = ours(model, params, images, rows, names)
  assert set(judged) == {"outputs", "tokens", *names} | ({"loss"} if mask is not None else set())
  assert_close(judged["outputs"], answer)
  for name in ("tokens", *names):
    assert_close(judged[name], extra[name])
  if mask is not None:
    loss = float(masked_l1(images, answer, rows, model["patch_size"]))
    assert float(judged["loss"]) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_transformers_sees_our_rounded_weights(transformers, export, model, dtype):
  directory = export(model, dtype=dtype, max_shard_bytes=20_000)
  imported, images = read(directory), random_images(16, 16)
  answer, _ = ours(imported.model, imported.params, images)
  assert_close(judge(directory, {"noise": images})["noise"]["outputs"], answer)


def test_an_export_that_does_not_load_cleanly_is_refused(
    transformers, export, edit_tensors, model
):
  directory = export(model)

  def rename(tensors):
    tensors["vit.layernorm.other"] = tensors.pop("vit.layernorm.bias")
    return tensors

  edit_tensors(directory / "model.safetensors", rename)
  with pytest.raises(CheckpointError, match="missing_keys vit.layernorm.bias; unexpected_keys"):
    judge(directory, {"noise": random_images(16, 16)})


def test_without_transformers_nobody_judges(export, model, monkeypatch):
  from vit_jax.interop import huggingface_judge

  monkeypatch.setattr(huggingface_judge.importlib.util, "find_spec", lambda name: None)
  assert judge(export(model), {"noise": random_images(16, 16)}) is None


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

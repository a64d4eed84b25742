"""timm's local directories and state dicts, against timm itself in both directions."""

import json
import re
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import small_models
from small_models import (
    LABELS, MAP, MODEL, NO_CLASS_TOKEN, PREPROCESSING, TINY, assert_same, forward, images_of,
    random_params,
)
from timm_process import timm_process  # pylint: disable=unused-import
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop import timm_architectures, timm_directory, verify
from vit_jax.models.vit import DESCRIPTION, ViT

DISTILLED = {"distillation_token": True, "distillation_head": True}
def write(directory, model, **options):
  return small_models.write(timm_directory, directory, model, **options)


def edit_config(directory, **changes):
  path = directory / "config.json"
  config = json.loads(path.read_text())
  config["model_args"] |= changes.pop("model_args", {})
  path.write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))


def edit_tensors(path, function):
  tensors = function(dict(load_file(path)))
  save_file({n: np.ascontiguousarray(v) for n, v in tensors.items()}, path)


# Changes of MODEL that timm holds as they are.
HELD = {
    "plain": {},
    "erf": {"gelu": "erf"},
    "class token without position": {"class_token_position": False},
    "gap without class token": NO_CLASS_TOKEN,
    "gap beside class token": {"pooling": "gap"},
    "fc_norm": {"pooling": "gap", "norm_after_pooling": True, "gelu": "erf"},
    "map": MAP,
    "map beside class token": {"pooling": "map", "class_token_position": False},
    "registers": {"register_tokens": 2},
    "registers, no class position": {"register_tokens": 2, "class_token_position": False},
    "registers, no class token": {**NO_CLASS_TOKEN, "register_tokens": 3},
    "qk_norm": {"qk_norm": True},
    "layer_scale": {"layer_scale": 0.1},
    "no qkv_bias": {"qkv_bias": False},
    "epsilon 1e-5": {"layer_norm_epsilon": 1e-5},
    "distilled": {**DISTILLED, "gelu": "erf"},
    "headless": {"num_classes": 0},
    "headless map": {**MAP, "num_classes": 0},
    "all tokens": {"num_classes": 0, "pooling": "none"},
    "rectangle": {"image_size": [32, 48]},
    "swiglu": {"mlp": "swiglu", "mlp_dim": 40},
    "swiglu, layer_scale": {"mlp": "swiglu", "layer_scale": 0.5, "register_tokens": 1},
    "odd ratio": {"mlp_dim": 61},
    "known size": {"width": 192, "num_heads": 3, "mlp_dim": 96, "depth": 1, "patch_size": 16},
}
# Changes that timm stores in another form; that the function stays the same is timm's to say below.
FITTED = {
    "mask token": {"mask_token": True},
    "sincos2d": {"position_embedding": "sincos2d"},
    "sincos2d_mae gap": {**NO_CLASS_TOKEN, "position_embedding": "sincos2d_mae"},
    "stretched": {"position_embedding": "sincos2d", "position_image_size": 16},
    "distillation token alone": {"distillation_token": True, "register_tokens": 1},
    "distillation token without position": {
        "distillation_token": True, "class_token_position": False
    },
    "distilled without positions": {**DISTILLED, "class_token_position": False},
    "headless distillation": {"distillation_token": True, "num_classes": 0},
}


@pytest.mark.parametrize("name", HELD)
def test_what_is_read_back_is_what_was_written(name, tmp_path):
  model = {**MODEL, **HELD[name]}
  params, report = write(tmp_path, model)
  imported = timm_directory.read(tmp_path)
  assert imported.model == {**model, "position_interpolation": "bicubic_antialias"}
  assert set(imported.model) == set(DESCRIPTION)
  assert_same(imported.params, params)
  assert imported.preprocessing is None and imported.labels is None
  assert report == json.loads((tmp_path / "conversion.json").read_text())
  assert timm_directory.fit(model, params, report["architecture"])[0] == model


@pytest.mark.parametrize("name", FITTED)
def test_fit_is_what_is_read_back(name, tmp_path):
  model = {**MODEL, **FITTED[name]}
  params, report = write(tmp_path, model)
  fitted, stored = timm_directory.fit(model, params, report["architecture"])
  imported = timm_directory.read(tmp_path)
  assert imported.model == {**fitted, "position_interpolation": "bicubic_antialias"}
  assert_same(imported.params, stored)
  assert timm_directory.fit(fitted, stored, report["architecture"])[0] == fitted


@pytest.mark.torch
@pytest.mark.parametrize("name", HELD | FITTED)
def test_timm_loads_and_computes_the_same(name, tmp_path, timm_process):
  model = {**MODEL, **(HELD | FITTED)[name]}
  params, _ = write(tmp_path, model)
  outputs, tokens = forward(model, params)
  loaded = timm_process(
      "create", create={"model_name": f"local-dir:{tmp_path}", "pretrained": True},
      images=images_of(model),
  )
  assert not [note for note in timm_process.notes if re.search("Missing|Unexpected|resize", note)]
  judged = timm_process(
      "judge", module="vit_jax.interop.timm_directory", directory=str(tmp_path),
      images=images_of(model),
  )
  for answer in (loaded, judged):
    np.testing.assert_allclose(answer["outputs"], outputs, rtol=0, atol=2e-6)
    np.testing.assert_allclose(answer["tokens"], tokens, rtol=0, atol=4e-6)


def test_without_timm_nobody_judges(tmp_path, caplog, monkeypatch):
  write(tmp_path, MODEL)
  monkeypatch.setitem(sys.modules, "timm", None)
  with caplog.at_level("INFO"):
    assert timm_directory.judge(tmp_path, {}) is None
  assert "timm does not judge" in caplog.text


@pytest.mark.torch
def test_a_judge_that_cannot_load_cleanly_says_so(tmp_path, timm_process):
  write(tmp_path, MODEL)
  edit_tensors(tmp_path / "model.safetensors", lambda t: {**t, "norm.extra": t["norm.bias"]})
  with pytest.raises(AssertionError, match="(?s)does not load the export cleanly.*norm.extra"):
    timm_process(
        "judge", module="vit_jax.interop.timm_directory", directory=str(tmp_path),
        images=images_of(MODEL),
    )


@pytest.mark.torch
@pytest.mark.parametrize(
    "name", ["plain", "gap without class token", "map", "distilled", "swiglu", "epsilon 1e-5",
             "headless", "rectangle"]
)
def test_transformers_wraps_the_same_directory(name, tmp_path, timm_process):
  model = {**MODEL, **HELD[name]}
  params, _ = write(tmp_path, model, labels=LABELS if model["num_classes"] else None)
  answer = timm_process(
      "wrapper", directory=str(tmp_path), images=images_of(model), head=bool(model["num_classes"])
  )
  assert not answer["unclean"].size
  if model["num_classes"]:
    assert tuple(answer["labels"]) == LABELS
  np.testing.assert_allclose(answer["outputs"], forward(model, params)[0], rtol=0, atol=2e-6)


def shift_positions(tensors):
  return {**tensors, "pos_embed": np.roll(tensors["pos_embed"], 1, axis=1)}


def swap_query_and_key(tensors):
  name = "blocks.1.attn.qkv.weight"
  return {**tensors, name: tensors[name].reshape(3, 32, 32)[[1, 0, 2]].reshape(96, 32)}


@pytest.mark.torch
@pytest.mark.parametrize(
    "mutation", [{"act_layer": "gelu"}, {"num_heads": 2}, shift_positions, swap_query_and_key],
    ids=["gelu", "heads", "positions", "query and key"],
)
def test_the_gate_finds_a_mutation_in_what_timm_computes(mutation, tmp_path, timm_process):
  params, _ = write(tmp_path, MODEL)
  if callable(mutation):
    edit_tensors(tmp_path / "model.safetensors", mutation)
  else:
    edit_config(tmp_path, model_args=mutation)
  judged = timm_process(
      "judge", module="vit_jax.interop.timm_directory", directory=str(tmp_path),
      images=images_of(MODEL),
  )
  outputs, tokens = forward(MODEL, params)
  with pytest.raises(CheckpointError, match="PyTorch computes other"):
    verify.compare_answers({"b": {"outputs": outputs, "tokens": tokens}}, {"b": judged})


@pytest.mark.torch
@pytest.mark.parametrize("name", ["plain", "registers", "class token without position"])
def test_another_image_size_is_interpolated_as_timm_does(name, tmp_path, timm_process):
  params, _ = write(tmp_path, {**MODEL, **HELD[name]})
  model = timm_directory.read(tmp_path).model
  images = images_of({"image_size": [48, 40]})
  answer = timm_process(
      "create", images=images,
      create={"model_name": f"local-dir:{tmp_path}", "pretrained": True, "img_size": (48, 40)},
  )
  with jax.default_matmul_precision("highest"):
    ours = np.asarray(ViT(**model).apply({"params": params}, images))
  np.testing.assert_allclose(ours, answer["outputs"], rtol=0, atol=2e-6)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision(dtype, tmp_path, timm_process):
  _, report = write(tmp_path, MODEL, dtype=dtype)
  assert report["dtype"] == dtype and report["bytes"] == 2 * report["parameters"]
  imported = timm_directory.read(tmp_path)
  judged = timm_process(
      "judge", module="vit_jax.interop.timm_directory", directory=str(tmp_path),
      images=images_of(MODEL),
  )
  np.testing.assert_allclose(
      judged["outputs"], forward(MODEL, imported.params)[0], rtol=0, atol=2e-6
  )


# timm's arguments beyond TINY, and what ours says of such a model.
READ = {
    "plain": ({}, {"gelu": "erf"}),
    "tanh": ({"act_layer": "gelu_tanh"}, {"gelu": "tanh"}),
    "avg": ({"global_pool": "avg"}, {"pooling": "gap", "norm_after_pooling": True}),
    "avg without fc_norm": (
        {"global_pool": "avg", "fc_norm": False, "class_token": False}, NO_CLASS_TOKEN
    ),
    "token with fc_norm": ({"fc_norm": True}, {"norm_after_pooling": False}),
    "map": ({"global_pool": "map", "class_token": False}, {"pooling": "map"}),
    "registers with positions": (
        {"reg_tokens": 2}, {"register_tokens": 2, "class_token_position": True}
    ),
    "registers with positions, no class token": (
        {"reg_tokens": 2, "class_token": False, "global_pool": "avg"}, {"register_tokens": 2}
    ),
    "reg4 of DINOv2": (
        {"model_name": "vit_small_patch14_reg4_dinov2"},
        {"register_tokens": 4, "class_token_position": False, "layer_scale": 1e-5},
    ),
    "giant of DINOv2": (
        {"model_name": "vit_giant_patch14_dinov2"}, {"mlp": "swiglu", "mlp_dim": 32}
    ),
    "layer_scale": ({"init_values": 0.3}, {"layer_scale": 0.3}),
    "qk_norm": ({"qk_norm": True, "qkv_bias": False}, {"qk_norm": True, "qkv_bias": False}),
    "distilled": ({"model_name": "deit_base_distilled_patch16_224"}, DISTILLED),
    "deit3": (
        {"model_name": "deit3_small_patch16_224"},
        {"layer_scale": 1e-6, "class_token_position": False},
    ),
    "siglip": (
        {"model_name": "vit_so400m_patch16_siglip_256"}, {"pooling": "map", "gelu": "tanh"}
    ),
    "gap": (
        {"model_name": "vit_medium_patch16_gap_240"}, {"pooling": "gap", "class_token": False}
    ),
    "clip without pre_norm": (
        {"model_name": "vit_base_patch16_clip_224", "pre_norm": False},
        {"layer_norm_epsilon": 1e-5},
    ),
    "rectangle": ({"img_size": (48, 32)}, {"image_size": [48, 32]}),
    "headless": ({"num_classes": 0}, {"num_classes": 0, "pooling": "cls"}),
    "tokens": ({"num_classes": 0, "global_pool": ""}, {"pooling": "none"}),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", READ)
def test_a_directory_that_timm_saved(name, tmp_path, timm_process):
  arguments, settings = READ[name]
  create = {**TINY, **arguments}
  height, width = create["img_size"] if isinstance(create["img_size"], tuple) else (32, 32)
  model = {"image_size": [height, width]}
  answer = timm_process(
      "create", create=create, random=True, save_directory=str(tmp_path), images=images_of(model)
  )
  imported = timm_directory.read(tmp_path)
  if isinstance(create["img_size"], tuple):  # timm's crop_pct is of a square
    assert imported.preprocessing["resize"] == "squash"
    assert imported.preprocessing["short_side"] is None
  assert {key: imported.model[key] for key in settings} == settings
  assert imported.model["position_interpolation"] == "bicubic_antialias"
  outputs, _ = forward(imported.model, imported.params)
  np.testing.assert_allclose(outputs, answer["outputs"], rtol=0, atol=2e-6)
  assert imported.preprocessing["image_size"] == imported.model["image_size"]


@pytest.mark.torch
def test_a_directory_of_the_hub_has_no_model_args(tmp_path, timm_process):
  """As timm/vit_base_patch16_224 on the Hub: the name and the tensors say all."""
  create = {"model_name": "test_vit2", "num_classes": 5}
  images = images_of({"image_size": 160})
  answer = timm_process(
      "create", create=create, random=True, save_directory=str(tmp_path), images=images
  )
  path = tmp_path / "config.json"
  config = json.loads(path.read_text())
  del config["model_args"]
  path.write_text(json.dumps(config))
  imported = timm_directory.read(tmp_path)
  assert imported.model["num_heads"] == 2 and imported.model["image_size"] == 160
  outputs, _ = forward(imported.model, imported.params)
  np.testing.assert_allclose(outputs, answer["outputs"], rtol=0, atol=2e-6)


@pytest.mark.torch
def test_a_state_dict_alone(tmp_path, timm_process):
  """As facebook publishes DeiT; nothing beside it says how many heads there are."""
  create = {**TINY, "embed_dim": 128, "num_heads": 2}
  create["model_name"] = "deit_tiny_distilled_patch16_224"
  answer = timm_process(
      "create", create=create, random=True, save_file=str(tmp_path / "deit.pth"),
      images=images_of(MODEL),
  )
  imported = timm_directory.read(tmp_path / "deit.pth")
  outputs, _ = forward(imported.model, imported.params)
  np.testing.assert_allclose(outputs, answer["outputs"], rtol=0, atol=2e-6)
  assert any("assumed" in line and "2 heads" in line for line in imported.report)
  assert imported.model["position_interpolation"] == "bicubic"
  assert imported.labels is None and imported.preprocessing is None


def state_dict(directory, model):
  """A model's tensors under timm's names, as NumPy arrays, and its parameters."""
  params, _ = write(directory, model)
  return dict(load_file(directory / "model.safetensors")), params


SELF_SUPERVISED = {**MODEL, "width": 64, "num_heads": 1, "num_classes": 0, "gelu": "erf"}


def read_alone(directory, tensors):
  path = directory / "alone.safetensors"
  save_file({n: np.ascontiguousarray(v) for n, v in tensors.items()}, path)
  return timm_directory.read(path)


def test_mae_and_its_decoder(tmp_path):
  model = {**SELF_SUPERVISED, "width": 64, "num_heads": 2}
  tensors, params = state_dict(tmp_path, model)
  tensors |= {"mask_token": np.ones((1, 1, 8), np.float32),
              "decoder_embed.weight": np.ones((8, 64), np.float32),
              "decoder_blocks.0.norm1.weight": np.ones(8, np.float32)}
  imported = read_alone(tmp_path, tensors)
  assert_same(imported.params, params)
  assert any("decoder_blocks.0.norm1.weight" in line for line in imported.report)
  assert imported.model["pooling"] == "cls" and imported.model["gelu"] == "erf"


@pytest.mark.parametrize("chunked", [False, True])
def test_dinov2_in_its_own_names(chunked, tmp_path):
  model = {**SELF_SUPERVISED, "register_tokens": 4, "layer_scale": 1e-5, "mlp": "swiglu",
           "num_heads": 2}
  tensors, params = state_dict(tmp_path, model)
  rows = tensors["pos_embed"]
  native = {
      "register_tokens": tensors.pop("reg_token"), "mask_token": np.ones((1, 64), np.float32),
      # DINOv2's registers have no positions, its class token has.
      "pos_embed": np.delete(rows, np.s_[1:5], axis=1),
  }
  for name, values in tensors.items():
    name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
    name = re.sub(r"blocks\.(\d+)", r"blocks.0.\1", name) if chunked else name
    native.setdefault(name, values)
  imported = read_alone(tmp_path, native)
  assert imported.model["mlp"] == "swiglu" and imported.model["class_token_position"]
  assert_same(imported.params, params)


def test_dino_and_what_training_keeps_beside_it(tmp_path):
  tensors, params = state_dict(tmp_path, {**SELF_SUPERVISED, "num_heads": 2})
  whole = {f"teacher.backbone.{name}": values for name, values in tensors.items()}
  whole |= {f"student.backbone.{name}": 0 * values for name, values in tensors.items()}
  whole["loss.center"] = np.ones(3, np.float32)
  imported = read_alone(tmp_path, whole)
  assert_same(imported.params, params)
  assert any("'teacher.backbone.'" in line for line in imported.report)
  twice = {n.replace("teacher", "other"): v for n, v in whole.items()}
  with pytest.raises(CheckpointError, match="several models.*other.backbone"):
    read_alone(tmp_path, twice)


def test_pre_logits_of_older_timm_are_read(tmp_path):
  model = {**MODEL, "width": 64, "num_heads": 2}
  tensors, _ = state_dict(tmp_path, model)
  dense = np.random.default_rng(5).standard_normal((64, 64), np.float32)
  tensors |= {"pre_logits.fc.weight": dense, "pre_logits.fc.bias": dense[0].copy()}
  imported = read_alone(tmp_path, tensors)
  assert imported.model["pre_logits"]
  np.testing.assert_array_equal(imported.params["pre_logits"]["kernel"], dense.T)


def test_labels_and_preprocessing_survive(tmp_path):
  write(tmp_path, MODEL, labels=LABELS, preprocessing=PREPROCESSING)
  imported = timm_directory.read(tmp_path)
  assert imported.labels == LABELS
  found = imported.preprocessing
  assert {k: found[k] for k in ("image_size", "resize", "short_side", "interpolation")} == {
      k: PREPROCESSING[k] for k in ("image_size", "resize", "short_side", "interpolation")
  }
  np.testing.assert_allclose(found["mean"], PREPROCESSING["mean"])
  edit_config(tmp_path, label_names={str(i): name for i, name in enumerate(LABELS)})
  assert timm_directory.read(tmp_path).labels == LABELS
  edit_config(tmp_path, label_names=["a"])
  with pytest.raises(CheckpointError, match="1 labels for a head of 5"):
    timm_directory.read(tmp_path)


# --- refusing

UNHELD = {
    "pre_logits": ({"pre_logits": True}, "pre_logits"),
    "epsilon": ({"layer_norm_epsilon": 1e-12}, "1e-12"),
    "epsilon 1e-5 distilled": ({**DISTILLED, "layer_norm_epsilon": 1e-5}, "distillation head"),
    "decoder": (
        {"pixel_decoder": True, "num_classes": 0, "pooling": "none"}, "no pixel decoder"
    ),
    "swiglu map": ({"mlp": "swiglu", "pooling": "map"}, "SwiGLU"),
    "distilled registers": ({**DISTILLED, "register_tokens": 1}, "no register tokens"),
}


@pytest.mark.parametrize("name", UNHELD)
def test_what_timm_cannot_hold_is_refused(name):
  change, why = UNHELD[name]
  with pytest.raises(CheckpointError, match=f"(?s)timm.*{why}"):
    timm_directory.choose({**MODEL, **change}, None)


def test_the_architecture_is_a_name_of_timm():
  choose = lambda change, name=None: timm_directory.choose({**MODEL, **change}, name)
  assert choose({}) == "vit_base_patch16_224"
  assert choose({"width": 1280, "patch_size": 14, "image_size": 28}) == "vit_huge_patch14_224"
  assert choose({"width": 384, **DISTILLED}) == "deit_small_distilled_patch16_224"
  assert choose({"mlp": "swiglu"}) == "vit_giant_patch14_dinov2"
  assert choose({}, "vit_small_patch32_224") == "vit_small_patch32_224"
  with pytest.raises(ConfigError, match="'deit_tiny.*choose one of vit_base_patch16_224"):
    choose({}, "deit_tiny_distilled_patch16_224")


def test_wrong_input_to_write_is_refused(tmp_path):
  with pytest.raises(CheckpointError, match="2 labels were given for a head of 5"):
    write(tmp_path, MODEL, labels=("a", "b"))
  with pytest.raises(CheckpointError, match="makes images of 64 pixels, the model takes 32"):
    write(tmp_path, MODEL, preprocessing={**PREPROCESSING, "image_size": 64})
  with pytest.raises(ConfigError, match="dtype 'int8'"):
    write(tmp_path, MODEL, dtype="int8")
  params = random_params(MODEL)
  params["head"]["bias"] = np.ones(4, np.float32)
  with pytest.raises(CheckpointError, match="head/bias"):
    write(tmp_path, MODEL, params=params)


def without(name):
  return lambda tensors: {n: v for n, v in tensors.items() if n != name}


def adding(name, shape=(2,)):
  return lambda tensors: {**tensors, name: np.ones(shape, np.float32)}


FOREIGN = {
    "norm_pre.weight": "pre_norm", "patch_embed.backbone.conv.weight": "convolutional stem",
    "blocks.0.attn.rel_pos.relative_position_bias_table": "relative positions",
    "blocks.0.attn.norm.weight": "scale_attn_norm", "blocks.0.attn.q_bias": "BEiT",
    "blocks.0.mlp.norm.weight": "scale_mlp_norm", "rope.freqs": "rotary",
    "blocks.0.attn.lambda_q1": "differential", "blocks.0.attns.0.norm.weight": "parallel",
    "blocks.0.mlp.fc1_g.weight": "SwiGLU with two",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_layers_that_ours_lacks_are_refused_by_their_setting(name, tmp_path):
  write(tmp_path, MODEL)
  edit_tensors(tmp_path / "model.safetensors", adding(name))
  with pytest.raises(CheckpointError, match=f"(?s){FOREIGN[name]}.*{re.escape(name)}"):
    timm_directory.read(tmp_path)


SETTINGS = {
    "pre_norm": True, "final_norm": False, "in_chans": 1, "proj_bias": False, "pos_embed": "none",
    "block_fn": "ResPostBlock", "norm_layer": "rmsnorm", "act_layer": "quick_gelu",
    "global_pool": "max", "attn_layer": "diff", "pool_include_prefix": True, "scale_mlp_norm": True,
}


@pytest.mark.parametrize("key", SETTINGS)
def test_settings_that_ours_lacks_are_refused_by_name(key, tmp_path):
  write(tmp_path, MODEL)
  edit_config(tmp_path, model_args={key: SETTINGS[key]})
  with pytest.raises(CheckpointError, match=f"config.json.*{key} is {SETTINGS[key]!r}"):
    timm_directory.read(tmp_path)


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_rope_224", "vit_relpos_base_patch16_224", "resnet50", "beit_base",
             "vit_base_patch16_dinov3", "vit_base_patch16_rpn_224", "vit_base_patch16_xp_224",
             "vit_base_patch16_clip_quickgelu_224", "vit_base_r50_s16_224"]
)
def test_other_architectures_are_refused_by_name(name, tmp_path):
  write(tmp_path, MODEL)
  edit_config(tmp_path, architecture=name)
  with pytest.raises(CheckpointError, match=name):
    timm_directory.read(tmp_path)


def test_files_that_do_not_belong_together(tmp_path):
  write(tmp_path, MODEL)
  edit_config(tmp_path, num_classes=7)
  with pytest.raises(CheckpointError, match="names 7 classes, but the head in .* has 5"):
    timm_directory.read(tmp_path)
  edit_config(tmp_path, num_classes=5, architecture=None)
  with pytest.raises(CheckpointError, match="names no \"architecture\""):
    timm_directory.read(tmp_path)


def test_missing_unexpected_and_misshapen_tensors_are_listed(tmp_path):
  write(tmp_path, MODEL)
  weights = tmp_path / "model.safetensors"
  edit_tensors(weights, without("blocks.1.norm1.bias"))
  edit_tensors(weights, adding("strange"))
  edit_tensors(weights, lambda t: {**t, "norm.bias": t["norm.bias"][:5]})
  with pytest.raises(
      CheckpointError,
      match="(?s)Missing.*blocks.1.norm1.bias.*Unexpected.*strange.*Misshapen.*norm.bias",
  ):
    timm_directory.read(tmp_path)
  edit_tensors(weights, without("patch_embed.proj.weight"))
  with pytest.raises(CheckpointError, match="no ViT in timm's naming"):
    timm_directory.read(tmp_path)


def test_positions_that_fit_no_image(tmp_path):
  write(tmp_path, MODEL)
  edit_tensors(tmp_path / "model.safetensors", lambda t: {**t, "pos_embed": t["pos_embed"][:, :14]})
  with pytest.raises(CheckpointError, match="14 positions.*img_size"):
    timm_directory.read(tmp_path)


@pytest.mark.torch
def test_every_registered_vit_is_known_or_refused(timm_process):
  """What our table says of timm's names is what timm's own functions set."""
  answer = timm_process("architectures")
  plain = json.loads(str(answer["names"]))
  for name, truth in plain.items():
    expected_refusal = truth["odd"] or truth["act_layer"] == "quick_gelu"
    try:
      found = timm_architectures.arguments(name, {}, "config.json")
    except CheckpointError:
      assert expected_refusal or truth["mlp_layer"] == "SwiGLU", name
      continue
    assert not expected_refusal, (name, truth)
    heads = found.get("num_heads", timm_architectures.num_heads(truth["width"]))
    assert heads == truth["num_heads"], name
    assert found.get("global_pool", "token") == truth["global_pool"], name
    assert (found.get("init_values") or 1e-5) == (truth["init_values"] or 1e-5), name
    epsilon = 1e-5 if found.get("norm_layer") == timm_architectures.EPSILON_5 else 1e-6
    assert epsilon == truth["epsilon"], name
    activation = {"SiLU": "silu"}.get(truth["act_layer"], truth["act_layer"])
    assert found.get("act_layer", "gelu") == activation, name
  for name in answer["all"]:
    if name not in plain:
      with pytest.raises(CheckpointError):
        timm_architectures.arguments(str(name), {}, "config.json")

"""Google's .npz files: written, read back by names that stand here, and computed by timm."""

import json
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest

from small_models import (
    LABELS, MAP, MODEL, NO_CLASS_TOKEN, PREPROCESSING, TINY, assert_same, forward, images_of,
    random_params, write,
)
from timm_process import timm_process  # pylint: disable=unused-import
from vit_jax.convert import export_checkpoint
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop import big_vision_npz, google_npz, npz_files
from vit_jax.interop.targets import choose
from vit_jax.loading import load
from vit_jax.models.vit import ViT

WRITERS = {"google": google_npz, "big_vision": big_vision_npz}

def save(path, arrays, prefix=""):
  np.savez(path, **{f"{prefix}{name}": values for name, values in arrays.items()})
  return path


def names_of(model, params, *, scanned=False):
  """Arrays of a model under the names of big_vision's `models/vit.py`, spelled out once more."""
  arrays = {
      "embedding/kernel": params["patch_embedding"]["kernel"],
      "embedding/bias": params["patch_embedding"]["bias"],
      "Transformer/encoder_norm/scale": params["norm"]["scale"],
      "Transformer/encoder_norm/bias": params["norm"]["bias"],
  }
  if "position_embedding" in params:
    arrays["pos_embedding"] = params["position_embedding"]
  if model["class_token"]:
    arrays["cls"] = params["class_token"]
  for name in ("head", "pre_logits"):
    for part in ("kernel", "bias") if name in params else ():
      arrays[f"{name}/{part}"] = params[name][part]

  def attention(at, tree):
    for part in ("query", "key", "value", "out"):
      for kind in ("kernel", "bias"):
        arrays[f"{at}MultiHeadDotProductAttention_0/{part}/{kind}"] = tree[part][kind]

  def mlp(at, tree):
    for i, part in enumerate(("fc1", "fc2")):
      for kind in ("kernel", "bias"):
        arrays[f"{at}MlpBlock_0/Dense_{i}/{kind}"] = tree[part][kind]

  def block(at, tree):
    for i, part in enumerate(("norm1", "norm2")):
      for kind in ("scale", "bias"):
        arrays[f"{at}LayerNorm_{i}/{kind}"] = tree[part][kind]
    attention(at, tree["attention"])
    mlp(at, tree["mlp"])

  if scanned:
    block("Transformer/encoderblock/", params["blocks"])
  else:
    for layer in range(model["depth"]):
      block(
          f"Transformer/encoderblock_{layer}/",
          jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"]),
      )
  if model["pooling"] == "map":
    head = params["map_head"]
    arrays["MAPHead_0/probe"] = head["probe"]
    for kind in ("scale", "bias"):
      arrays[f"MAPHead_0/LayerNorm_0/{kind}"] = head["norm"][kind]
    attention("MAPHead_0/", head["attention"])
    mlp("MAPHead_0/", head["mlp"])
  return arrays


# --- writing


@pytest.mark.parametrize("writer", WRITERS)
def test_a_directory_gives_back_what_an_npz_cannot_say(writer, tmp_path):
  model = {**MODEL, "image_size": [32, 48], "position_interpolation": "bicubic_antialias"}
  if writer == "big_vision":
    model["class_token_position"] = False
  preprocessing = {**PREPROCESSING, "image_size": [32, 48]}
  params, report = write(
      WRITERS[writer], tmp_path, model, preprocessing=preprocessing, labels=LABELS
  )
  imported = WRITERS[writer].read(tmp_path)
  assert imported.model == model
  assert imported.preprocessing == preprocessing and imported.labels == LABELS
  assert_same(imported.params, params)
  assert report == json.loads((tmp_path / "conversion.json").read_text())
  assert sorted(path.name for path in tmp_path.iterdir()) == ["conversion.json", "model.npz"]


def test_the_originals_names(tmp_path):
  params, report = write(google_npz, tmp_path, {**MODEL, "pre_logits": True})
  with np.load(tmp_path / "model.npz") as arrays:
    arrays = dict(arrays)
  names = set(arrays)
  block = "Transformer/encoderblock_1"
  expected = {"cls", "Transformer/posembed_input/pos_embedding"} | {
      f"{name}/{kind}"
      for name in ("embedding", "pre_logits", "head", f"{block}/MlpBlock_3/Dense_0",
                   f"{block}/MlpBlock_3/Dense_1", f"{block}/MultiHeadDotProductAttention_1/query",
                   f"{block}/MultiHeadDotProductAttention_1/key",
                   f"{block}/MultiHeadDotProductAttention_1/value",
                   f"{block}/MultiHeadDotProductAttention_1/out")
      for kind in ("kernel", "bias")
  } | {
      f"{name}/{kind}" for name in (f"{block}/LayerNorm_0", f"{block}/LayerNorm_2",
                                    "Transformer/encoder_norm") for kind in ("scale", "bias")
  }
  assert names == expected | {n.replace("block_1", "block_0") for n in expected}
  assert report["tensors"] == len(names)
  query = arrays[f"{block}/MultiHeadDotProductAttention_1/query/kernel"]
  np.testing.assert_array_equal(query, params["blocks"]["attention"]["query"]["kernel"][1])
  np.testing.assert_array_equal(
      arrays["Transformer/posembed_input/pos_embedding"], params["position_embedding"]
  )


@pytest.mark.parametrize("change", [{"class_token_position": False}, NO_CLASS_TOKEN, MAP], ids=str)
def test_big_visions_names(change, tmp_path):
  model = {**MODEL, **change}
  params, _ = write(big_vision_npz, tmp_path, model)
  expected = names_of(model, params)
  with np.load(tmp_path / "model.npz") as arrays:
    assert set(arrays) == {f"params/{name}" for name in expected}
    for name, values in expected.items():
      np.testing.assert_array_equal(arrays[f"params/{name}"], values)


# What each format stores in another form: the function stays the same.
FITTED = {
    "class_token_position": {"class_token_position": False},
    "no qkv_bias": {"qkv_bias": False},
    "mask_token": {"mask_token": True},
    "sincos2d": {"position_embedding": "sincos2d"},
    "sincos2d_mae": {"position_embedding": "sincos2d_mae"},
    "sincos2d_mae gap": {"position_embedding": "sincos2d_mae", **NO_CLASS_TOKEN},
    "stretched": {"position_embedding": "sincos2d", "position_image_size": 16},
    "headless": {"num_classes": 0, "pre_logits": True},
    "tokens": {"num_classes": 0, "class_token": False, "pooling": "none"},
    "usual": {},
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", FITTED)
def test_fit_is_the_same_function_and_what_is_read_back(writer, name, tmp_path):
  model = {**MODEL, **FITTED[name]}
  module = WRITERS[writer]
  params, report = write(module, tmp_path, model)
  fitted, stored = module.fit(model, params, report["architecture"])
  imported = module.read(tmp_path)
  assert imported.model == fitted
  assert_same(imported.params, stored)
  for found, expected in zip(forward(imported.model, imported.params), forward(model, params)):
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6)
  again, _ = module.fit(fitted, stored, report["architecture"])
  assert again == fitted


def test_big_vision_in_less_than_float32(tmp_path):
  model = {**MODEL, "class_token_position": False}
  for dtype, raw in (("bfloat16", "V2"), ("float16", np.float16)):
    params, report = write(big_vision_npz, tmp_path, model, dtype=dtype)
    with np.load(tmp_path / "model.npz") as arrays:
      assert {arrays[name].dtype for name in arrays} == {np.dtype(raw)}
    rounded = jax.tree.map(
        lambda leaf, dtype=dtype: leaf.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        .astype(np.float32), params
    )
    assert_same(big_vision_npz.read(tmp_path).params, rounded)
    assert report["dtype"] == dtype and report["bytes"] == 2 * report["parameters"]
    for path in tmp_path.iterdir():
      path.unlink()


def test_equal_models_make_equal_bytes(tmp_path):
  _, first = write(google_npz, tmp_path / "a", MODEL)
  _, second = write(google_npz, tmp_path / "b", MODEL)
  assert first["files"] == second["files"]


def test_the_original_is_written_in_float32_alone(tmp_path):
  with pytest.raises(ConfigError, match="float32 alone.*big-vision-npz"):
    write(google_npz, tmp_path, MODEL, dtype="bfloat16")


REFUSED = {
    "gelu": ({"gelu": "erf"}, "GELU"),
    "epsilon": ({"layer_norm_epsilon": 1e-12}, "1e-06|1e-6"),
    "registers": ({"register_tokens": 2}, "register"),
    "layer_scale": ({"layer_scale": 0.1}, "LayerScale"),
    "qk_norm": ({"qk_norm": True}, "QK-norm"),
    "swiglu": ({"mlp": "swiglu"}, "SwiGLU"),
    "gap": ({"pooling": "gap"}, "class token beside"),
    "norm": ({**NO_CLASS_TOKEN, "norm_after_pooling": True}, "norm before pooling"),
    "distilled": ({"distillation_token": True, "distillation_head": True}, "distillation"),
    "decoder": ({"pixel_decoder": True, "num_classes": 0, "pooling": "none"}, "decoder"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_they_cannot_hold_is_refused(writer, name):
  change, why = REFUSED[name]
  with pytest.raises(CheckpointError, match=why):
    WRITERS[writer].choose({**MODEL, **change}, None)


def test_each_points_at_the_other():
  with pytest.raises(CheckpointError, match="--to=big-vision-npz"):
    choose(google_npz, {**MODEL, **MAP}, None)
  with pytest.raises(CheckpointError, match="--to=google-npz"):
    choose(big_vision_npz, {**MODEL, "num_classes": 0, "pooling": "none"}, None)
  with pytest.raises(ConfigError, match="no class"):
    google_npz.choose(MODEL, "ViTModel")


def test_wrong_labels_and_values_that_are_not_finite_are_refused(tmp_path):
  with pytest.raises(CheckpointError, match="2 labels were given for a head of 5"):
    write(google_npz, tmp_path / "a", MODEL, labels=("a", "b"))
  params = random_params(MODEL)
  params["norm"]["bias"][3] = np.nan
  with pytest.raises(CheckpointError, match="encoder_norm/bias has values that are inf"):
    write(google_npz, tmp_path / "b", MODEL, params=params)
  params = random_params(MODEL)
  del params["head"]
  with pytest.raises(CheckpointError, match="head/kernel"):
    write(google_npz, tmp_path / "c", MODEL, params=params)


# --- reading


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("prefix", ["", "params/", "params/img/", "opt/target/", "img/"])
@pytest.mark.parametrize("change", [{"class_token_position": False}, MAP], ids=["tok", "map"])
def test_prefixes_and_scanned_blocks(prefix, scanned, change, tmp_path):
  model = {**MODEL, **change}
  params = random_params(model)
  arrays = names_of(model, params, scanned=scanned)
  imported = npz_files.read(save(tmp_path / "x.npz", arrays, prefix))
  assert imported.model == {**model, "position_interpolation": "bilinear"}
  assert_same(imported.params, params)
  assert imported.labels is None and imported.preprocessing is None


def test_preprocessing_is_assumed(tmp_path):
  """As Google's code does it, for its files do not say."""
  loaded = load(save(tmp_path / "x.npz", names_of(MODEL, random_params(MODEL))))
  assert loaded.preprocessing["resize"] == "squash" and not loaded.preprocessing_known
  assert any("assumed how images are preprocessed" in line for line in loaded.report)


@pytest.mark.parametrize(
    "name", ["Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding",
             "pos_embedding"]
)
def test_generations_of_position_embeddings(name, tmp_path):
  params = random_params(MODEL)
  arrays = names_of(MODEL, params)
  arrays[name] = arrays.pop("pos_embedding")
  imported = npz_files.read(save(tmp_path / "x.npz", arrays))
  assert imported.model["class_token_position"]
  assert_same(imported.params, params)


def test_linen_and_earlier_numbers_of_modules(tmp_path):
  params = random_params(MODEL)
  old = {"MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
         "LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3"}
  arrays = {}
  for name, values in names_of(MODEL, params).items():
    for new, earlier in old.items():
      name = name.replace(new, earlier)
    arrays[name.replace("pos_embedding", "Transformer/posembed_input/pos_embedding")] = values
  assert_same(npz_files.read(save(tmp_path / "x.npz", arrays)).params, params)


def test_a_map_head_at_the_top_and_a_position_without_class_token(tmp_path):
  model = {**MODEL, **MAP}
  params = random_params(model)
  arrays = {n.removeprefix("MAPHead_0/"): values for n, values in names_of(model, params).items()}
  arrays["pos_embedding"] = np.pad(arrays["pos_embedding"], ((0, 0), (1, 0), (0, 0)))
  imported = npz_files.read(save(tmp_path / "x.npz", arrays))
  assert_same(imported.params, params)
  assert any("left out the first position" in line for line in imported.report)


def test_fixed_positions_are_in_no_file(tmp_path):
  model = {**MODEL, **NO_CLASS_TOKEN, "position_embedding": "sincos2d", "image_size": 224}
  params = random_params(model)
  imported = npz_files.read(save(tmp_path / "x.npz", names_of(model, params)))
  guessed = {"position_interpolation": "bilinear", "position_image_size": "any"}
  assert imported.model == {**model, **guessed}
  assert any("224 pixels assumed" in line for line in imported.report)
  # big_vision counts the patches of any image anew; from a size that is guessed nothing is derived.
  wanted = ViT(**{**model, "image_size": 32}).apply({"params": params}, images_of(MODEL))
  for name, target in (("ours", "orbax"), ("theirs", "big-vision-npz")):
    export_checkpoint(str(tmp_path / "x.npz"), tmp_path / name, to=target)
  for name in ("x.npz", "ours", "theirs"):
    for size in (None, 32):
      found = load(str(tmp_path / name), image_size=size)
      np.testing.assert_allclose(
          found.model.apply({"params": found.params}, images_of(MODEL)), wanted, atol=2e-5
      )


def test_a_headless_one_and_one_with_21k_classes(tmp_path):
  for classes in (0, 21_843):
    model = {**MODEL, "num_classes": classes, "pre_logits": bool(classes)}
    params = random_params(model)
    imported = npz_files.read(save(tmp_path / "x.npz", names_of(model, params)))
    assert imported.model["num_classes"] == classes
    assert imported.model["pre_logits"] == bool(classes)
    assert_same(imported.params, params)


def test_half_precision_and_compression(tmp_path):
  params = random_params(MODEL)
  arrays = names_of(MODEL, params)
  rounded = {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()}
  np.savez_compressed(tmp_path / "x.npz", **{n: a.view("V2") for n, a in rounded.items()})
  found = npz_files.read(tmp_path / "x.npz").params
  np.testing.assert_array_equal(
      found["norm"]["bias"], rounded["Transformer/encoder_norm/bias"].astype(np.float32)
  )
  np.savez(tmp_path / "y.npz", **{n: a.astype(np.float64) for n, a in arrays.items()})
  with pytest.raises(CheckpointError, match="float64"):
    npz_files.read(tmp_path / "y.npz")


def test_a_text_encoder_and_an_optimizer_are_ignored_aloud(tmp_path):
  params = random_params(MODEL)
  arrays = {f"params/img/{name}": a for name, a in names_of(MODEL, params).items()}
  arrays |= {
      "params/t": np.ones(1, np.float32), "params/b": np.ones(1, np.float32),
      "params/txt/Embed_0/embedding": np.ones((3, 4), np.float32),
      "opt/0/mu/img/head/bias": np.ones(5, np.float32),
  }
  imported = npz_files.read(save(tmp_path / "x.npz", arrays))
  assert_same(imported.params, params)
  assert any("ignored 4 arrays" in line and "params/t" in line for line in imported.report)


def broken(arrays):
  arrays = dict(arrays)
  del arrays["Transformer/encoderblock_1/LayerNorm_0/bias"]
  arrays["strange"] = np.ones(2, np.float32)
  arrays["head/bias"] = np.ones(4, np.float32)
  return arrays


ODD = {
    "missing": (broken, "Missing.*encoderblock_1/LayerNorm_0/bias.*Unexpected.*strange.*"
                "Misshapen.*head/bias"),
    "hybrid": (lambda a: a | {"conv_root/kernel": np.ones(2, np.float32)}, "hybrid.*conv_root"),
    "no ViT": (lambda a: {"a": np.ones(2, np.float32)}, "no array embedding/kernel"),
    "flat patches": (
        lambda a: a | {"embedding/kernel": np.ones((192, 32), np.float32)}, "not of 4 axes"
    ),
    "gray": (
        lambda a: a | {"embedding/kernel": np.ones((8, 8, 1, 32), np.float32)}, "1 channels"
    ),
    "not square": (
        lambda a: a | {"pos_embedding": np.ones((1, 24, 32), np.float32)}, "24 positions"
    ),
    "no blocks": (
        lambda a: {k: v for k, v in a.items() if "encoderblock" not in k},
        "query/kernel is missing",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_vit_is_refused_by_name(name, tmp_path):
  change, text = ODD[name]
  arrays = change(names_of(MODEL, random_params(MODEL)))
  with pytest.raises(CheckpointError, match=f"(?s)x.npz.*({text})"):
    npz_files.read(save(tmp_path / "x.npz", arrays))


def test_damaged_files(tmp_path):
  path = save(tmp_path / "x.npz", names_of(MODEL, random_params(MODEL)))
  data = path.read_bytes()
  for cut in (0, 10, len(data) // 2, len(data) - 30):
    path.write_bytes(data[:cut])
    with pytest.raises(CheckpointError, match="x.npz"):
      npz_files.read(path)
  with zipfile.ZipFile(tmp_path / "whole.npz", "w") as archive:
    archive.writestr("embedding/kernel.npy", b"not an array")
  with pytest.raises(CheckpointError, match="embedding/kernel"):
    npz_files.read(tmp_path / "whole.npz")
  at = data.index(np.asarray(random_params(MODEL)["norm"]["scale"]).tobytes())
  path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
  with pytest.raises(CheckpointError, match="encoder_norm/scale.*CRC"):
    npz_files.read(path)


def test_pickles_are_not_executed(tmp_path):
  class Bomb:

    def __reduce__(self):
      return pytest.fail, ("a pickle was executed",)

  arrays = names_of(MODEL, random_params(MODEL))
  arrays["head/bias"] = np.array([Bomb()], dtype=object)
  np.savez(tmp_path / "x.npz", **arrays)
  with pytest.raises(CheckpointError, match="head/bias"):
    npz_files.read(tmp_path / "x.npz")


def test_the_path_must_name_one_npz(tmp_path):
  with pytest.raises(CheckpointError, match="0 .npz files"):
    npz_files.read(tmp_path)
  other = tmp_path / "x.zip"
  other.write_bytes(b"PK")
  with pytest.raises(CheckpointError, match="does not end in .npz"):
    npz_files.read(other)
  save(tmp_path / "a.npz", names_of(MODEL, random_params(MODEL)))
  assert npz_files.read(tmp_path).model["width"] == 32
  save(tmp_path / "b.npz", {})
  with pytest.raises(CheckpointError, match="2 .npz files.*a.npz, b.npz"):
    npz_files.read(tmp_path)


# --- timm

JUDGED = {
    "google": ("google_npz", {}),
    "google gap": ("google_npz", NO_CLASS_TOKEN),
    "google pre_logits": ("google_npz", {"pre_logits": True}),
    "google headless": ("google_npz", {"num_classes": 0}),
    "google unpooled": ("google_npz", {"num_classes": 0, "pooling": "none"}),
    "google sincos": ("google_npz", {"position_embedding": "sincos2d"}),
    "big_vision": ("big_vision_npz", {}),
    "big_vision sincos": ("big_vision_npz", {"position_embedding": "sincos2d", **NO_CLASS_TOKEN}),
    "big_vision stretched": (
        "big_vision_npz", {"position_embedding": "sincos2d", "position_image_size": 16}
    ),
    "big_vision sincos tok": ("big_vision_npz", {"position_embedding": "sincos2d"}),
    "big_vision map": ("big_vision_npz", MAP),
    "big_vision gap": ("big_vision_npz", {**NO_CLASS_TOKEN, "image_size": [16, 48]}),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", JUDGED)
def test_timm_computes_the_same_from_an_npz(name, tmp_path, timm_process):
  module, change = JUDGED[name]
  model = {**MODEL, **change}
  params, _ = write(globals()[module], tmp_path, model)
  judged = timm_process(
      "judge", module=f"vit_jax.interop.{module}", directory=str(tmp_path), images=images_of(model)
  )
  outputs, tokens = forward(model, params)
  np.testing.assert_allclose(judged["outputs"], outputs, rtol=0, atol=2e-6)
  np.testing.assert_allclose(judged["tokens"], tokens, rtol=0, atol=4e-6)


@pytest.mark.torch
@pytest.mark.parametrize("writer", WRITERS)
def test_timms_checkpoint_path_loads_them(writer, tmp_path, timm_process):
  params, _ = write(WRITERS[writer], tmp_path, MODEL)
  create = {**TINY, "act_layer": "gelu_tanh", "checkpoint_path": str(tmp_path / "model.npz")}
  create |= {"no_embed_class": True} if writer == "big_vision" else {}
  answer = timm_process("create", create=create, images=images_of(MODEL))
  np.testing.assert_allclose(answer["outputs"], forward(MODEL, params)[0], rtol=0, atol=2e-6)


@pytest.mark.torch
def test_timm_reads_big_visions_bfloat16(tmp_path, timm_process):
  model = {**MODEL, "class_token_position": False}
  write(big_vision_npz, tmp_path, model, dtype="bfloat16")
  create = {**TINY, "act_layer": "gelu_tanh", "no_embed_class": True}
  answer = timm_process(
      "bfloat16_npz", create=create, path=str(tmp_path / "model.npz"), images=images_of(MODEL)
  )
  ours = forward(model, big_vision_npz.read(tmp_path).params)[0]
  np.testing.assert_allclose(answer["outputs"], ours, rtol=0, atol=2e-6)
  judged = timm_process(
      "judge", module="vit_jax.interop.big_vision_npz", directory=str(tmp_path),
      images=images_of(MODEL),
  )
  np.testing.assert_allclose(judged["outputs"], ours, rtol=0, atol=2e-6)

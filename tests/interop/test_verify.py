"""The gate after a conversion, and the mutations that must not pass it."""

import json

import numpy as np
import pytest

from vit_jax.errors import CheckpointError
from vit_jax.interop import huggingface, orbax_directory, verify
from vit_jax.interop.imported import Imported
from vit_jax.interop.targets import target

QUERY = "vit.encoder.layer.1.attention.attention.query."
POSITIONS = "vit.embeddings.position_embeddings"


@pytest.fixture
def images():
  return np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


def expect(model, params, images, *, architecture="ViTForImageClassification", dtype="float32"):
  return verify.expect(
      huggingface, model=model, params=params, images=images, architecture=architecture,
      dtype=dtype,
  )


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


def test_reading_back_catches_every_mutation(mutated, model, params, images):
  with pytest.raises(CheckpointError, match="read back is not the model"):
    verify.compare_bits(huggingface.read(mutated), expect(model, params, images))


@pytest.mark.torch
def test_pytorch_catches_every_mutation(mutated, model, params, images):
  pytest.importorskip("transformers")
  expected = expect(model, params, images)
  judged = huggingface.judge(mutated, expected.batches, None)
  with pytest.raises(CheckpointError, match="PyTorch computes other"):
    verify.compare_answers(expected.answers, judged)


def test_the_gate_refuses_a_mutation_and_notes_nothing(mutated, model, params, images):
  with pytest.raises(CheckpointError):
    verify.prove(mutated, huggingface, expect(model, params, images))
  assert json.loads((mutated / "conversion.json").read_text())["verification"] is None


def test_hugging_faces_default_epsilon_is_found(export, edit_json, model, params, images):
  directory = export(model, params=params)
  edit_json(directory / "config.json", layer_norm_eps=1e-12)
  with pytest.raises(CheckpointError, match="layer_norm_epsilon is 1e-12 instead of 1e-06"):
    verify.prove(directory, huggingface, expect(model, params, images))


def test_the_smallest_change_of_one_weight_is_found(export, edit_tensors, model, params, images):
  directory = export(model, params=params)

  def nudge(tensors):
    tensors["classifier.bias"][3] = np.nextafter(tensors["classifier.bias"][3], np.float32(9))
    return tensors

  edit_tensors(directory / "model.safetensors", nudge)
  with pytest.raises(CheckpointError, match="head/bias differs"):
    verify.compare_bits(huggingface.read(directory), expect(model, params, images))


def test_without_pytorch_only_bits_are_compared(export, model, params, images, monkeypatch):
  monkeypatch.setattr(huggingface, "judge", lambda *_: None)
  directory = export(model, params=params)
  result = verify.prove(directory, huggingface, expect(model, params, images))
  assert (result["bit_equal"], result["pytorch"]) == (True, None)
  assert json.loads((directory / "conversion.json").read_text())["verification"] == result


@pytest.mark.torch
@pytest.mark.parametrize("change, architecture, dtype, gelu", [
    ({}, "ViTForImageClassification", "float32", "tanh"),
    ({}, "ViTForImageClassification", "bfloat16", "erf"),
    ({"num_classes": 0}, "ViTModel", "float32", "erf"),
    ({"num_classes": 0, "pre_logits": True}, "ViTModel", "float16", "tanh"),
    ({"num_classes": 0, "pooling": "none", "pixel_decoder": True, "mask_token": True},
     "ViTForMaskedImageModeling", "float32", "erf"),
    ({"position_embedding": "sincos2d_mae"}, "ViTForImageClassification", "float32", "erf"),
])
def test_pytorch_agrees(
    export, random_params, model, images, change, architecture, dtype, gelu
):
  pytest.importorskip("transformers")
  # What only training reads must not disturb.
  model |= change | {"gelu": gelu, "dropout": 0.1, "dtype": "bfloat16", "scan": False}
  directory = export(model, dtype=dtype)
  expected = expect(
      model, random_params(model), images, architecture=architecture, dtype=dtype
  )
  result = verify.prove(directory, huggingface, expected)
  names = {"tokens", "outputs"} | ({"loss"} if change.get("pixel_decoder") else set())
  assert {"images": names, "noise": names} == {
      batch: set(figures) for batch, figures in result["pytorch"].items()
  }
  for figures in result["pytorch"].values():
    for name, figure in figures.items():
      assert figure["difference"] <= 5e-6 * figure["largest"] and figure["largest"] > 0.01, name
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
  expected = expect(model, params, images)
  judged = huggingface.judge(directory, expected.batches, None)
  figures = verify.compare_answers(expected.answers, judged)
  assert figures["images"]["outputs"] == {"difference": 0.0, "largest": 0.0}
  assert figures["images"]["tokens"]["largest"] > 0.1
  edit_json(directory / "config.json", layer_norm_eps=1e-3)
  judged = huggingface.judge(directory, expected.batches, None)
  with pytest.raises(CheckpointError, match="other tokens"):
    verify.compare_answers(expected.answers, judged)


@pytest.mark.torch
def test_an_unclean_load_is_refused(export, edit_tensors, model, params, images):
  pytest.importorskip("transformers")
  directory = export(model, params=params)
  edit_tensors(
      directory / "model.safetensors",
      lambda t: {k: v for k, v in t.items() if k != "classifier.bias"},
  )
  with pytest.raises(CheckpointError, match="missing_keys classifier.bias"):
    huggingface.judge(directory, {"images": images}, None)


def test_answers_of_another_shape_or_nan_fail():
  ours = {"images": {"outputs": np.ones((2, 3), np.float32)}}
  for theirs, said in ((np.ones((2, 4)), "of shape"), (np.full((2, 3), np.nan), "computes other")):
    with pytest.raises(CheckpointError, match=said):
      verify.compare_answers(ours, {"images": {"outputs": theirs}})


@pytest.fixture
def source(model, params, preprocessing, images):
  imported = Imported(
      model=model, params=params, preprocessing=preprocessing, labels=None, report=()
  )
  return lambda: (imported, images)


def test_an_export_appears_proved_and_replaces_the_earlier_one(source, tmp_path):
  options = {"architecture": None, "dtype": "float32", "max_shard_bytes": 10**9}
  for _ in range(2):
    report, proof = verify.export(tmp_path / "out", orbax_directory, load=source, **options)
    assert proof == report["verification"] and proof["bit_equal"]
    assert json.loads((tmp_path / "out" / "conversion.json").read_text()) == report
  assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_fails_its_proof_leaves_the_earlier_one(source, tmp_path, monkeypatch):
  options = {"architecture": None, "dtype": "float32", "max_shard_bytes": 10**9}
  verify.export(tmp_path / "out", orbax_directory, load=source, **options)
  before = (tmp_path / "out" / "conversion.json").read_text()
  wrong = {"images": {"outputs": np.zeros((2, 5), np.float32)}}
  monkeypatch.setattr(orbax_directory, "judge", lambda *_: wrong)
  with pytest.raises(CheckpointError, match="was not written, and an earlier export .* PyTorch"):
    verify.export(tmp_path / "out", orbax_directory, load=source, **options)
  assert (tmp_path / "out" / "conversion.json").read_text() == before
  assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_every_target_has_the_one_shape():
  for name in ("huggingface", "timm", "google-npz", "big-vision-npz", "orbax"):
    for function in ("read", "choose", "fit", "write", "judge"):
      assert callable(getattr(target(name), function)), (name, function)


@pytest.mark.torch
def test_a_decoder_that_a_class_leaves_out_is_not_asked_for(export, random_params, model, images):
  pytest.importorskip("transformers")
  model |= {"num_classes": 0, "pooling": "none", "pixel_decoder": True, "mask_token": True}
  directory = export(model, architecture="ViTModel")
  expected = expect(model, random_params(model), images, architecture="ViTModel")
  assert expected.patch_mask is None
  result = verify.prove(directory, huggingface, expected)
  assert set(result["pytorch"]["images"]) == {"tokens", "outputs"}


@pytest.mark.torch
def test_a_class_that_is_never_answered_hides_no_error(export, model, params, images):
  """The logit of a class that a sliced head lacks is -1e4; 2e-5 of that would pass anything."""
  pytest.importorskip("transformers")
  kernel, bias = (params["head"][name].copy() for name in ("kernel", "bias"))
  kernel[:, 2], bias[2] = 0, -1e4
  params["head"] = {"kernel": kernel, "bias": bias}
  directory = export(model, params=params)
  expected = expect(model, params, images)
  result = verify.prove(directory, huggingface, expected)
  assert result["pytorch"]["images"]["outputs"]["largest"] < 100
  judged = huggingface.judge(directory, expected.batches, None)
  judged["images"]["outputs"][0, 1] += 0.01
  with pytest.raises(CheckpointError, match="computes other outputs"):
    verify.compare_answers(expected.answers, judged, classes=expected.classes)

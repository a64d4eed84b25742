"""Model cards: metadata that the Hub's own parser reads, and a text of facts alone."""

import dataclasses
import re

from PIL import Image
import pytest
import small_models

from vit_jax.errors import ConfigError
from vit_jax.interop import huggingface
from vit_jax.interop.card_usage import usage
from vit_jax.interop.huggingface_classes import ARCHITECTURES
from vit_jax.interop.licenses import LICENSES, hub_license
from vit_jax.interop.model_card import Card, Measurement, Step, is_untouched, write_card
from vit_jax.interop.yaml_text import to_yaml

MODEL = {
    "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, "patch_size": 4, "image_size": 16,
    "num_classes": 3, "pooling": "cls", "pre_logits": False,
}
PREPROCESSING = {
    "image_size": 16, "resize": "center", "short_side": 18, "interpolation": "bicubic",
    "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.5, 0.5), "exif_orientation": True,
}
CONFIG = {
    "total": "3 epochs", "seed": 1, "input": {"batch_size": 64},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1},
    "schedule": {"name": "cosine", "warmup": "0 steps"},
}
STEPS = (
    Step("10", "alice/vit", "step10", (), {"model.safetensors": "a1" * 32}, None, {}),
    Step(
        "20 (EMA)", "alice/vit", "step20",
        (
            Measurement("test", 359, {"accuracy": 0.75, "loss": 1e-05}),
            Measurement("validation", None, {"accuracy": 0.8}),
        ),
        {
            "model-00001-of-00002.safetensors": "b2" * 32,
            "model-00002-of-00002.safetensors": "c" * 64,
        },
        "validation", {"rounding": {"difference": 0.0012, "largest": 3.4}},
    ),
)
CARD = Card(
    name="vit", license="apache-2.0", base_model="google/vit-base-patch16-224-in21k",
    to="huggingface", architecture="ViTForImageClassification", dtype="bfloat16",
    parameters=12345, model=MODEL, preprocessing=PREPROCESSING, labels=("cat", "dog", "bird"),
    dataset="flowers", steps=STEPS, config=CONFIG,
    provenance={"data": "fingerprint `f00`", "devices": None}, timm=True, notes=("left out: x",),
)


HEADLESS = {"num_classes": 0}
# What each class of transformers holds, beside what all of the tests' models have.
HELD = {
    "ViTForMaskedImageModeling": {
        "num_classes": 0, "pooling": "none", "pixel_decoder": True, "mask_token": True,
    },
    "DeiTForImageClassificationWithTeacher": {
        "distillation_token": True, "distillation_head": True,
    },
    "DeiTForImageClassification": {"distillation_token": True},
    "ViTForImageClassification": {},
    "IJepaForImageClassification": small_models.NO_CLASS_TOKEN,
    "SiglipVisionModel": HEADLESS | small_models.MAP,
    "DeiTModel": HEADLESS | {"distillation_token": True},
    "ViTModel": HEADLESS,
    "IJepaModel": HEADLESS | small_models.NO_CLASS_TOKEN,
    "Dinov2Model": HEADLESS | {"layer_scale": 1.0},
    "Dinov2WithRegistersModel": HEADLESS | {"layer_scale": 1.0, "register_tokens": 4},
}


def parsed(card):
  """The card as huggingface_hub reads it: (metadata, text)."""
  read = pytest.importorskip("huggingface_hub").ModelCard(write_card(card))
  return read.data, read.text


def test_the_hubs_parser_reads_the_metadata():
  data, text = parsed(CARD)
  assert data.license == "apache-2.0" and data.library_name == "transformers"
  assert data.pipeline_tag == "image-classification" and data.metrics == ["accuracy", "loss"]
  assert data.base_model == "google/vit-base-patch16-224-in21k" and data.model_name == "vit"
  results = {(r.dataset_split, r.metric_type): r for r in data.eval_results}
  assert results["test", "accuracy"].metric_value == 0.75
  assert results["test", "loss"].metric_value == 1e-05  # a number, not a string
  assert results["validation", "accuracy"].metric_value == 0.8
  assert {r.dataset_name for r in data.eval_results} == {"flowers"}
  assert "step 20 (EMA)" in results["test", "accuracy"].metric_name
  assert text.lstrip().startswith("# vit")


def test_the_text_lists_what_is_known():
  text = write_card(CARD)
  header, _, first, second = text.partition("| step |")[2].splitlines()[:4]
  assert "(test, 359 images)" in header and "(validation)" in header
  assert "not measured" in first and "`step10`" in first and "a1" * 32 in first
  assert "75.00%" in second and "b2" * 32 in second and "c" * 64 in second
  for fact in (
      "12,345 parameters", "16 x 16", "`cat`, `dog`, `bird`", "short side of 18", "(0.5, 0.4, 0.3)",
      "learning rate 0.001", "fingerprint `f00`", "`main` holds step 20 (EMA)",
      "Step 20 (EMA) was chosen because it was the best on validation", "Not measured: step 10",
      "changed outputs by up to 0.0012", "Left out: x.", 'revision="step10"',
      '"alice/vit"', "hf:alice/vit@step10", "--model=hf:alice/vit ",
  ):
    assert fact in text, fact
  assert "devices" not in text and "None" not in text


def test_what_is_not_known_is_left_out():
  bare = dataclasses.replace(
      CARD, base_model=None, labels=None, steps=(STEPS[0],), timm=False, notes=(),
      model=MODEL | {"num_classes": 0}, architecture="ViTModel",
  )
  data, text = parsed(bare)
  assert data.pipeline_tag == "image-feature-extraction"
  assert data.eval_results is None and data.base_model is None and data.metrics is None
  assert "classes" not in text and "chosen" not in text and "timm" not in text
  assert "add_pooling_layer=False" in text and "vit-jax predict" not in text


def test_many_and_odd_class_names():
  labels = ("a|b", "new\nline", "tick`", *map(str, range(100)))
  text = write_card(dataclasses.replace(CARD, labels=labels))
  assert "103 classes: `a/b`, `new line`, `tick'`, `0`" in text
  assert "83 more, all in `config.json`" in text


def test_edits_show():
  text = write_card(CARD)
  assert is_untouched(text) and is_untouched(text.replace("\n", "\r\n"))
  assert not is_untouched(text.replace("12,345", "12,346"))
  assert not is_untouched(text + "My own words.\n")
  assert is_untouched("---\nlicense: mit\n---\n") and is_untouched("")
  assert not is_untouched("---\nlicense: mit\n---\n# My model\n")


def test_yaml_is_read_back_as_it_was():
  yaml = pytest.importorskip("yaml")
  tree = {
      "text": ["yes", "1.0", "", "a: b # c", 'quo"te\\', "new\nline\t", "ünï 😀 \x7f\x85\u2028"],
      "numbers": [1, -2.5, 1e-05, 1e22, 3.2e-07, True, False],
      "deep": [{"a": 1, "b": [{"c": "d"}, "e"], "f": {"g": 2}}, {"a": 2}],
  }
  read = yaml.safe_load(to_yaml(tree))
  assert read == tree and [type(n) for n in read["numbers"]] == [type(n) for n in tree["numbers"]]
  with pytest.raises(ValueError):
    to_yaml({"a": float("nan")})
  with pytest.raises(ValueError):
    to_yaml({"a": []})
  with pytest.raises(TypeError):
    to_yaml({"a": object()})


def test_licenses():
  assert {hub_license(name) for name in LICENSES} == LICENSES
  assert hub_license("Apache-2.0") == "apache-2.0" and hub_license("GPL-3.0-or-later") == "gpl-3.0"
  for typo, meant in (("apache2.0", "apache-2.0"), ("MITT", "mit"), ("cc-by", "cc-by-4.0"),
                      ("bsd3", "bsd-3-clause")):
    with pytest.raises(ConfigError) as refused:
      hub_license(typo)
    assert meant in str(refused.value) and "--license=other" in str(refused.value)


@pytest.mark.torch
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_snippet_for_transformers_runs(tmp_path, monkeypatch, caplog, capsys, architecture):
  transformers = pytest.importorskip("transformers")
  model = small_models.MODEL | HELD[architecture]
  small_models.write(
      huggingface, tmp_path / "export", model, architecture=architecture,
      preprocessing=small_models.PREPROCESSING,
  )
  step = dataclasses.replace(STEPS[0], path="export", revision=None)
  text = usage(dataclasses.replace(CARD, model=model, architecture=architecture, steps=(step,)))
  snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
  assert "from transformers import" in snippet
  monkeypatch.chdir(tmp_path)
  Image.new("RGB", (60, 50), (200, 100, 50)).save("photo.jpg")
  transformers.logging.enable_propagation()
  exec(compile(snippet, "README.md", "exec"), {})
  transformers.logging.disable_propagation()
  assert "newly" not in caplog.text and "MISSING" not in caplog.text
  assert capsys.readouterr().out.strip()

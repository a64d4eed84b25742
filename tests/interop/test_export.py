"""What stands in the place of an export: the earlier one, or the new one proved."""

import json
import resource

import numpy as np
import pytest

from vit_jax.errors import CheckpointError
from vit_jax.interop import huggingface, verify
from vit_jax.interop.huggingface import read


@pytest.fixture
def convert(tmp_path, model, params, preprocessing, monkeypatch):
  """Exports into a directory of the test, proved bit by bit alone unless `pytorch`."""
  images = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)

  def convert(*, pytorch=False, **changes):
    if not pytorch:
      monkeypatch.setattr(verify, "_has_pytorch", lambda: False)
    options = {
        "model": model, "params": params, "preprocessing": preprocessing, "labels": None,
        "architecture": None, "dtype": "float32", "images": images,
    }
    return verify.export_huggingface(tmp_path / "export", **options | changes)

  return convert


def contents(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_new_export_is_complete_and_proved(convert, tmp_path, model):
  report, proof = convert()
  assert proof["bit_equal"] and report["verification"] == proof
  assert json.loads((tmp_path / "export" / "conversion.json").read_text()) == report
  assert read(tmp_path / "export").model == model
  assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_earlier_export_is_replaced(convert, tmp_path):
  convert()
  convert(architecture="ViTModel", preprocessing=None)
  assert set(contents(tmp_path / "export")) == {
      "config.json", "model.safetensors", "conversion.json"
  }
  assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("earlier", [True, False])
def test_a_failed_proof_leaves_what_was_there(
    convert, tmp_path, params, monkeypatch, edit_tensors, earlier
):
  if earlier:
    convert()
    before = contents(tmp_path / "export")

  def damaging_write(directory, **options):
    report = huggingface.write(directory, **options)
    name = "vit.encoder.layer.1.attention.attention.query.bias"
    edit_tensors(
        directory / "model.safetensors", lambda found: found | {name: np.zeros_like(found[name])}
    )
    return report

  monkeypatch.setattr(verify, "write", damaging_write)
  with pytest.raises(CheckpointError) as caught:
    convert(params=params | {"norm": {k: 2 * v for k, v in params["norm"].items()}})
  text = str(caught.value)
  assert f"{tmp_path / 'export'} was not written, and an earlier export there is" in text
  assert "blocks/attention/query/bias differs" in text
  assert [path.name for path in tmp_path.iterdir()] == ["export"] * earlier
  if earlier:
    assert contents(tmp_path / "export") == before


@pytest.mark.torch
def test_pytorch_judges_before_the_earlier_export_goes(convert, tmp_path, monkeypatch):
  pytest.importorskip("transformers")
  convert(pytorch=True)
  before = contents(tmp_path / "export")
  assert json.loads(before["conversion.json"])["verification"]["pytorch"]["images"]
  monkeypatch.setattr(verify, "TOLERANCE", 0.0)
  with pytest.raises(CheckpointError, match="transformers computes other"):
    convert(pytorch=True, labels=list("abcde"))
  assert contents(tmp_path / "export") == before
  assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("value, dtype", [(np.nan, "float32"), (1e5, "float16")])
def test_values_that_are_not_finite_leave_nothing(convert, tmp_path, params, value, dtype):
  params["head"]["bias"][2] = value
  with pytest.raises(CheckpointError, match="classifier.bias has values"):
    convert(dtype=dtype)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("files", [["notes.txt"], ["config.json", "model.safetensors"]])
def test_a_directory_of_somebody_elses_is_refused(convert, tmp_path, files):
  (tmp_path / "export").mkdir()
  for name in files:
    (tmp_path / "export" / name).write_text("mine")
  with pytest.raises(CheckpointError, match=files[0]):
    convert()
  assert contents(tmp_path / "export") == {name: b"mine" for name in files}


def test_a_file_in_the_way_is_refused(convert, tmp_path):
  (tmp_path / "export").write_text("mine")
  with pytest.raises(CheckpointError, match="is a file"):
    convert()


def test_a_full_disk_leaves_the_earlier_export(convert, tmp_path):
  convert()
  before = contents(tmp_path / "export")
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
  try:
    with pytest.raises(CheckpointError, match="cannot be written"):
      convert(labels=list("abcde"))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert contents(tmp_path / "export") == before
  assert [path.name for path in tmp_path.iterdir()] == ["export"]

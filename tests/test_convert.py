"""`convert` as a user meets it: options, several formats, several steps, what it says."""

import json

import numpy as np
import pytest
from small_models import MODEL, PREPROCESSING, write

from vit_jax import config as config_lib
from vit_jax.cli import main
from vit_jax.convert import parse_bytes, parse_image_size
from vit_jax.errors import ConfigError
from vit_jax.interop import orbax_directory
from vit_jax.loading import load
from vit_jax.train import train


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A random model in a directory of its own."""
  directory = tmp_path_factory.mktemp("convert") / "source"
  write(orbax_directory, directory, MODEL, preprocessing=PREPROCESSING, labels=list("vwxyz"))
  return directory


def convert(*arguments, capsys) -> tuple[int, str, str]:
  with pytest.raises(SystemExit) as left:
    main(["convert", *map(str, arguments)])
  captured = capsys.readouterr()
  return left.value.code, captured.out, " ".join(captured.err.split())


@pytest.mark.parametrize(
    "to, architecture",
    [("huggingface", "ViTForImageClassification"), ("timm", "vit_"), ("google-npz", "Vision"),
     ("big-vision-npz", "vit"), ("orbax", "ViT")],
)
def test_every_format_comes_back_as_it_was(source, to, architecture, tmp_path, capsys):
  output = tmp_path / "out"
  code, out, err = convert(f"--model={source}", f"--output={output}", f"--to={to}", capsys=capsys)
  assert code == 0, err
  assert architecture in out and "read back bit-equal" in out
  proof = json.loads((output / "conversion.json").read_text())["verification"]
  assert proof["bit_equal"]
  before, after = load(source), load(output)
  assert after.labels == before.labels and after.preprocessing == before.preprocessing
  pixels = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
  logits = [c.model.apply({"params": c.params}, pixels) for c in (before, after)]
  np.testing.assert_allclose(*logits, atol=2e-5)


def test_another_size_and_fewer_classes(source, tmp_path, capsys):
  (tmp_path / "classes.txt").write_text("4\n0  # first\n")
  code, out, err = convert(
      f"--model={source}", f"--output={tmp_path / 'out'}", "--image-size=48",
      f"--classes={tmp_path / 'classes.txt'}", "--dtype=bfloat16", "--max-shard-size=20KB",
      capsys=capsys,
  )
  assert code == 0, err
  assert "kept 2 of 5 classes" in out and "rounding the weights changes" in out
  assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
  checkpoint = load(tmp_path / "out")
  assert checkpoint.labels == ("z", "v") and checkpoint.model_config["image_size"] == 48


@pytest.mark.slow
def test_several_steps_of_a_run(tmp_path, capsys):
  tiny = {
      "total": "2 steps", "input.batch_size": "16", "model.width": "32", "model.depth": "1",
      "model.num_heads": "4", "model.mlp_dim": "32", "checkpoint.every": "1 steps",
      "checkpoint.keep_latest": "9", "mesh.replica": "1", "mesh.fsdp": "8",
      "evaluate.batch_size": "512",
  }
  train(config_lib.load("quickstart", tiny), workdir=tmp_path / "run")
  code, _, err = convert(
      f"--model={tmp_path / 'run'}@1,latest", f"--output={tmp_path / 'out'}", "--to=orbax",
      capsys=capsys,
  )
  assert code == 0, err
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1", "latest"]
  code, _, err = convert(
      f"--model={tmp_path / 'run'}@1,99", f"--output={tmp_path / 'none'}", capsys=capsys
  )
  assert code == 5 and "@99: no such checkpoint" in err and not (tmp_path / "none").exists()
  step, run = load(tmp_path / "out" / "1"), load(f"{tmp_path / 'run'}@1")
  np.testing.assert_array_equal(
      step.params["patch_embedding"]["kernel"], run.params["patch_embedding"]["kernel"]
  )


@pytest.mark.parametrize(
    "option, said",
    [
        ("--architecture=ViTForImageClasification", "ViTForImageClassification"),
        ("--image-size=33", "33 is not a multiple of the patch size 8"),
        ("--image-size=big", "HEIGHTxWIDTH"),
        ("--max-shard-size=5 apples", "such as 5GB"),
        ("--classes=nowhere.txt", "nowhere.txt cannot be read"),
        ("--classes=imagenet-1k", "ImageNet"),
    ],
)
def test_wrong_options_write_nothing(source, option, said, tmp_path, capsys):
  code, _, err = convert(f"--model={source}", f"--output={tmp_path / 'out'}", option, capsys=capsys)
  assert code in (2, 5) and said in err and not (tmp_path / "out").exists()


def test_sizes_are_read():
  assert [parse_bytes(t) for t in ("5GB", "1.5mb", "20 KB", "7")] == [5e9, 1.5e6, 20_000, 7]
  assert [parse_image_size(t) for t in ("384", "224x320", "64x64")] == [384, (224, 320), 64]
  for text in ("0", "-3", "GB", "5TB"):
    with pytest.raises(ConfigError, match="write a size"):
      parse_bytes(text)
  for text in ("0", "12x", "1x2x3", "-8"):
    with pytest.raises(ConfigError, match="write a side"):
      parse_image_size(text)

"""Publishing steps of a run: directories, cards whose snippets work, branches of a Hub."""

import json
import os
import pathlib
import re
import subprocess
import sys

from PIL import Image
import pytest

import vit_jax
from vit_jax import cli, config, provenance
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.evaluate import evaluate
from vit_jax.loading import load
from vit_jax.provenance import data_name, hub_origin, measurements, public_config
from vit_jax.publish import publish
from vit_jax.train import train

sys.path.insert(0, str(pathlib.Path(__file__).parent / "interop"))
from hub_server import Hub, point_client  # noqa: E402

TINY = {
    "model.width": "32", "model.depth": "2", "model.mlp_dim": "64", "model.num_heads": "2",
    "input.batch_size": "16", "total": "6 steps", "evaluate.every": "2 steps",
    "log_every": "2 steps", "checkpoint.keep_latest": "9", "checkpoint.best_metric": "accuracy",
}
TIMM = pathlib.Path(sys.prefix) / "timm"  # put there by launch/environment.sh
OPERATORS = """
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
  library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
FILES = {
    "README.md", "config.json", "conversion.json", "model.safetensors", "preprocessor_config.json"
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run on the digits with steps 2, 4 and 6."""
  path = tmp_path_factory.mktemp("runs") / "digits_run"
  train(config.load("quickstart", TINY), workdir=path)
  return path


@pytest.fixture
def hub(monkeypatch, tmp_path):
  pytest.importorskip("huggingface_hub")
  with Hub() as server:
    point_client(monkeypatch, server, tmp_path / "home")
    yield server


@pytest.fixture
def out(tmp_path, monkeypatch):
  """Where to publish, relative to where the user is; there is a photo.  Commits of this repository
  meanwhile do not change the cards."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(provenance, "commit", lambda: "abc")
  Image.new("RGB", (20, 30), (90, 90, 90)).save("photo.jpg")
  return "digits"


def metrics_at(run, step):
  lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  return next(line for line in lines if line["step"] == step and "eval/validation/accuracy" in line)


def contents(directory) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in pathlib.Path(directory).iterdir()}


def execute_snippets(card: str, *, timm: bool = False) -> list[str]:
  """Runs every command and every Python snippet of a card, in order, and returns them; those about
  timm only on request, in a process of its own (see interop/timm_worker.py)."""
  blocks = re.findall(r"```(python|bash)\n(.*?)```", card, re.DOTALL)
  done = []
  for language, code in blocks:
    if "timm" in code and not (timm and TIMM.is_dir()):
      continue
    if "import timm" in code:
      environment = os.environ | {"PYTHONPATH": str(TIMM)}
      subprocess.run([sys.executable, "-c", OPERATORS + code], env=environment, check=True)
    elif language == "python":
      exec(compile(code, "README.md", "exec"), {})
    else:
      with pytest.raises(SystemExit) as left:
        cli.main(code.split()[1:])
      assert left.value.code == 0
    done.append(code)
  return done


@pytest.mark.torch
def test_directories_and_one_card_for_all(run, out, capsys):
  transformers = pytest.importorskip("transformers")
  publish(f"{run}@best,6", output=out, license="MIT")
  directories = sorted(pathlib.Path(out).iterdir())
  assert "step6" in {d.name for d in directories}
  cards = set()
  for directory in directories:
    assert set(contents(directory)) == FILES
    cards.add((directory / "README.md").read_text())
  (card,) = cards
  for directory in directories:
    step = int(directory.name.removeprefix("step"))
    assert f"{metrics_at(run, step)['eval/validation/accuracy']:.2%}" in card
    files = json.loads((directory / "conversion.json").read_text())["files"]
    assert files["model.safetensors"] in card
  assert "because it was the best on validation" in card and 'license: "mit"' in card
  assert "commit abc" in card
  assert str(run.parent) not in card and "fingerprint `" in card and "images seen" in card
  # Through the card's own words, and offline through transformers' pipeline.
  assert "local-dir:" in card
  assert len(execute_snippets(card, timm=True)) >= 2
  classify = transformers.pipeline("image-classification", model=f"{out}/step6")
  assert {answer["label"] for answer in classify("photo.jpg", top_k=10)} == set("0123456789")
  # Again: the same bits; a card that somebody edited stays; other people's files are refused.
  before = contents(f"{out}/step6")
  publish(f"{run}@best,6", output=out, license="mit")
  assert contents(f"{out}/step6") == before
  (pathlib.Path(out) / "step6" / "README.md").write_text(card + "My words.\n")
  publish(f"{run}@6", output=out, license="mit")
  assert contents(f"{out}/step6")["README.md"].endswith(b"My words.\n")
  assert "was edited and stays" in capsys.readouterr().out
  publish(f"{run}@6", output=out, license="mit", overwrite=True)
  assert b"My words" not in contents(f"{out}/step6")["README.md"]
  (pathlib.Path(out) / "step6" / "mine.txt").write_text("")
  with pytest.raises(CheckpointError, match="mine.txt"):
    publish(f"{run}@6", output=out, license="mit")


@pytest.mark.torch
def test_features_alone(run, out):
  pytest.importorskip("transformers")
  publish(f"{run}@6", output=out, license="mit", architecture="ViTModel", dtype="bfloat16")
  card = pathlib.Path(f"{out}/step6/README.md").read_text()
  assert 'pipeline_tag: "image-feature-extraction"' in card and "changed outputs by" in card
  assert "predict" not in card and "classes:" not in card and "left out" in card
  assert len(execute_snippets(card)) >= 2


@pytest.mark.torch
def test_as_timm_reads_it(run, out):
  publish(f"{run}@6", output=out, license="mit", to="timm")
  card = pathlib.Path(f"{out}/step6/README.md").read_text()
  assert 'library_name: "timm"' in card and 'pipeline_tag: "image-classification"' in card
  assert f'"local-dir:{out}/step6"' in card and "vit-jax convert" not in card
  assert len(execute_snippets(card, timm=True)) >= 1


@pytest.mark.torch
@pytest.mark.slow
def test_a_repository_with_a_branch_a_step(run, out, hub, capsys):
  pytest.importorskip("transformers")
  options = dict(output=out, license="mit", repo="alice/vit")
  publish(f"{run}@2,6", **options)
  repo = hub.repos["alice/vit"]
  for branch, step in (("step2", 2), ("step6", 6), ("main", 6)):
    sent = repo.files(branch)
    sent = {name: content for name, content in sent.items() if name != ".gitattributes"}
    assert sent == contents(f"{out}/step{step}")
  assert f"{hub.url}/alice/vit/tree/main" in capsys.readouterr().out
  card = contents(f"{out}/step6")["README.md"].decode()
  assert "`step2`" in card and "hf:alice/vit" in card and "`main` holds step 6" in card
  execute_snippets(card)
  # Again: nothing; with another step last: that one, the cards, and main is asked about.
  commits = len(repo.commits)
  publish(f"{run}@2,6", **options)
  assert len(repo.commits) == commits
  with pytest.raises(CheckpointError, match="--overwrite"):
    publish(f"{run}@6,4", **options)
  assert "step4" in repo.refs and b"step4" in repo.files("step6")["README.md"]
  publish(f"{run}@4", overwrite=True, **options)
  assert repo.files()["model.safetensors"] == repo.files("step4")["model.safetensors"]


@pytest.mark.slow
def test_an_interrupted_publication_is_finished_by_the_same_command(run, out, hub):
  options = dict(output=out, license="mit", repo="alice/vit", revision="at-{step}", private=True)
  hub.drop_puts = 10**6
  with pytest.raises(CheckpointError, match="Repeat the command"):
    publish(f"{run}@6", **options)
  hub.drop_puts = 0
  publish(f"{run}@6", **options)
  repo = hub.repos["alice/vit"]
  assert set(repo.refs) == {"main", "at-6"} and repo.private and len(hub.put) == 1
  assert repo.files() == repo.files("at-6")


def test_a_dry_run_writes_and_asks_nothing(run, out, hub, capsys):
  publish(f"{run}@2,latest", output=out, license="mit", repo="alice/vit", dry_run=True)
  said = capsys.readouterr().out
  assert not pathlib.Path(out).exists() and not hub.log
  for words in ("digits/step2 (new)", "digits/step6", "branch step2", "branch main", "kB",
                "README.md", "nothing was written"):
    assert words in said


def test_what_is_refused_before_anything_is_written(run, out, hub, monkeypatch, tmp_path):
  def refused(kind, words, model=f"{run}@6", **options):
    with pytest.raises(kind, match=words):
      publish(model, **{"output": out, "license": "mit"} | options)
    assert not pathlib.Path(out).exists()

  refused(ConfigError, "did you mean mit", license="mitt")
  refused(CheckpointError, "no run of vit_jax", model=str(tmp_path))
  refused(ConfigError, "2, 4, 6, latest or best", model=f"{run}@3")
  refused(ConfigError, r"'6\+ma'", model=f"{run}@2,6+ma")
  refused(ConfigError, "write it with", model=f"{run}@2,6", revision="v1")
  refused(ConfigError, "names no branch", revision="refs/pr/1")
  refused(ConfigError, "add --repo", private=True)
  monkeypatch.delenv("HF_TOKEN")
  refused(CheckpointError, "hf auth login", repo="alice/vit")
  assert not hub.log


def test_measured_is_what_was_measured_at_that_step(run):
  directory = RunDirectory(run)
  (during,) = measurements(directory, 4)
  line = metrics_at(run, 4)
  assert during.split == "validation" and during.images == line["eval/validation/examples"]
  assert during.metrics == {
      name: line[f"eval/validation/{name}"] for name in ("accuracy", "accuracy_top5", "loss")
  }
  assert measurements(directory, 3) == ()
  result = evaluate(f"{run}@4", config_spec=None, overrides={"evaluate.split": "train"})
  file = run / "evaluations" / "4_train" / "evaluation.json"
  other = run / "evaluations" / "4_test" / "evaluation.json"
  for place, split in ((file, "train"), (other, "test")):
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(result | {"split": split}))
  assert [m.split for m in measurements(directory, 4)] == ["test", "train", "validation"]
  other.unlink()
  assert [m.split for m in measurements(directory, 4)] == ["train", "validation"]
  assert len(measurements(directory, 2)) == 1
  for elsewhere in (
      {"data": "/other/photos"}, {"model": "x@2"}, {"metrics": {}}, {"classes": "map.txt"},
      {"image_size": 32}, {"position_image_size": 32},
  ):
    file.write_text(json.dumps(result | elsewhere))
    assert len(measurements(directory, 4)) == 1
  file.unlink()


def test_nobodys_directories_are_published(run):
  tree = {
      "input": {"path": "/home/me/flowers/", "mean": None, "dataset": "folder"},
      "init": {"checkpoint": "/home/me/runs/pre@10"}, "evaluate": {"split": None}, "seed": 0,
  }
  assert public_config(tree) == {
      "input": {"path": "flowers", "dataset": "folder"}, "init": {"checkpoint": "pre@10"},
      "seed": 0,
  }
  assert data_name(tree) == "flowers"
  info = json.loads((run / "run.json").read_text())
  for origin, known in (("hf:google/vit@main", "google/vit"), ("timm:vit.in1k", "timm/vit.in1k"),
                        ("/home/me/x", None), (None, None)):
    (run / "run.json").write_text(json.dumps(info | {"init": origin}))
    assert hub_origin(RunDirectory(run)) == known
  (run / "run.json").write_text(json.dumps(info))


def test_the_weights_are_those_of_the_run(run, out):
  import numpy as np
  publish(f"{run}@4", output=out, license="mit")
  ours, published = load(f"{run}@4"), load(f"{out}/step4")
  assert published.labels == ours.labels and published.preprocessing == {
      **ours.preprocessing, "mean": published.preprocessing["mean"],
      "std": published.preprocessing["std"],
  }
  np.testing.assert_array_equal(published.params["head"]["kernel"], ours.params["head"]["kernel"])

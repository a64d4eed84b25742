"""One's own folder of images: train, evaluate, predict; and the dirt that folders contain."""

import json
import pathlib

import jax
import numpy as np
from PIL import Image
import pytest

from vit_jax.checkpoint import manifest
from vit_jax.cli import main
from vit_jax.loading import load

TINY = (
    "--config.model.variant=Ti/8", "--config.model.width=32", "--config.model.depth=2",
    "--config.model.mlp_dim=64", "--config.model.num_heads=2", "--config.model.image_size=16",
    "--config.model.dtype=float32", "--config.input.batch_size=16",
)
COLORS = {"blue": (30, 40, 200), "green": (20, 190, 40), "red": (210, 30, 30)}


def write_folder(directory: pathlib.Path, *, images: int = 20) -> pathlib.Path:
  """CLASS/*.png of a noisy colour each: a set that a tiny ViT learns in a few steps."""
  noise = np.random.default_rng(0)
  for name, color in COLORS.items():
    (directory / name).mkdir(parents=True)
    for i in range(images):
      pixels = np.clip(np.array(color) + noise.normal(0, 25, (24, 20, 3)), 0, 255)
      Image.fromarray(pixels.astype(np.uint8)).save(directory / name / f"{i:02d}.png")
  return directory


def run(*arguments, capsys) -> tuple[int, str, str]:
  """Runs a verb in this process: exit code, stdout and stderr, line breaks removed from the
  latter."""
  with pytest.raises(SystemExit) as left:
    main([str(a) for a in arguments])
  captured = capsys.readouterr()
  return left.value.code, captured.out, " ".join(captured.err.split())


def train(folder, workdir, *more, capsys):
  return run(
      "train", "--config=folder:scratch", f"--config.input.path={folder}", f"--workdir={workdir}",
      *TINY, *more, capsys=capsys,
  )


def test_train_evaluate_predict(tmp_path, capsys):
  folder = write_folder(tmp_path / "photos")
  workdir = tmp_path / "run"
  code, out, err = train(
      folder, workdir, "--config.total=40 steps", "--config.optimizer.learning_rate=3e-3",
      "--config.evaluate.every=20 steps", "--config.log_every=5 steps", capsys=capsys,
  )
  assert code == 0, err
  assert "held out" in out and "content hash" in out
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert rows[-1]["eval/validation/accuracy"] >= 0.9
  assert rows[-1]["eval/validation/examples"] == 6
  vouched = manifest.read(workdir / "checkpoints" / "40")
  assert vouched["fingerprint"] == json.loads((workdir / "run.json").read_text())["fingerprint"]
  assert vouched["examples_seen"] == 40 * vouched["config"]["input"]["batch_size"]
  assert vouched["versions"]["jax"] == jax.__version__ and "commit" in vouched

  code, out, err = run("evaluate", f"--model={workdir}@best", capsys=capsys)
  assert code == 0
  measured = json.loads(out)["metrics"]
  assert measured["accuracy"] == max(r.get("eval/validation/accuracy", 0) for r in rows)
  (file,) = workdir.glob("evaluations/*/evaluation.json")
  assert json.loads(file.read_text())["metrics"] == measured and f"written to {file}" in err

  Image.new("RGB", (50, 30), COLORS["green"]).save(tmp_path / "photo.jpg")
  (tmp_path / "broken.jpg").write_bytes(b"not an image")
  code, out, err = run(
      "predict", f"--model={workdir}", "--top=2", tmp_path / "photo.jpg", tmp_path / "broken.jpg",
      capsys=capsys,
  )
  lines = out.splitlines()
  assert lines[0].endswith("photo.jpg") and lines[1].endswith("green") and len(lines) == 3
  assert code == 3 and "broken.jpg" in err


@pytest.mark.slow
def test_dirt_is_counted_named_once_and_survived(tmp_path, capsys):
  folder = write_folder(tmp_path / "photos", images=8)
  (folder / "red" / "corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no JPEG")
  (folder / "red" / "empty.png").write_bytes(b"")
  (folder / "empty_class").mkdir()
  Image.new("L", (20, 20), 90).save(folder / "blue" / "gray.png")
  Image.new("RGBA", (20, 20), (9, 9, 200, 128)).save(folder / "blue" / "alpha.png")
  Image.new("CMYK", (20, 20), (200, 200, 0, 20)).save(folder / "blue" / "cmyk.jpg")
  Image.new("RGB", (3, 2), COLORS["green"]).save(folder / "green" / "small.png")
  turned = Image.Exif()
  turned[0x0112] = 6
  Image.new("RGB", (30, 20), COLORS["green"]).save(folder / "green" / "turned.jpg", exif=turned)
  workdir = tmp_path / "run"
  code, out, err = train(
      folder, workdir, "--config.total=9 epochs", "--config.input.max_bad_fraction=0.6",
      capsys=capsys,
  )
  assert code == 0, err
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  listed = (workdir / "bad_records.jsonl").read_text().splitlines()
  assert sorted(json.loads(line)["name"] for line in listed) == ["red/corrupt.jpg", "red/empty.png"]
  seen = rows[-1]["train/unreadable_images"]
  assert seen == 2
  everything = out + err
  assert everything.count("corrupt.jpg") == 1 and everything.count("empty.png") == 1
  assert "empty_class" in everything
  assert all(np.isfinite(r["train/loss"]) for r in rows if "train/loss" in r)
  code, _, err = train(folder, tmp_path / "strict", "--config.total=9 epochs", capsys=capsys)
  assert code == 3 and "images were unreadable" in err and "config.input.max_bad_fraction" in err


@pytest.mark.parametrize("classes", [0, 1])
def test_too_few_classes(tmp_path, capsys, classes):
  folder = tmp_path / "photos"
  folder.mkdir()
  for i in range(classes):
    (folder / f"class{i}").mkdir()
    Image.new("RGB", (9, 9)).save(folder / f"class{i}" / "a.png")
  code, _, err = train(folder, tmp_path / "run", capsys=capsys)
  assert code == 3 and str(folder) in err
  assert not (tmp_path / "run" / "config.json").exists()


def test_missing_folder_and_unknown_key(tmp_path, capsys):
  code, _, err = train(tmp_path / "nowhere", tmp_path / "run", capsys=capsys)
  assert code == 3 and "nowhere" in err
  code, _, err = train(tmp_path, tmp_path / "run", "--config.optimiser.name=sgd", capsys=capsys)
  assert code == 2 and "config.optimizer.name" in err
  code, _, err = run(
      "train", "--config=folder", f"--work-dir={tmp_path}", capsys=capsys
  )
  assert code == 2


@pytest.mark.slow
def test_a_workdir_of_another_config_and_amend(tmp_path, capsys):
  folder, workdir = write_folder(tmp_path / "photos", images=8), tmp_path / "run"
  begin = ("--config.total=4 steps",)
  assert train(folder, workdir, *begin, capsys=capsys)[0] == 0
  code, _, err = train(folder, workdir, *begin, "--config.seed=1", capsys=capsys)
  assert code == 2 and "config.seed is 0, asked for 1" in err
  longer = ("--config.total=6 steps", "--config.log_every=1 steps")
  code, _, err = train(folder, workdir, *longer, capsys=capsys)
  assert code == 2 and "--amend" in err and "config.total" in err
  assert train(folder, workdir, *longer, "--amend", capsys=capsys)[0] == 0
  changes = [
      json.loads(line) for line in (workdir / "config_history.jsonl").read_text().splitlines()
  ]
  assert changes[-1]["step"] == 4
  assert changes[-1]["changed"]["total"] == {"from": "4 steps", "to": "6 steps"}
  assert (workdir / "checkpoints" / "6" / "manifest.json").exists()
  # Parts of the optimizer may begin and end; what is refused leaves the run as it was.
  parts = ("--config.total=8 steps", "--config.optimizer.clip_global_norm=None",
           "--config.optimizer.layer_decay=0.9")
  history = (workdir / "config_history.jsonl").read_text()
  code, _, err = train(
      folder, workdir, *parts, "--config.optimizer.name=sgd", "--amend", capsys=capsys
  )
  assert code == 5 and "holds another model or optimizer" in err
  assert (workdir / "config_history.jsonl").read_text() == history
  assert train(folder, workdir, *longer, capsys=capsys)[0] == 0
  code, _, err = train(folder, workdir, *parts, "--amend", capsys=capsys)
  assert code == 0, err


@pytest.mark.slow
def test_other_data_is_refused(tmp_path, capsys):
  folder, workdir = write_folder(tmp_path / "photos", images=8), tmp_path / "run"
  assert train(folder, workdir, "--config.total=2 steps", capsys=capsys)[0] == 0
  (folder / "red" / "00.png").unlink()
  code, _, err = train(
      folder, workdir, "--config.total=4 steps", "--amend", capsys=capsys
  )
  assert code == 2 and "other data" in err


def test_batch_that_the_mesh_cannot_divide(tmp_path, capsys):
  folder = write_folder(tmp_path / "photos", images=8)
  code, _, err = train(
      folder, tmp_path / "run", "--config.input.batch_size=24", capsys=capsys
  )
  assert code == 2 and "multiple of 16" in err and "nearest is 32" in err
  assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_run_cannot_be_amended_to_end_before_where_it_stands(tmp_path, capsys):
  folder, workdir = write_folder(tmp_path / "photos", images=8), tmp_path / "run"
  assert train(folder, workdir, "--config.total=3 steps", capsys=capsys)[0] == 0
  code, _, err = train(folder, workdir, "--config.total=2 steps", "--amend", capsys=capsys)
  assert code == 2 and "has done 3" in err
  code, _, err = train(
      folder, workdir, "--config.total=3 steps", "--config.input.batch_size=32", "--amend",
      capsys=capsys,
  )
  assert code == 2 and "batch" in err

  # Evaluation: at another size, on other classes, on data that changed since.
  code, out, err = run("evaluate", f"--model={workdir}", "--config=folder",
                       f"--config.input.path={folder}", "--config.model.image_size=24",
                       capsys=capsys)
  assert code == 0 and 0 <= json.loads(out)["metrics"]["accuracy"] <= 1, err
  code, _, err = run("evaluate", f"--model={workdir}", "--output=/nowhere/at/all.json",
                     capsys=capsys)
  assert code == 2 and "/nowhere/at/all.json" in err
  other = write_folder(tmp_path / "other", images=8)
  (other / "red").rename(other / "pink")
  code, _, err = run("evaluate", f"--model={workdir}", "--config=folder",
                     f"--config.input.path={other}", capsys=capsys)
  assert code == 2 and "'pink'" in err
  (folder / "red" / "00.png").unlink()
  code, _, err = run("evaluate", f"--model={workdir}", capsys=capsys)
  assert code == 2 and "other data" in err


def test_nothing_is_written_when_a_value_cannot_work(tmp_path, capsys):
  folder, workdir = write_folder(tmp_path / "photos", images=8), tmp_path / "run"
  for wrong in ("--config.total=0 steps", "--config.schedule.warmup=200 percent",
                "--config.model.attention=cudnn", "--config.input.short_side=99",
                "--config.model.image_size=17", "--config.evaluate.split=dev",
                "--config.checkpoint.best_metric=accuracy_top5"):
    code, _, err = train(folder, workdir, wrong, capsys=capsys)
    assert code == 2, (wrong, err)
    assert not (workdir / "run.json").exists() and not (workdir / "config.json").exists()


def test_a_directory_of_somebody_else_is_no_workdir(tmp_path, capsys):
  folder = write_folder(tmp_path / "photos", images=8)
  theirs = tmp_path / "published"
  theirs.mkdir()
  (theirs / "config.json").write_text("{}")
  code, _, err = train(folder, theirs, capsys=capsys)
  assert code == 2 and str(theirs) in err
  assert (theirs / "config.json").read_text() == "{}"


@pytest.mark.slow
def test_a_loss_that_explodes_ends_the_run(tmp_path, capsys):
  folder, workdir = write_folder(tmp_path / "photos", images=8), tmp_path / "run"
  code, _, err = train(
      folder, workdir, "--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e30",
      "--config.optimizer.clip_global_norm=None", "--config.total=20 steps", capsys=capsys,
  )
  assert code == 4 and "not finite" in err
  # The first update has a rate of 0 (warm-up); whatever was committed is sane.
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load(workdir).params))


def test_workdir_that_may_not_be_written(tmp_path, capsys):
  folder = write_folder(tmp_path / "photos", images=8)
  # Not even root makes a directory there.
  code, _, err = train(folder, "/proc/run", capsys=capsys)
  assert code == 2 and "/proc/run" in err


def test_workdir_that_is_a_file(tmp_path, capsys):
  folder = write_folder(tmp_path / "photos", images=8)
  (tmp_path / "run").write_text("not a directory")
  code, _, err = train(folder, tmp_path / "run", capsys=capsys)
  assert code == 2 and str(tmp_path / "run") in err

"""`vit-jax evaluate --measures`: every measure of a real run, and of somebody else's checkpoint."""

import csv
import json

import numpy as np
from PIL import Image
import pytest
from sklearn.metrics import f1_score

from test_folder_run import TINY, run, write_folder
from vit_jax import measures
from vit_jax.cli import main
from vit_jax.data.digits import open_digits
from vit_jax.loading import load


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  """A run of 90 steps on the digits."""
  workdir = tmp_path_factory.mktemp("digits") / "run"
  with pytest.raises(SystemExit) as left:
    main([
        "train", "--config=quickstart", f"--workdir={workdir}", "--config.total=90 steps",
        "--config.evaluate.every=90 steps",
    ])
  assert left.value.code == 0
  return workdir


def evaluate(*arguments, capsys):
  code, out, err = run("evaluate", *arguments, capsys=capsys)
  return code, json.loads(out) if code == 0 else None, err


def written(run, split):
  """The directory of what was measured of a run on a split of the digits."""
  (file,) = (
      file for file in run.glob("evaluations/*/evaluation.json")
      if json.loads(file.read_text()).items() >= {"split": split, "data": "digits"}.items()
  )
  return file.parent


def confusion_in(directory):
  """The table of an evaluation on the digits, true by predicted."""
  with open(directory / "confusion.csv", newline="") as file:
    rows = list(csv.reader(file))
  assert rows[0][1:] == [str(i) for i in range(10)]
  return np.array([row[1:] for row in rows[1:]], int)


def logits_of(workdir, images):
  """Float32 `[N, C]` of images, without any of the evaluation's code."""
  checkpoint = load(str(workdir))
  pixels = checkpoint.preprocess(list(images))
  return np.asarray(checkpoint.model.apply({"params": checkpoint.params}, pixels))


def test_every_measure_of_a_run(digits, capsys):
  code, result, err = evaluate(
      f"--model={digits}",
      "--measures=classification,macro_f1,calibration,confusion,knn,few_shot,linear_probe",
      capsys=capsys,
  )
  assert code == 0, err
  found = result["metrics"]
  directory = written(digits, "validation")
  assert json.loads((directory / "evaluation.json").read_text())["metrics"] == found
  matrix = confusion_in(directory)
  assert matrix.sum() == found["examples"] == 359
  assert found["accuracy"] == np.trace(matrix) / 359 and found["accuracy_top5"] > found["accuracy"]
  validation = open_digits().splits["validation"]
  logits, labels = logits_of(digits, validation.images), validation.labels
  five = np.argsort(-logits, axis=1)[:, :5]
  assert found["accuracy_top5"] == np.mean(np.any(five == labels[:, None], axis=1))
  np.testing.assert_array_equal(
      matrix, np.bincount(10 * labels + logits.argmax(1), minlength=100).reshape(10, 10)
  )
  truth = np.repeat(np.arange(10), matrix.sum(axis=1))
  predicted = np.concatenate([np.repeat(np.arange(10), row) for row in matrix])
  assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-9)
  with open(directory / "per_class.csv", newline="") as file:
    counts = [(int(row["images"]), int(row["correct"])) for row in csv.DictReader(file)]
  assert counts == list(zip(matrix.sum(axis=1).tolist(), np.diag(matrix).tolist()))
  assert 0 <= found["calibration_error"] < 0.5
  assert len(json.loads((directory / "reliability.json").read_text())) == 15
  # Features of 90 steps tell digits apart well, the fewer shots the worse.
  assert found["knn_10"] > 0.5 and found["linear_probe"] > 0.7
  assert 0.2 < found["few_shot_1"] < found["few_shot_25"]


def test_no_evaluation_replaces_that_of_another_split(digits, tmp_path, capsys):
  """Nor that of other data with a split of the same name; the same again does."""
  parts = {"validation": 359, "train[:2%]": 29, "train[-2:]": 2}
  for split, images in parts.items():
    code, result, err = evaluate(
        f"--model={digits}", f"--config.evaluate.split={split}",
        "--measures=classification,confusion", capsys=capsys,
    )
    assert code == 0 and result["metrics"]["examples"] == images, err
  directories = {split: written(digits, split) for split in parts}
  for split, images in parts.items():
    with open(directories[split] / "confusion.csv", newline="") as file:
      assert sum(int(cell) for row in list(csv.reader(file))[1:] for cell in row[1:]) == images
  before = sorted(digits.glob("evaluations/*"))
  for i in range(10):
    (tmp_path / "validation" / str(i)).mkdir(parents=True)
    Image.new("L", (8, 8), 25 * i).save(tmp_path / "validation" / str(i) / "0.png")
  code, result, err = evaluate(
      f"--model={digits}", "--config.input.dataset=folder", f"--config.input.path={tmp_path}",
      capsys=capsys,
  )
  assert code == 0 and result["split"] == "validation" and result["metrics"]["examples"] == 10, err
  (other,) = set(digits.glob("evaluations/*")) - set(before)
  assert other.name.startswith("90_validation_")
  assert evaluate(f"--model={digits}", capsys=capsys)[0] == 0
  assert set(digits.glob("evaluations/*")) == {*before, other}


def test_what_training_draws_more_often_is_measured_once(digits, monkeypatch, capsys):
  given = []

  def of_features(*_, train, test, **__):
    given.extend((train, test))
    return {}

  monkeypatch.setattr(measures, "of_features", of_features)
  code, _, err = evaluate(
      f"--model={digits}", "--measures=knn", "--config.input.sampling=class_balanced",
      "--config.evaluate.split=train", capsys=capsys,
  )
  assert code == 0, err
  whole = open_digits().splits["train"]
  for source in given:
    np.testing.assert_array_equal([r["label"] for r in map(source.record, range(len(source)))],
                                  whole.labels)


@pytest.mark.slow
def test_a_mixture_is_judged_by_all_of_its_classes(tmp_path, capsys):
  """Its validation split is that of the first part, which lacks a class that the second has."""
  write_folder(tmp_path / "one")
  write_folder(tmp_path / "two")
  for i in range(20):
    Image.new("RGB", (9, 9), (250 - i, 250, 250)).save(tmp_path / "two" / "red" / f"{i:02d}.png")
  (tmp_path / "two" / "red").rename(tmp_path / "two" / "white")
  (tmp_path / "both.json").write_text(json.dumps([
      {"dataset": "folder", "path": name} for name in ("one", "two")
  ]))
  code, _, err = run(
      "train", "--config=folder:scratch", "--config.input.dataset=mixture", *TINY,
      f"--config.input.path={tmp_path / 'both.json'}", f"--workdir={tmp_path / 'run'}",
      "--config.total=3 steps", capsys=capsys,
  )
  assert code == 0, err
  code, result, err = evaluate(
      f"--model={tmp_path / 'run'}",
      "--measures=macro_f1,confusion,knn,few_shot,linear_probe", capsys=capsys,
  )
  assert code == 0, err
  found = result["metrics"]
  assert all(map(np.isfinite, found.values())) and found["linear_probe"] > 0.9
  (file,) = (tmp_path / "run").glob("evaluations/*/confusion.csv")
  with file.open(newline="") as table:
    names, *rows = csv.reader(table)
  assert names[1:] == ["blue", "green", "red", "white"]
  assert [sum(map(int, row[1:])) for row in rows] == [2, 2, 2, 0]


def test_features_of_a_checkpoint_without_a_head(digits, tmp_path, capsys):
  code, _, err = run(
      "convert", f"--model={digits}", f"--output={tmp_path / 'out'}", "--architecture=ViTModel",
      capsys=capsys,
  )
  assert code == 0, err
  data = ("--config=quickstart",)
  code, _, err = evaluate(f"--model={tmp_path / 'out'}", *data, capsys=capsys)
  assert code == 2 and "has no classifier: fine-tune it first" in err
  code, theirs, err = evaluate(
      f"--model={tmp_path / 'out'}", *data, "--measures=knn", capsys=capsys
  )
  assert code == 0, err
  _, ours, _ = evaluate(f"--model={digits}", "--measures=knn", capsys=capsys)
  assert theirs["metrics"] == pytest.approx(ours["metrics"], abs=0.01)


def test_some_classes_of_the_head(digits, tmp_path, capsys):
  """Judged by ten classes in reverse order, under the names of the data: right is what its own
  order takes for nine minus the digit."""
  (tmp_path / "map.txt").write_text("\n".join(str(9 - i) for i in range(10)))
  arguments = (f"--model={digits}", "--config=quickstart", f"--classes={tmp_path / 'map.txt'}")
  code, _, err = evaluate(*arguments, capsys=capsys)
  assert code == 2 and "not the same" in err
  code, result, err = evaluate(*arguments, "--config.evaluate.classes=by_order", capsys=capsys)
  assert code == 0, err
  checkpoint = load(str(digits))
  assert checkpoint.labels == tuple(map(str, range(10)))
  _, plain, _ = evaluate(
      f"--model={digits}", "--measures=classification,confusion",
      f"--output={tmp_path / 'plain.json'}", capsys=capsys,
  )
  matrix = confusion_in(tmp_path)
  assert plain["metrics"]["accuracy"] == np.trace(matrix) / 359
  assert result["metrics"]["accuracy"] == np.trace(matrix[:, ::-1]) / 359
  assert result["metrics"]["accuracy"] < 0.3 < plain["metrics"]["accuracy"]


@pytest.mark.parametrize("arguments, message", [
    (["--measures=knn,speed"], "there is no measure 'speed'"),
    (["--measures=confusion", "--output=nowhere/x.json"], "there is no such directory"),
])
def test_what_is_refused(digits, capsys, arguments, message):
  code, _, err = evaluate(f"--model={digits}", *arguments, capsys=capsys)
  assert code == 2 and message in err


def test_tables_need_a_place(digits, tmp_path, capsys):
  code, _, err = run(
      "convert", f"--model={digits}", f"--output={tmp_path / 'out'}", capsys=capsys
  )
  assert code == 0, err
  code, _, err = evaluate(
      f"--model={tmp_path / 'out'}", "--config=quickstart", "--measures=confusion", capsys=capsys
  )
  assert code == 2 and "--output=FILE" in err

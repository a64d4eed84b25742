"""`vit-jax evaluate --measures`: every measure of a real run, and of somebody else's checkpoint."""

import csv
import dataclasses
import json
import shutil

import numpy as np
from PIL import Image
import pytest
from sklearn.metrics import f1_score

from test_folder_run import TINY, run, write_folder
from vit_jax import config as config_lib
from vit_jax import evaluate as evaluate_lib
from vit_jax import measures
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.cli import main
from vit_jax.data.digits import open_digits
from vit_jax.errors import ConfigError, DataError
from vit_jax.evaluated_config import evaluated_config, otherwise, pooled
from vit_jax.evaluators.features import Features
from vit_jax.evaluators.knn import knn
from vit_jax.interop import huggingface
from vit_jax.loading import at_image_size, load
from vit_jax.models.vit import DEFAULTS, DESCRIPTION
from vit_jax.provenance import measurements
from vit_jax.resolve import preprocessing


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


def test_a_recipe_of_the_data_says_nothing_of_the_images(digits, tmp_path, capsys):
  """Nor of the model, unless the command line does, which the JSON then says."""
  (tmp_path / "other.py").write_text(
      "from vit_jax.configs import quickstart\n\n\ndef get_config(arg=None):\n"
      "  config = quickstart.get_config()\n"
      "  config.model.update(image_size=24, variant='B/16', width=None, pooling='gap')\n"
      "  config.input.update(resize='center', mean=(0.1, 0.2, 0.3))\n  return config\n"
  )
  _, own, _ = evaluate(f"--model={digits}", capsys=capsys)
  directories = set(digits.glob("evaluations/*"))
  recipe = f"--config={tmp_path / 'other.py'}"
  code, found, err = evaluate(f"--model={digits}", recipe, capsys=capsys)
  assert code == 0 and found == own, err
  assert "the recipe's model.image_size 24 is not used: the checkpoint's is 16" in err
  for key in ("model.pooling", "input.resize", "input.mean"):
    assert f"the recipe's {key} " in err
  assert set(digits.glob("evaluations/*")) == directories
  code, found, err = evaluate(
      f"--model={digits}", recipe, "--config.model.image_size=24",
      "--config.input.mean=0.1,0.2,0.3", capsys=capsys,
  )
  assert code == 0, err
  assert found["image_size"] == 24 and found["mean"] == [0.1, 0.2, 0.3] and "resize" not in found
  assert "image_size 24" not in err and "the recipe's input.resize" in err
  assert found["metrics"]["loss"] != own["metrics"]["loss"]
  (other,) = set(digits.glob("evaluations/*")) - directories
  shutil.rmtree(other)  # it bears the same split and data


def test_positions_are_resampled_as_asked(digits, tmp_path, capsys):
  losses = {}
  for way in (None, "bilinear"):
    more = [] if way is None else [f"--config.model.position_interpolation={way}"]
    code, found, err = evaluate(
        f"--model={digits}", "--config.model.image_size=24", *more,
        f"--output={tmp_path / 'out.json'}", capsys=capsys,
    )
    assert code == 0, err
    assert found.get("position_interpolation") == way
    losses[way] = found["metrics"]["loss"]
  assert losses[None] != losses["bilinear"]


def test_another_size_keeps_the_share_of_the_crop(digits):
  """As `load` does it, of a run whose config says the short side."""
  checkpoint = load(str(digits))
  crop = {"resize": "center", "short_side": 20}
  checkpoint = dataclasses.replace(
      checkpoint, preprocessing=checkpoint.preprocessing | crop,
      config=config_lib.replace(checkpoint.config, {f"input.{k}": v for k, v in crop.items()}),
  )
  overrides = {"model.image_size": "8"}
  resolved, _ = evaluated_config(checkpoint, None, overrides)
  smaller = at_image_size(checkpoint, 8).preprocessing
  assert preprocessing(resolved) == smaller and smaller["short_side"] == 10
  resolved, _ = evaluated_config(checkpoint, None, overrides | {"input.short_side": "9"})
  assert preprocessing(resolved)["short_side"] == 9


def test_images_are_of_the_size_that_is_preprocessed_to(digits):
  """Of DINOv2, 224 px, where its positions are of 518."""
  checkpoint = load(str(digits))
  checkpoint = dataclasses.replace(
      checkpoint, config=None,
      preprocessing=checkpoint.preprocessing
      | {"image_size": 8, "resize": "center", "short_side": 10},
  )
  resolved, told = evaluated_config(checkpoint, "quickstart", {})
  assert preprocessing(resolved) == checkpoint.preprocessing
  assert told == ["data: the recipe's model.image_size 16 is not used: the checkpoint's is 8"]
  assert otherwise(resolved, checkpoint, {}, ("classification",)) == {}
  overrides = {"model.image_size": "16"}
  resolved, told = evaluated_config(checkpoint, "quickstart", overrides)
  assert preprocessing(resolved)["short_side"] == 20 and told == []
  assert otherwise(resolved, checkpoint, overrides, ("knn",)) == {"image_size": 16}


def test_a_recipe_counts_where_nobody_knows_the_preprocessing(digits, tmp_path):
  (tmp_path / "photos.py").write_text(
      "from vit_jax.configs import quickstart\n\n\ndef get_config(arg=None):\n"
      "  config = quickstart.get_config()\n"
      "  config.model.image_size = 32\n"
      "  config.input.update(resize='center', short_side=40, mean=(0.1, 0.2, 0.3))\n"
      "  return config\n"
  )
  recipe, own = str(tmp_path / "photos.py"), load(str(digits))
  checkpoint = dataclasses.replace(own, config=None)
  resolved, told = evaluated_config(checkpoint, recipe, {})
  assert preprocessing(resolved) == own.preprocessing
  assert len(told) == 4 and all("is not used" in line for line in told)
  assert otherwise(resolved, checkpoint, {}, ("classification",)) == {}
  checkpoint = dataclasses.replace(checkpoint, preprocessing_known=False)
  resolved, told = evaluated_config(checkpoint, recipe, {})
  # The same share of the file's 16 pixels.
  changed = {"resize": "center", "short_side": 20, "mean": (0.1, 0.2, 0.3)}
  assert preprocessing(resolved) == own.preprocessing | changed
  assert otherwise(resolved, checkpoint, {}, ("classification",)) == changed
  assert len(told) == 2 and "model.image_size 32 is not used" in told[0]
  assert "as is configured, images are preprocessed by resize 'center'" in told[1]


def test_a_run_is_computed_in_its_dtype_also_on_the_data_of_a_recipe(digits):
  checkpoint = load(str(digits))
  checkpoint = dataclasses.replace(
      checkpoint, config=config_lib.replace(checkpoint.config, {"model.dtype": "bfloat16"})
  )
  for overrides, dtype in (({}, "bfloat16"), ({"model.dtype": "float32"}, "float32")):
    resolved, _ = evaluated_config(checkpoint, "quickstart", overrides)
    assert resolved.model.dtype == dtype


def test_images_that_are_not_square_need_a_size(digits):
  checkpoint = load(str(digits), image_size=(16, 32))
  with pytest.raises(ConfigError, match="images of 16 x 32 pixels: set config.model.image_size"):
    evaluated_config(checkpoint, None, {})
  assert evaluated_config(checkpoint, None, {"model.image_size": "16"})[0].model.image_size == 16


def test_only_what_differs_is_told(digits):
  checkpoint = load(str(digits))
  overrides = {
      "model.image_size": "16", "input.mean": "0.5,0.5,0.5", "model.dtype": "float32",
      "objective.loss": "softmax", "evaluate.batch_size": "8", "model.pooling": "cls",
  }
  resolved, _ = evaluated_config(checkpoint, None, overrides)
  assert otherwise(resolved, checkpoint, overrides, ("classification",)) == {}
  overrides = {"model.dtype": "bfloat16", "objective.loss": "sigmoid"}
  resolved, _ = evaluated_config(checkpoint, None, overrides)
  assert otherwise(resolved, checkpoint, overrides, ("classification",)) == {
      "dtype": "bfloat16", "loss": "sigmoid",
  }


def test_a_head_that_was_kept_does_not_hinder_other_pooling(digits):
  """A distillation head goes with the class token alone, pre_logits with what it was trained on."""
  checkpoint = load(str(digits))
  model = {"distillation_token": True, "distillation_head": True}
  config = config_lib.replace(
      checkpoint.config, {"init.head": "keep", "model.distillation_token": True}
  )
  checkpoint = dataclasses.replace(
      checkpoint, model_config=checkpoint.model_config | model, config=config
  )
  resolved, _ = evaluated_config(checkpoint, None, {"model.pooling": "gap"})
  assert resolved.model.pooling == "gap"
  checkpoint = dataclasses.replace(
      load(str(digits)), model_config=load(str(digits)).model_config | {"pre_logits": True}
  )
  for pooling, kept in (("gap", False), ("cls", True)):
    resolved, _ = evaluated_config(checkpoint, None, {"model.pooling": pooling})
    assert pooled(resolved, checkpoint)["pre_logits"] is kept


def test_the_same_data_parted_otherwise_is_not_the_runs_own(digits, capsys):
  assert evaluate(f"--model={digits}", capsys=capsys)[0] == 0
  own = written(digits, "validation")
  before = (own / "evaluation.json").read_text()
  accuracy = json.loads(before)["metrics"]["accuracy"]
  others = set(digits.glob("evaluations/*"))
  code, found, err = evaluate(
      f"--model={digits}", "--config=quickstart", "--config.input.held_out=0.5", capsys=capsys
  )
  assert code == 0 and found["metrics"]["examples"] > 800, err
  assert found["metrics"]["accuracy"] != accuracy
  assert (own / "evaluation.json").read_text() == before
  (other,) = set(digits.glob("evaluations/*")) - others
  (published,) = [m for m in measurements(RunDirectory(digits), 90) if m.split == "validation"]
  assert published.metrics["accuracy"] == accuracy
  shutil.rmtree(other)  # it bears the same split and data


def test_features_pooled_otherwise_than_a_head_was_trained(digits, tmp_path, capsys):
  output = f"--output={tmp_path / 'out.json'}"
  code, _, err = evaluate(f"--model={digits}", "--config.model.pooling=gap", output, capsys=capsys)
  assert code == 2 and "the head of" in err and "was trained on 'cls'" in err
  code, _, err = evaluate(
      f"--model={digits}", "--config.model.pooling=map", "--measures=knn", output, capsys=capsys
  )
  assert code == 2 and "has no map_head" in err
  code, found, err = evaluate(
      f"--model={digits}", "--config.model.pooling=gap", "--measures=knn", output, capsys=capsys
  )
  assert code == 0 and found["pooling"] == "gap", err
  checkpoint = load(str(digits), num_classes=0)
  splits = open_digits().splits

  def features(split):
    pixels = checkpoint.preprocess(list(splits[split].images))
    _, seen = checkpoint.model.apply({"params": checkpoint.params}, pixels, outputs=("tokens",))
    return Features(
        np.asarray(seen["tokens"][:, 1:].mean(axis=1)), splits[split].labels,
        np.ones(len(pixels), bool),
    )

  expected = knn(features("train"), features("validation"))
  assert found["metrics"] == pytest.approx(expected, abs=0.01)


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


def test_features_of_masked_pre_training(digits, tmp_path, capsys):
  """Which answers with pixels: its class token is judged."""
  checkpoint = load(str(digits), num_classes=0)
  model = {key: checkpoint.model_config.get(key, value) for key, value in DEFAULTS.items()}
  model |= {key: checkpoint.model_config[key] for key in DESCRIPTION if key not in DEFAULTS}
  model |= {"pooling": "none", "pixel_decoder": True, "mask_token": True}
  params = checkpoint.params | {
      "mask_token": np.ones((1, 1, 64), np.float32),
      "pixel_decoder": {"kernel": np.ones((64, 48), np.float32), "bias": np.ones(48, np.float32)},
  }
  (tmp_path / "masked").mkdir()
  report = huggingface.write(
      tmp_path / "masked", model=model, params=params, labels=None,
      preprocessing=checkpoint.preprocessing,
  )
  assert report["architecture"] == "ViTForMaskedImageModeling"
  arguments = (f"--model={tmp_path / 'masked'}", "--config=quickstart")
  code, _, err = evaluate(*arguments, capsys=capsys)
  assert code == 2 and "has no classifier" in err
  code, found, err = evaluate(*arguments, "--measures=knn", capsys=capsys)
  assert code == 0 and found["pooling"] == "cls", err
  _, ours, _ = evaluate(f"--model={digits}", "--measures=knn", capsys=capsys)
  assert found["metrics"] == pytest.approx(ours["metrics"], abs=0.01)


@pytest.mark.parametrize("measure", ["classification", "calibration", "knn"])
@pytest.mark.parametrize("count, said", [(None, "have no labels: name"), (0, "is empty")])
def test_a_split_without_labels_is_refused(digits, monkeypatch, measure, count, said, capsys):
  dataset = open_digits()
  held = dataset.splits["validation"]
  test = dataclasses.replace(
      held, split="test", images=held.images[:count], labels=np.full_like(held.labels, -1)[:count]
  )
  dataset = dataclasses.replace(dataset, splits=dataset.splits | {"test": test})
  monkeypatch.setattr(evaluate_lib, "open_configured", lambda _: dataset)
  code, _, err = evaluate(
      f"--model={digits}", "--config.evaluate.split=test", f"--measures={measure}", capsys=capsys
  )
  assert code == DataError.exit_code and f"digits, split test, {said}" in err
  assert "--config.evaluate.split" in err


def test_features_are_not_learned_without_labels(digits, monkeypatch, capsys):
  dataset = open_digits()
  train = dataset.splits["train"]
  train = dataclasses.replace(train, labels=np.full_like(train.labels, -1))
  dataset = dataclasses.replace(dataset, splits=dataset.splits | {"train": train})
  monkeypatch.setattr(evaluate_lib, "open_configured", lambda _: dataset)
  code, _, err = evaluate(f"--model={digits}", "--measures=knn", capsys=capsys)
  assert code == DataError.exit_code and "split train, have no labels" in err
  assert evaluate(f"--model={digits}", capsys=capsys)[0] == 0


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
    (["--config.model.pre_logits=true"], "has False, and is judged as it is"),
    (["--config.model.width=32"], "config.model.width is 32"),
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

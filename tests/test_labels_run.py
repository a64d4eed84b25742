"""Runs with several labels an image, and runs judged otherwise: by ReaL's labels, on other data."""

import json
import shutil

import numpy as np
from PIL import Image
import pytest

from test_folder_run import COLORS, TINY, run, write_folder
from vit_jax.cli import main
from vit_jax.loading import load

FAST = (*TINY, "--config.log_every=1 steps", "--config.checkpoint.every=100 steps")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
  """Images of two colours, halves side by side, whose labels are both."""
  root = tmp_path_factory.mktemp("several")
  rng, lines = np.random.default_rng(0), ["file_name,labels,split"]
  for i in range(48):
    names = sorted(rng.choice(sorted(COLORS), rng.integers(1, 3), replace=False))
    pixels = np.repeat([COLORS[names[0]], COLORS[names[-1]]], 10, axis=0)[None].repeat(20, 0)
    Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
    lines.append(f"{i}.png,{';'.join(names)},{'train' if i < 32 else 'validation'}")
  (root / "metadata.csv").write_text("\n".join(lines))
  (root / "weights.json").write_text('{"red": 1.5}')
  return root


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
  """A folder, and a run of four steps on half of it with a head of sigmoids."""
  root = tmp_path_factory.mktemp("halves")
  folder = write_folder(root / "photos", images=8)
  with pytest.raises(SystemExit) as left:
    main([
        "train", "--config=folder:scratch", f"--config.input.path={folder}",
        f"--workdir={root / 'run'}", *FAST, "--config.objective.loss=sigmoid",
        "--config.total=4 steps", "--config.optimizer.learning_rate=1e-2",
        "--config.input.split=train[:50%]", "--config.evaluate.split=train[50%:]",
        "--config.evaluate.every=4 steps",
    ])
  assert left.value.code == 0
  return folder, root / "run"


def scores_of(workdir, images):
  """Logits float32 `[N, 3]` of image files, without any of the evaluation's code."""
  checkpoint = load(workdir)
  pixels = checkpoint.preprocess(images)
  return np.asarray(checkpoint.model.apply({"params": checkpoint.params}, pixels))


@pytest.mark.slow
def test_several_labels_are_learned_by_sigmoids(several, tmp_path, capsys):
  command = (
      "train", "--config=folder:scratch", f"--config.input.path={several}",
      f"--workdir={tmp_path / 'run'}", *FAST, "--config.objective.loss=sigmoid",
      f"--config.objective.class_weights={several / 'weights.json'}",
      "--config.objective.head_bias=-2.0", "--config.total=60 steps",
      "--config.optimizer.learning_rate=1e-2", "--config.batch_ops.mixup_alpha=0.0",
      "--config.evaluate.every=60 steps", "--config.input.crop=none",
  )
  code, _, err = run(*command, capsys=capsys)
  assert code == 0, err
  rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  # Three questions that are answered "no" with bias -2; one of 1.5 labels an image is a "yes".
  assert 2 < rows[0]["train/loss"] < 6 and rows[-1]["train/loss"] < rows[0]["train/loss"] / 2
  assert rows[-1]["eval/validation/accuracy"] == 1
  assert rows[-1]["eval/validation/examples"] == 16


@pytest.mark.slow
def test_one_batch_for_ever(tmp_path, capsys):
  """Learned by heart in a few steps, without a wait for the input."""
  folder = write_folder(tmp_path / "photos")
  code, _, err = run(
      "train", "--config=folder:scratch", f"--config.input.path={folder}",
      f"--workdir={tmp_path / 'run'}", *FAST, "--config.debug.repeat_batch=True",
      "--config.total=30 steps", "--config.optimizer.learning_rate=3e-3",
      "--config.schedule.name=constant", "--config.batch_ops.mixup_alpha=0.0",
      "--config.evaluate.every=30 steps", capsys=capsys,
  )
  assert code == 0, err
  rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  losses = [row["train/loss"] for row in rows]
  assert max(np.diff(losses[1:8])) < 0 and losses[-1] < 0.5 * losses[0]
  assert all(row["train/input_wait_fraction"] < 0.05 for row in rows[3:])


def test_real_labels_of_other_images_are_refused_before_the_first_step(tmp_path, capsys):
  folder, workdir = write_folder(tmp_path / "photos", images=4), tmp_path / "run"
  (tmp_path / "real.json").write_text("[[0], [1]]")
  code, _, err = run(
      "train", "--config=folder:scratch", f"--config.input.path={folder}", f"--workdir={workdir}",
      *FAST, "--config.total=2 steps", "--config.input.split=train[:50%]",
      "--config.evaluate.split=train[50%:]",
      f"--config.evaluate.real_labels={tmp_path / 'real.json'}", capsys=capsys,
  )
  assert code == 3 and "--config.evaluate.split=validation" in err, err
  for name in ("run.json", "metrics.jsonl", "checkpoints"):
    assert not (workdir / name).exists()


@pytest.mark.slow
def test_real_labels_and_classes_of_other_names(tmp_path, capsys):
  folder = write_folder(tmp_path / "photos", images=6)
  code, _, err = run(
      "train", "--config=folder:scratch", f"--config.input.path={folder}",
      f"--workdir={tmp_path / 'run'}", *FAST, "--config.total=2 steps", capsys=capsys,
  )
  assert code == 0, err
  validation = tmp_path / "renamed" / "validation"
  for number, name in enumerate(sorted(COLORS)):
    directory = validation / f"n0000000{number}"
    directory.mkdir(parents=True)
    for i in range(2):
      place = directory / f"ILSVRC2012_val_{2 * number + i + 1:08d}.png"
      place.write_bytes((folder / name / f"{i:02d}.png").read_bytes())
  shutil.copytree(validation, validation.with_name("train"))
  evaluate = (
      "evaluate", f"--model={tmp_path / 'run'}", "--config=folder", *TINY[-1:],
      f"--config.input.path={validation.parent}",
  )
  code, _, err = run(*evaluate, capsys=capsys)
  assert code == 2 and "--config.evaluate.classes=by_order" in err
  evaluate += ("--config.evaluate.classes=by_order",)
  # Whatever is predicted for the first and the last is right; the second counts nowhere.
  real = tmp_path / "real.json"
  real.write_text(json.dumps([[0, 1, 2], [], [0, 1], [1], [2], [2, 0, 1]]))
  code, out, err = run(*evaluate, f"--config.evaluate.real_labels={real}", capsys=capsys)
  assert code == 0, err
  measured = json.loads(out)
  assert measured["split"] == "validation_real"
  checkpoint = load(tmp_path / "run")
  labels, wanted = json.loads(real.read_text()), []
  for number in range(6):
    place = next(validation.glob(f"*/ILSVRC2012_val_{number + 1:08d}.png"))
    logits = checkpoint.model.apply(
        {"params": checkpoint.params}, checkpoint.preprocess([place])
    )
    wanted.append(int(np.argmax(logits)) in labels[number])
  assert measured["metrics"]["examples"] == 5 and measured["metrics"]["unreadable"] == 0
  assert measured["metrics"]["accuracy"] == sum(wanted) / 5


def test_a_run_is_judged_on_imagenet_v2(halves, tmp_path, capsys):
  """Numbered directories, of which the run's own parts of train say nothing."""
  folder, workdir = halves
  images, labels = [], []
  for number, name in enumerate(sorted(COLORS)):
    (tmp_path / str(number)).mkdir()
    for i in range(2 + number):
      images.append(tmp_path / str(number) / f"{i}.png")
      images[-1].write_bytes((folder / name / f"{i:02d}.png").read_bytes())
      labels.append(number)
  evaluate = (
      "evaluate", f"--model={workdir}", "--config.input.dataset=imagenet_v2",
      f"--config.input.path={tmp_path}",
  )
  code, _, err = run(*evaluate, capsys=capsys)
  assert code == 2 and "--config.evaluate.classes=by_order" in err, err
  code, out, err = run(*evaluate, "--config.evaluate.classes=by_order", capsys=capsys)
  assert code == 0, err
  measured = json.loads(out)
  assert measured["split"] == "test" and measured["data"] == str(tmp_path)
  right = np.argmax(scores_of(workdir, images), axis=1) == labels
  assert measured["metrics"]["examples"] == 9
  assert measured["metrics"]["accuracy"] == np.sum(right) / 9


def test_other_data_of_the_same_kind_has_to_be_named_as_such(halves, tmp_path, capsys):
  _, workdir = halves
  other = write_folder(tmp_path / "photos", images=3)
  evaluate = ("evaluate", f"--model={workdir}", f"--config.input.path={other}")
  code, _, err = run(*evaluate, capsys=capsys)
  assert code == 2 and "other data" in err and "--workdir" not in err
  assert "name other data by --config.input.dataset=NAME --config.input.path=PATH" in err
  code, out, err = run(*evaluate, "--config.input.dataset=folder", capsys=capsys)
  assert code == 0, err
  measured = json.loads(out)
  assert measured["split"] == "validation" and measured["metrics"]["examples"] == 3


def test_a_recipe_that_names_the_data_leaves_a_head_its_loss(halves, capsys):
  folder, workdir = halves
  evaluate = (
      "evaluate", f"--model={workdir}", "--config=folder", f"--config.input.path={folder}",
      "--config.input.held_out=0", "--config.evaluate.split=train",
  )
  code, out, err = run(*evaluate, "--measures=classification,calibration", capsys=capsys)
  assert code == 0, err
  images = [image for name in sorted(COLORS) for image in sorted((folder / name).iterdir())]
  scores, labels = scores_of(workdir, images).astype(np.float64), np.repeat(np.arange(3), 8)
  one = np.eye(3)[labels]
  sigmoid = one * np.logaddexp(0, -scores) + (1 - one) * np.logaddexp(0, scores)
  assert json.loads(out)["metrics"]["loss"] == pytest.approx(sigmoid.sum() / 24, rel=1e-4)
  (table,) = workdir.rglob("reliability.json")
  filled = [row for row in json.loads(table.read_text()) if row["images"]]
  confidence = sum(row["images"] * row["confidence"] for row in filled)
  sure = 1 / (1 + np.exp(-scores.max(axis=1)))
  assert confidence == pytest.approx(sure.sum(), rel=1e-4)

  code, out, err = run(*evaluate, "--config.objective.loss=softmax", capsys=capsys)
  assert code == 0, err
  softmax = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(24), labels]
  assert json.loads(out)["metrics"]["loss"] == pytest.approx(softmax.mean(), rel=1e-4)

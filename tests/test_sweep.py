"""Several runs, the best by the held-out split, and the test split for the winner alone."""

import csv
import json
import os
import threading
import time

import numpy as np
import pytest

from vit_jax import sweep as sweep_lib
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.data.source import ArraySource, DataSet
from vit_jax.errors import ConfigError
from vit_jax.loading import step_of_run
from vit_jax.observe.status import read_status

from test_folder_run import TINY, run, write_folder

RECIPE = '''
from ml_collections import ConfigDict


def get_config(arg=None):
  config = ConfigDict()
  config.input = dict(dataset="folder", crop="none")
  config.schedule = dict(name="constant")
  config.total = "25 steps"
  config.evaluate = dict(every="25 steps")
  return config


def sweep(arg=None):
  good = {"optimizer.learning_rate": 5e-3}
  return {
      # A head that stays at zero prefers nothing.
      None: [{"optimizer.learning_rate": 1e-3, "optimizer.freeze": "^head/"}, good],
      "explodes": [{"optimizer.learning_rate": 1e38}, good],
      "bad": [{"optimizer.learning_rate": "fast"}],
      "one": [good],
      "three": [{"seed": 1}, {"seed": 2}, {"seed": 3}],
      "metric": [{"checkpoint.best_metric": "loss"}, good],
      "late": [{"evaluate.split": "validation"}, {"evaluate.split": "test[50%:]"}],
      "other": [{"evaluate.split": "validation"}, {"evaluate.split": "validation[50%:]"}],
      "held_out": [{"input.held_out": 0.1}, {"input.held_out": 0.2}],
      "less": [{"input.split": "train[:50%]"}, good],
  }[arg]
'''


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
  root = tmp_path_factory.mktemp("sweep")
  (root / "colors.py").write_text(RECIPE)
  for split, images in (("train", 16), ("validation", 8), ("test", 8)):
    write_folder(root / "photos" / split, images=images)
  return root


def sweep(recipe, workdir, *more, capsys, arg=""):
  return run(
      "sweep", f"--config={recipe / 'colors.py'}{arg}", f"--workdir={workdir}",
      f"--config.input.path={recipe / 'photos'}", *TINY, *more, capsys=capsys,
  )


def members_of(recipe, workdir, arg="", **more):
  keys = [option.removeprefix("--config.").split("=", 1) for option in TINY]
  overrides = dict(keys) | {"input.path": str(recipe / "photos")}
  overrides |= {key.replace("__", "."): value for key, value in more.items()}
  return sweep_lib.members(f"{recipe / 'colors.py'}{arg}", overrides, str(workdir))


def table(workdir):
  return list(csv.DictReader((workdir / "sweep.csv").open()))


def test_the_best_is_tested(recipe, tmp_path, capsys, monkeypatch):
  tested, real = [], sweep_lib.evaluate

  def remember(ref, *, config_spec, overrides):
    tested.append((ref, overrides))
    return real(ref, config_spec=config_spec, overrides=overrides)

  monkeypatch.setattr(sweep_lib, "evaluate", remember)
  code, out, err = sweep(recipe, tmp_path, "--print", capsys=capsys)
  assert code == 0 and out.count("optimizer.learning_rate") == 2, err
  assert not list(tmp_path.iterdir())

  code, out, err = sweep(recipe, tmp_path, "--index=1", capsys=capsys)
  assert code == 0, err
  assert [row["state"] for row in table(tmp_path)] == ["waiting", "finished"]
  assert not (tmp_path / "winner.json").exists() and not tested

  code, out, err = sweep(recipe, tmp_path, capsys=capsys)
  assert code == 0 and "01_learning_rate=0.005: finished already" in out, err
  frozen, quick = table(tmp_path)
  assert frozen["measure"] == quick["measure"] == "eval/validation/accuracy"
  assert float(quick["value"]) > float(frozen["value"])
  assert quick["optimizer.learning_rate"] == "0.005"
  winner = json.loads((tmp_path / "winner.json").read_text())
  assert winner["run"] == "01_learning_rate=0.005" and winner["value"] == float(quick["value"])
  assert winner["test_split"] == "test" and winner["test"]["examples"] == 24
  assert tested == [(str(tmp_path / winner["run"]), {"evaluate.split": "test"})]
  for member in (frozen, quick):
    lines = (tmp_path / member["run"] / "metrics.jsonl").read_text()
    assert "eval/validation/accuracy" in lines and "eval/test" not in lines

  written = (tmp_path / "winner.json").read_text()
  code, out, _ = sweep(recipe, tmp_path, capsys=capsys)
  assert code == 0 and "wins with" in out and (tmp_path / "winner.json").read_text() == written
  assert len(tested) == 1

  # Two jobs of an array that end together: one tests.
  (tmp_path / "winner.json").unlink()
  tested.clear()

  def slowly(ref, **_):
    tested.append(ref)
    time.sleep(0.5)
    return {"metrics": {"examples": 24}}

  monkeypatch.setattr(sweep_lib, "evaluate", slowly)
  everything = members_of(recipe, tmp_path)
  jobs = [
      threading.Thread(target=sweep_lib.sweep, args=([], everything), kwargs={"workdir": tmp_path})
      for _ in range(2)
  ]
  for job in jobs:
    job.start()
  for job in jobs:
    job.join()
  assert tested == [str(tmp_path / "01_learning_rate=0.005")]
  assert json.loads((tmp_path / "winner.json").read_text())["test"] == {"examples": 24}

  # By the loss the smallest wins; what is finished is not trained again for it.
  tested.clear()
  code, out, err = sweep(recipe, tmp_path, "--config.checkpoint.best_metric=loss", capsys=capsys)
  assert code == 0 and out.count("finished already") == 2, err
  frozen, quick = table(tmp_path)
  assert frozen["measure"] == quick["measure"] == "eval/validation/loss"
  assert float(quick["value"]) < float(frozen["value"])
  winner = json.loads((tmp_path / "winner.json").read_text())
  assert winner["run"] == quick["run"] and winner["measure"] == "eval/validation/loss"
  assert tested == [str(tmp_path / quick["run"])]


def test_the_best_by_the_loss(recipe, tmp_path, capsys, monkeypatch):
  """The sweep, `status` and @best agree that less is better."""
  tested = []

  def remember(ref, **_):
    tested.append(ref)
    return {"metrics": {"examples": 24}}

  monkeypatch.setattr(sweep_lib, "evaluate", remember)
  code, _, err = sweep(
      recipe, tmp_path, "--config.checkpoint.best_metric=loss", "--config.total=10 steps",
      "--config.evaluate.every=5 steps", arg=":one", capsys=capsys,
  )
  assert code == 0, err
  (row,) = table(tmp_path)
  member, name = tmp_path / row["run"], "eval/validation/loss"
  lines = [json.loads(line) for line in (member / "metrics.jsonl").read_text().splitlines()]
  losses = {line["step"]: line[name] for line in lines if name in line}
  assert set(losses) == {5, 10} and losses[5] != losses[10]
  best = min(losses, key=losses.get)
  assert row["measure"] == name and float(row["value"]) == losses[best]
  assert read_status(member)["best"] == {"step": best, "metric": name, "value": losses[best]}
  assert step_of_run(member, "best") == best
  assert tested == [f"{member}@best"]


@pytest.mark.slow
def test_a_run_that_explodes_is_left_out(recipe, tmp_path, capsys):
  code, out, err = sweep(recipe, tmp_path, arg=":explodes", capsys=capsys)
  assert code == 0, err
  assert [row["state"] for row in table(tmp_path)] == ["failed", "finished"]
  assert "not finite" in (tmp_path / "00_learning_rate=1e+38.failed").read_text()
  assert json.loads((tmp_path / "winner.json").read_text())["run"] == "01_learning_rate=0.005"


@pytest.mark.parametrize("arg, more, message", [
    ("", ["--index=2"], "the sweep has the runs 0 to 1"),
    ("", ["--config.optimizer.learning_rate=0.1"], "is what the sweep"),
    (":bad", [], "config.optimizer.learning_rate to 'fast'"),
    (":metric", [], "varies config.checkpoint.best_metric, by which its runs are compared"),
])
def test_what_is_refused(recipe, tmp_path, capsys, arg, more, message):
  code, _, err = sweep(recipe, tmp_path, *more, arg=arg, capsys=capsys)
  assert code == 2 and message in err


class Unlisted:
  """A split that tells a label only with its record, as TFDS's."""

  def __init__(self, labels):
    self.truth, self.read = labels, 0

  def __len__(self):
    return len(self.truth)

  def record(self, index):
    self.read += 1
    return {"image": b"", "label": self.truth[index], "name": str(index)}


@pytest.mark.parametrize("held_out, tested", [
    ("train[99%:]", "validation"), ("validation[:50%]", None), ("validation_real", None),
])
@pytest.mark.parametrize("listed", [False, True])
def test_a_split_without_labels_is_not_evaluated(
    recipe, tmp_path, monkeypatch, listed, held_out, tested
):
  """As the test split of ImageNet."""
  (winner,) = members_of(recipe, tmp_path, arg=":one")
  winner.workdir.mkdir()
  RunDirectory(winner.workdir).write_info({
      "requested": {}, "classes": [], "fingerprint": "", "total_steps": 5, "best_metric": None,
      "environment": {}, "evaluation_split": held_out,
  })
  splits = {"test": [-1] * 9, "validation": [-1, 0, 1]}
  for name, labels in splits.items():
    images, array = np.zeros((len(labels), 8, 8, 3), np.uint8), np.array(labels, np.int32)
    source = ArraySource("data", name, ("a", "b"), images, array)
    splits[name] = source if listed else Unlisted(labels)
  dataset = DataSet("data", ("a", "b"), splits, "")
  monkeypatch.setattr(sweep_lib, "open_configured", lambda _: dataset)
  evaluated = []

  def remember(ref, *, config_spec, overrides):
    evaluated.append((ref, overrides))
    return {"metrics": {"examples": 2}}

  monkeypatch.setattr(sweep_lib, "evaluate", remember)
  found = sweep_lib._tested(winner)
  if tested:
    assert found == {"test_split": tested, "test": {"examples": 2}}
    assert evaluated == [(str(winner.workdir), {"evaluate.split": tested})]
  else:
    assert not found and not evaluated
  if not listed:
    assert splits["test"].read == 9 and splits["validation"].read == (2 if tested else 0)



@pytest.mark.parametrize("more, threads", [
    (["--index=0"], "41"), (["--index=1"], "43"), ([], "43"), (["--index=2"], None),
])
def test_a_run_goes_on_with_its_own_number_of_cpu_threads(
    recipe, tmp_path, capsys, monkeypatch, more, threads
):
  """Run 0 is finished, run 1 was begun; where one process trains all, run 1 decides."""
  info = {
      "requested": {}, "classes": [], "fingerprint": "", "total_steps": 5, "best_metric": None,
  }
  everything = members_of(recipe, tmp_path, arg=":three")
  for member, number in zip(everything, (41, 43)):
    run_directory = RunDirectory(member.workdir)
    run_directory.path.mkdir()
    run_directory.write_info(info | {"environment": {"cpu_threads": number}})
  last = everything[0].workdir / "checkpoints" / "5"
  last.mkdir(parents=True)
  (last / "manifest.json").write_text("{}")
  seen = []
  monkeypatch.setattr(sweep_lib, "sweep", lambda *_, **__: seen.append(os.environ["NPROC"]))
  monkeypatch.setenv("NPROC", "1")  # so that what the verb sets is undone after the test
  monkeypatch.delenv("NPROC")
  code, _, err = sweep(recipe, tmp_path, *more, arg=":three", capsys=capsys)
  assert code == 0, err
  assert seen == [threads or str(len(os.sched_getaffinity(0)))]


def test_a_recipe_without_a_sweep(tmp_path, capsys):
  code, _, err = run("sweep", "--config=folder", f"--workdir={tmp_path}", capsys=capsys)
  assert code == 2 and "defines no sweep(arg)" in err


@pytest.mark.slow
def test_runs_of_another_config_are_not_taken_over(recipe, tmp_path, capsys):
  code, _, err = sweep(recipe, tmp_path, "--index=1", "--config.total=2 steps", capsys=capsys)
  assert code == 0, err
  code, _, err = sweep(recipe, tmp_path, "--config.total=3 steps", capsys=capsys)
  assert code == 2 and "was begun with another recipe" in err


@pytest.mark.parametrize("arg, more, split", [
    ("", ["--config.evaluate.split=train"], "'train', of which 48 images are trained on"),
    ("", ["--config.input.split=train[:90%]", "--config.evaluate.split=train[40:]"],
     "'train[40:]', of which 3 images are trained on"),
    ("", ["--config.evaluate.split=test"], "'test'"),
    ("", ["--config.evaluate.split=test [:50%]"], "'test [:50%]'"),
    (":late", [], "config.evaluate.split of 01_split=test-50-"),
])
def test_the_test_split_does_not_choose(recipe, tmp_path, capsys, arg, more, split):
  code, _, err = sweep(recipe, tmp_path / "x", *more, arg=arg, capsys=capsys)
  assert code == 2 and "compared by a held-out split" in err and not (tmp_path / "x").exists()
  assert split in err and "--config.evaluate.split='train[90%:]'" in err


def test_a_part_of_train_that_is_not_trained_on_chooses(recipe, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sweep_lib, "train", lambda *_, **__: None)
  split = {"input__split": "train[:50%]", "evaluate__split": "train[40:]"}
  everything = members_of(recipe, tmp_path, **split)
  sweep_lib.sweep(everything, everything, workdir=str(tmp_path))
  assert "chosen by train[40:]; the winner is tested on test" in capsys.readouterr().out


@pytest.mark.parametrize("arg, said", [
    (":other", "judged on 'validation' and 01_split=validation-50- on 'validation[50%:]'"),
    (":held_out", "00_held_out=0.1 would be judged on 'validation' and 01_held_out=0.2"),
])
def test_runs_are_judged_on_the_same_images(recipe, tmp_path, capsys, arg, said):
  code, _, err = sweep(recipe, tmp_path / "x", arg=arg, capsys=capsys)
  assert code == 2 and said in err and "not the same images" in err
  assert not (tmp_path / "x").exists()


def test_runs_may_be_trained_on_different_images(recipe, tmp_path):
  assert sweep_lib._held_out(members_of(recipe, tmp_path, arg=":less")) == ("validation", "test")


def test_a_part_of_another_split_than_train_is_trained_on(recipe, tmp_path):
  splits = {"input__split": "validation[:50%]", "evaluate__split": "validation[10:]"}
  with pytest.raises(ConfigError, match="of which 2 images are trained on"):
    sweep_lib._held_out(members_of(recipe, tmp_path, arg=":one", **splits))

"""The verbs as a user meets them."""

import json
import os
import pathlib
import subprocess
import sys
import time

from PIL import Image
import pytest

from vit_jax import config
from vit_jax.cli import main
from vit_jax.data.prepare.run import SOURCES

VERBS = ("train", "plan", "sweep", "evaluate", "predict", "convert", "publish", "prepare",
         "configs", "checkpoint", "status", "doctor")
REPOSITORY = pathlib.Path(__file__).parent.parent


def run(*arguments, capsys) -> tuple[int, str, str]:
  with pytest.raises(SystemExit) as left:
    main(list(arguments))
  captured = capsys.readouterr()
  return left.value.code, captured.out, " ".join(captured.err.split())


def test_help_teaches_and_answers_at_once():
  # The fastest of three: a busy machine is not what is tested.
  seconds = []
  for _ in range(3):
    began = time.monotonic()
    shown = subprocess.run(
        [sys.executable, "-m", "vit_jax", "--help"], capture_output=True, text=True, check=True
    ).stdout
    seconds.append(time.monotonic() - began)
  assert all(verb in shown for verb in VERBS)
  assert min(seconds) < 1.0


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_shows_an_example(verb, capsys):
  code, out, _ = run(verb, "--help", capsys=capsys)
  assert code == 0 and f"vit-jax {verb}" in out.partition("Example:")[2]


def test_configs_lists_copies_and_explains(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _, out, _ = run("configs", capsys=capsys)
  assert {"quickstart", "folder"} <= {line.split()[0] for line in out.splitlines()}
  _, out, _ = run("configs", "--keys", capsys=capsys)
  assert [line.split()[0] for line in out.splitlines()] == list(config.FIELDS)
  assert run("configs", "quickstart", capsys=capsys)[0] == 0
  assert config.load("quickstart.py:finetune") == config.load("quickstart:finetune")
  code, _, err = run("configs", "quickstart", capsys=capsys)
  assert code == 2 and "exists already" in err


def test_usage_errors_are_one_paragraph(capsys):
  code, out, err = run("evaluate", "--model=nowhere/at/all", capsys=capsys)
  assert code == 5 and "nowhere/at/all" in err and not out
  code, _, err = run("train", "--config=quickstat", "--workdir=x", capsys=capsys)
  assert code == 2 and "quickstart" in err
  code, _, err = run("predict", "--modle=x", "y.jpg", capsys=capsys)
  assert code == 2


def test_prepare(tmp_path, capsys):
  for name in "ab":
    (tmp_path / "in" / name).mkdir(parents=True)
    Image.new("RGB", (9, 9), (ord(name), 0, 0)).save(tmp_path / "in" / name / "x.jpg")
  command = ["prepare", "--source=imagefolder", f"--input={tmp_path}/in",
             f"--output={tmp_path}/out", "--workers=1"]
  code, out, err = run(*command, capsys=capsys)
  assert code == 0 and not out and "2 train images in 1 shards, 2 classes" in err
  code, _, err = run(*command, "--quality=0", capsys=capsys)
  assert code == 2 and "--quality=0" in err
  (tmp_path / "in" / "b" / "x.jpg").write_bytes(b"")
  code, _, err = run(*command, capsys=capsys)
  assert code == 2 and "exists already" in err
  for source in SOURCES:
    assert run(*command, f"--source={source}", "--short-side=0", capsys=capsys)[0] == 2


def test_debug_shows_the_traceback():
  command = [sys.executable, "-m", "vit_jax", "evaluate", "--model=nowhere", "--debug"]
  assert "Traceback" in subprocess.run(command, capture_output=True, text=True).stderr
  assert "Traceback" not in subprocess.run(command[:-1], capture_output=True, text=True).stderr


def test_status_of_a_directory_without_a_run(tmp_path, capsys):
  code, out, _ = run("status", f"--workdir={tmp_path}", capsys=capsys)
  assert code == 0 and "not started" in out
  code, _, err = run("status", f"--workdir={tmp_path}/nowhere", capsys=capsys)
  assert code == 2 and "nowhere" in err


def test_doctor(capsys):
  code, out, _ = run("doctor", capsys=capsys)
  assert code == 0 and "jax" in out and "cpu:0" in out and "computes" in out


@pytest.mark.slow
def test_an_installed_wheel_finds_its_recipes(tmp_path):
  subprocess.run(
      [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, REPOSITORY],
      check=True,
  )
  (wheel,) = tmp_path.glob("*.whl")
  site = tmp_path / "site"
  subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, site], check=True)
  code = (
      "import vit_jax, json; from vit_jax import config; "
      "print(json.dumps([vit_jax.__file__, config.load('quickstart').total]))"
  )
  shown = subprocess.run(
      [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path,
      env=os.environ | {"PYTHONPATH": str(site)},
  ).stdout
  where, total = json.loads(shown)
  assert where.startswith(str(site)) and total == config.load("quickstart").total


def test_a_reader_that_leaves_is_no_error():
  listing = f"{sys.executable} -m vit_jax configs --keys | true"
  done = subprocess.run(["bash", "-o", "pipefail", "-c", listing], capture_output=True, text=True)
  assert done.returncode == 0 and not done.stderr

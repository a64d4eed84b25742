"""What lets its reader in is neither printed nor written: passwords, signatures, tokens, keys."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from test_folder_run import run, TINY
from vit_jax.bucket import failures
from vit_jax.errors import CheckpointError, ConfigError, redacted, VitJaxError
from vit_jax.interop import fetch
from vit_jax.interop.hub_client import client, explained
from vit_jax.observe.watchdog import Watchdog

SECRET = "s3cr3tS3cr3tS3cr3tS3cr3t"
SIGNED = f"https://storage.example/b/model.npz?X-Goog-Expires=60&X-Goog-Signature={SECRET}"
ENVIRONMENT = {
    "HF_TOKEN": f"hf_{SECRET}", "AWS_SECRET_ACCESS_KEY": f"aws/{SECRET}", "WANDB_API_KEY": SECRET,
    "DATABASE_PASSWORD": f"database-{SECRET}",
}


@pytest.mark.parametrize("text", [
    SIGNED, f"cannot GET '{SIGNED}' (403)", f"url=URL({SIGNED})", f"ftp://me:{SECRET}@host/a",
    f"https://{SECRET}@host/a.npz", f"Authorization: Bearer {SECRET}", f"hf_{SECRET}",
    f"token ya29.{SECRET}", f"s3://key:{SECRET}@bucket/x",
])
def test_what_is_left_out(text):
  assert SECRET not in redacted(text)
  assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize("text", [
    "gs://bucket/run@100+ema: what now? See https://huggingface.co/timm, or ask.",
    "write to me@example.org", "hf:google/vit-base-patch16-224@main", "/data/a?b=c",
])
def test_what_stays(text):
  assert redacted(text) == text


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_variables_that_are_secret_by_their_name(name, monkeypatch):
  monkeypatch.setenv(name, "an-unusual-value-of-thirty-bytes")
  assert redacted("got an-unusual-value-of-thirty-bytes!") in (f"got ${name}!",)


def test_errors_are_told_without_them():
  assert SECRET not in str(VitJaxError(f"{SIGNED} cannot be read"))
  library = type("HttpError", (Exception,), {"__module__": "gcsfs.retry", "code": 500})
  assert SECRET not in failures.reason(library(f"GET {SIGNED} failed"))


def test_errors_of_the_hub():
  pytest.importorskip("huggingface_hub")
  client()
  with pytest.raises(CheckpointError) as told, explained("user/name"):
    raise ConnectionError(f"HTTPSConnectionPool: Max retries exceeded with url: {SIGNED}")
  assert SECRET not in str(told.value) and "cannot be reached" in str(told.value)


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["", "debug"])
def test_a_signed_address_is_no_part_of_a_config(debug, tmp_path, capsys):
  code, out, err = run(
      "train", "--config=quickstart", f"--config.init.checkpoint={SIGNED}", *debug,
      f"--workdir={tmp_path / 'run'}", capsys=capsys,
  )
  assert code == ConfigError.exit_code and "config.init.checkpoint" in err
  assert SECRET not in out + err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("url", [SIGNED, f"https://me:{SECRET}@example.org/model.npz"])
def test_a_reference_with_a_secret_is_not_fetched(url, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  with pytest.raises(CheckpointError, match="holds a secret") as error:
    fetch.fetch(url)
  assert SECRET not in str(error.value) and not list(tmp_path.iterdir())


def test_stacks_of_a_hang_hold_no_values(tmp_path, capfd):
  token = f"hf_{SECRET}"  # in a frame of the stack
  ended = []
  with Watchdog(0.01, directory=tmp_path, end=ended.append) as watchdog:
    watchdog.enter("a step", 1)
    watchdog._say_and_end()
  written = (tmp_path / "logs" / "hang.0.txt").read_text()
  assert ended and "test_stacks_of_a_hang" in written
  assert token not in written + capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("more", [
    [], ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e30",
         "--config.schedule.warmup=1 steps", "--config.skip.limit=1"],
], ids=["whole", "not finite"])
def test_a_run_writes_and_prints_none_of_its_environment(more, tmp_path):
  key = tmp_path / "key.json"
  key.write_text(json.dumps({"private_key": f"-----BEGIN PRIVATE KEY-----{SECRET}"}))
  environment = os.environ | ENVIRONMENT | {
      "GOOGLE_APPLICATION_CREDENTIALS": str(key), "JAX_PLATFORMS": "cpu",
  }
  done = subprocess.run(
      [sys.executable, "-m", "vit_jax", "train", "--debug", "--config=quickstart", *TINY,
       "--config.model.image_size=8", "--config.total=6 steps", f"--workdir={tmp_path / 'run'}",
       *more],
      env=environment, cwd=pathlib.Path(__file__).parents[2], capture_output=True, timeout=500,
  )
  assert done.returncode == (4 if more else 0), done.stderr
  written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
  assert len(written) > 5
  for text in (done.stdout, done.stderr, *(path.read_bytes() for path in written)):
    assert SECRET.encode() not in text

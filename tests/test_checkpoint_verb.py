"""`vit-jax checkpoint list|verify|prune` on runs with whole, damaged and left-over checkpoints."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import pytest

from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.recovery import set_aside
from vit_jax.checkpoint.retention import Every, Policy
from vit_jax.checkpoint.run import RunDirectory
from vit_jax.cli import main

INFO = {
    "requested": {}, "resolved": {"checkpoint": {"keep_latest": 2}}, "classes": ["a", "b"],
    "fingerprint": "f", "total_steps": 50, "environment": {}, "best_metric": "eval/test/accuracy",
}
ACCURACY = {10: 0.5, 20: 0.9, 30: 0.1, 40: 0.2, 50: 0.3}


def write_run(path) -> RunDirectory:
  """Steps 10 to 50, of which the policy keeps 20 (the best), 40 and 50."""
  run = RunDirectory(path)
  run.path.mkdir()
  policy = Policy(2, "eval/test/accuracy")
  run.write_info(INFO | {"retention": policy.to_json()})
  with Checkpoints(run.checkpoints, keep_latest=9) as checkpoints:
    for step, accuracy in ACCURACY.items():
      arrays = {"kernel": jnp.full((8, 4), step, jnp.float32)}
      checkpoints.save(step, params=arrays, training={"step": jnp.int32(step)}, meta={
          "config": {}, "examples_seen": 16 * step,
          "metrics": {"eval/test/accuracy": accuracy, "eval/test/examples": 7.0},
      })
  return run


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture
def run(pristine, tmp_path):
  return RunDirectory(shutil.copytree(pristine, tmp_path / "run"))


@pytest.fixture
def verb(run, capsys):
  """Runs the verb: exit code, stdout, stderr on one line."""
  def call(action, *options, path=run.path):
    with pytest.raises(SystemExit) as left:
      main(["checkpoint", action, str(path), *options])
    said = capsys.readouterr()
    return left.value.code, said.out, " ".join(said.err.split())

  return call


def damage(run, step) -> str:
  """Flips a bit; returns the file's name within the step."""
  path = sorted((run.checkpoints / str(step) / "params" / "d").iterdir())[0]
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  return f"params/d/{path.name}"


def steps(run) -> list[str]:
  """Names of directories; each step that was not set aside has its mark, and nothing else has."""
  names = sorted(path.name for path in run.checkpoints.iterdir())
  found = [name for name in names if not name.endswith(".committed")]
  assert sorted(set(names) - set(found)) == [f"{n}.committed" for n in found if n.isdigit()]
  return found


def test_list(run, verb):
  (run.checkpoints / "60.orbax-checkpoint-tmp").mkdir()
  shutil.copytree(run.checkpoints / "50", run.checkpoints / "45.corrupt")
  (run.checkpoints / "10" / "manifest.json").write_text("{")
  code, out, _ = verb("list")
  lines = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
  assert code == 0
  assert [(line[0], line[3]) for line in lines[1:]] == [
      ("60", "uncommitted"), ("50", "committed"), ("45", "quarantined"), ("40", "committed"),
      ("30", "committed"), ("20", "committed"), ("10", "damaged"),
  ]
  assert lines[2][4] == "newest, eval/test/accuracy 0.3" and lines[3][4] == "45.corrupt"
  assert lines[6][4] == "best, eval/test/accuracy 0.9"


def test_list_as_json(run, verb):
  info = run.read_info() | {"retention": Policy(1, None, Every(steps=20)).to_json()}
  run.write_info(info)
  code, out, _ = verb("list", "--json")
  rows = {row["step"]: row for row in json.loads(out)}
  assert code == 0 and list(rows) == [50, 40, 30, 20, 10]
  assert [step for step, row in rows.items() if "for ever" in row["marks"]] == [40, 20]
  assert rows[50]["marks"] == ["newest"] and rows[50]["examples_seen"] == 800
  files = [path for path in pathlib.Path(run.checkpoints / "50").rglob("*") if path.is_file()]
  sizes = [path.stat().st_size for path in files if path.name != "manifest.json"]
  assert rows[50]["bytes"] == sum(sizes)


def test_list_and_verify_start_no_jax(run):
  code = (
      "import sys; from vit_jax import cli\n"
      "try: cli.main(['checkpoint', sys.argv[1], sys.argv[2]])\n"
      "finally: assert not {'jax', 'tensorstore', 'orbax'} & set(sys.modules)"
  )
  for action in ("list", "verify"):
    subprocess.run([sys.executable, "-c", code, action, run.path], check=True)


def test_verify(run, verb):
  code, out, _ = verb("verify")
  assert code == 0 and [line.partition(":")[0] for line in out.splitlines()] == [
      "step 50", "step 40", "step 30", "step 20", "step 10"
  ]
  assert all(re.search(r": good, \d+ files, .*B, [0-9.]+ s$", line) for line in out.splitlines())
  first, second = damage(run, 50), damage(run, 20)
  (run.checkpoints / "20" / "_CHECKPOINT_METADATA").unlink()
  code, out, _ = verb("verify")
  lines = out.splitlines()
  assert code == 5 and lines[0] == f"step 50: DAMAGED: {first}: its content has changed"
  assert lines[3] == (
      f"step 20: DAMAGED: _CHECKPOINT_METADATA: missing; {second}: its content has changed"
  )
  assert verb("verify", "--step=40")[0] == 0 and verb("verify", "--step=20")[0] == 5
  (run.checkpoints / "40" / "manifest.json").unlink()
  code, out, _ = verb("verify", "--step=40")
  assert code == 5 and "step 40: DAMAGED: " in out and "manifest.json cannot be read" in out
  rows = {row["step"]: row["state"] for row in json.loads(verb("list", "--json")[1])}
  assert rows[40] == "damaged"
  code, _, err = verb("verify", "--step=99")
  assert code == 2 and "is no committed checkpoint" in err


def test_prune_by_the_runs_policy(run, verb):
  code, out, _ = verb("prune", "--dry-run")
  assert code == 0 and "would delete 10," in out and "nothing was deleted" in out
  assert steps(run) == ["10", "20", "30", "40", "50"]
  code, out, _ = verb("prune")
  assert code == 0 and out.splitlines()[1].startswith("deleting 30, ")
  assert steps(run) == ["20", "40", "50"]
  assert verb("prune")[1] == "nothing to delete\n"
  assert verb("prune", "--keep-latest=1")[0] == 0 and steps(run) == ["20", "50"]


def test_prune_of_a_run_whose_policy_was_not_recorded(run, verb):
  run.write_info(INFO)
  assert verb("prune")[0] == 0 and steps(run) == ["20", "40", "50"]


def test_prune_keeps_the_newest_good_one(run, verb):
  name = damage(run, 50)
  damage(run, 40)
  set_aside(run.checkpoints / "20")
  code, out, err = verb("prune", "--keep-latest=1", "--quarantined")
  assert code == 0 and f"step 50 is damaged ({name}: its content has changed)" in err
  # 30 is the newest good one, 10 now the best.
  assert steps(run) == ["10", "30", "40", "50"] and "deleting 20.corrupt" in out


def test_prune_with_a_lost_manifest(run, verb):
  """It takes no good one's place."""
  (run.checkpoints / "40" / "manifest.json").unlink()
  assert verb("prune", "--keep-latest=2")[0] == 0
  assert steps(run) == ["20", "30", "40", "50"]


def test_prune_without_a_good_one(run, verb):
  for step in ACCURACY:
    damage(run, step)
  code, out, err = verb("prune", "--quarantined")
  assert code == 5 and "nothing was deleted" in err and not out and len(steps(run)) == 5


def test_prune_is_refused_while_the_run_is_trained(run, verb):
  with run.lock():
    code, _, err = verb("prune")
    assert code == 2 and "is being trained by another process" in err
    assert verb("prune", "--dry-run")[0] == 0 and verb("verify")[0] == 0
  assert len(steps(run)) == 5


def test_what_is_no_run(tmp_path, verb):
  for action in ("list", "verify", "prune"):
    code, _, err = verb(action, path=tmp_path)
    assert code == 2 and "is no run: it has no run.json" in err


@pytest.mark.parametrize("words, said", [
    (("list", "--step=3"), "--step belongs to `vit-jax checkpoint verify`"),
    (("verify", "--dry-run"), "--dry-run belongs to `vit-jax checkpoint prune`"),
    (("prune", "--json"), "--json belongs to `vit-jax checkpoint list`"),
    (("prune", "--keep-latest=0"), "--keep-latest is at least 1"),
])
def test_options_that_do_not_belong(verb, words, said):
  code, _, err = verb(*words)
  assert code == 2 and said in err


def test_a_run_without_checkpoints(run, verb):
  shutil.rmtree(run.checkpoints)
  assert verb("list")[:2] == (0, "no checkpoints yet\n")
  assert verb("verify")[:2] == (0, "no committed checkpoints\n")
  assert verb("prune")[:2] == (0, "nothing to delete\n")

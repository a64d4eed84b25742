"""The shell scripts: their syntax, usage, exit codes, and when they install."""

import ast
import pathlib
import shutil
import subprocess
import sys

from fake_commands import FakeCommands
import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent.parent
SCRIPTS = [*sorted((REPOSITORY / "launch").glob("*.sh")), REPOSITORY / ".ci" / "run"]
COMMANDS = [script for script in SCRIPTS if script.name in ("quickstart.sh", "test.sh")]


def run(*command, **options) -> subprocess.CompletedProcess:
  return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def name_of(script: pathlib.Path) -> str:
  return str(script.relative_to(REPOSITORY))


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_syntax(script):
  checked = run("bash", "-n", script)
  assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_shellcheck(script):
  shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
  checked = run(shellcheck, "--external-sources", script, cwd=REPOSITORY)
  assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", COMMANDS, ids=name_of)
def test_help_says_how_to_call_it_and_installs_nothing(script, environment):
  for option in ("--help", "-h"):
    asked = run("bash", script, option, env=environment.variables)
    assert asked.returncode == 0 and f"usage: bash {name_of(script)}" in asked.stdout
  assert not environment.pip_calls


@pytest.mark.parametrize("script", COMMANDS, ids=name_of)
def test_a_dry_run_prints_what_is_left_to_do_and_does_nothing(script, checkout, environment):
  directory = checkout.parent / "a run"
  given = ["--all", "-k", "nothing at all"] if script.name == "test.sh" else [directory]
  script = checkout / "launch" / script.name
  files = sorted(checkout.rglob("*"))
  shown = run("bash", script, "--dry-run", *given, env=environment.variables)
  assert shown.returncode == 0, shown.stderr
  assert not environment.pip_calls and not directory.exists()
  assert sorted(checkout.rglob("*")) == files
  bare = {k: v for k, v in environment.variables.items() if k != "VIRTUAL_ENV"}
  made = run("bash", script, "--dry-run", env=bare).stdout.splitlines()
  made = [line for line in made if not line.startswith(("#", "export "))]
  assert made[0] == f"{bare.get('PYTHON', 'python3')} -m venv '{checkout}/.venv'"
  assert made[1] == f"source '{checkout}/.venv/bin/activate'"
  assert made[2].startswith("python -m pip install ")


@pytest.mark.parametrize("script", COMMANDS, ids=name_of)
@pytest.mark.parametrize("all_markers", [False, True], ids=["", "all"])
def test_what_a_dry_run_prints_is_what_is_done(script, all_markers, tmp_path):
  """Bash reads it, and calls the same programs with the same arguments."""
  fake = FakeCommands(tmp_path / "fake")
  fake.add("python")
  fake.add("vit-jax")
  run_directory = tmp_path / "a run"
  if script.name == "test.sh":
    given = ["-k", "nothing at all"]
    flags = [["--all", "--dry-run"], ["--all"]] if all_markers else [["--dry-run"], []]
  else:
    given, flags = [run_directory], [["--dry-run"], []]
  shown = fake.launch(script.name, *flags[0], *given)
  assert shown.returncode == 0 and not fake.take_calls(), shown.stderr
  assert fake.run("bash", "-euc", shown.stdout).returncode == 0
  printed = fake.take_calls()
  shutil.rmtree(run_directory, ignore_errors=True)
  assert fake.launch(script.name, *flags[1], *given).returncode == 0
  done = [call for call in fake.take_calls() if call[:2] != ["vit-jax", "status"]]
  assert done == printed
  assert ["python", "-m", "pip"] in [call[:3] for call in printed]
  assert (run_directory / "train_seconds").exists() == (script.name == "quickstart.sh")


@pytest.mark.parametrize("arguments", [["--fast"], ["-x"], ["one", "two"]])
def test_quickstart_refuses_what_it_does_not_know(arguments, environment, tmp_path):
  refused = run(
      "bash", REPOSITORY / "launch" / "quickstart.sh", *arguments, env=environment.variables,
      cwd=tmp_path,
  )
  assert refused.returncode == 2 and "usage:" in refused.stderr
  assert not environment.pip_calls and not (tmp_path / "one").exists()


def test_the_judge_knows_pytorch_only():
  tree = ast.parse((REPOSITORY / "launch" / "judge.py").read_text())
  imported = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      imported |= {name.name.partition(".")[0] for name in node.names}
    elif isinstance(node, ast.ImportFrom):
      imported.add(node.module.partition(".")[0])
  assert {"torch", "transformers"} <= imported
  assert not imported & {"jax", "flax", "vit_jax", "importlib"}


def install(checkout, environment, extras):
  script = 'set -euo pipefail; source "$0"; install_vit_jax "$1"'
  run("bash", "-c", script, checkout / "launch" / "environment.sh", extras,
      env=environment.variables, check=True)


def test_installs_once_for_each_set_of_extras(checkout, environment):
  for extras in ("torch", "test", "torch", "test"):
    install(checkout, environment, extras)
  assert [call.rpartition("[")[2] for call in environment.pip_calls] == ["torch]", "test]"]
  assert f"--constraint {checkout}/constraints.txt" in environment.pip_calls[0]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_installs_again_when_the_versions_changed(name, checkout, environment):
  install(checkout, environment, "torch")
  with (checkout / name).open("a") as file:
    file.write("# changed\n")
  install(checkout, environment, "test")
  install(checkout, environment, "torch")
  install(checkout, environment, "torch")
  assert len(environment.pip_calls) == 3


def test_installs_again_when_another_checkout_took_the_environment(
    checkout, environment, tmp_path
):
  other = tmp_path / "other"
  shutil.copytree(checkout, other)
  turns = (checkout, other, checkout)
  for one in turns:
    install(one, environment, "torch")
  assert [call.partition("--editable ")[2] for call in environment.pip_calls] == [
      f"{one}[torch]" for one in turns
  ]


def test_an_installation_that_failed_is_tried_again(checkout, environment):
  environment.variables["PIP_EXIT_CODE"] = "1"
  with pytest.raises(subprocess.CalledProcessError):
    install(checkout, environment, "torch")
  del environment.variables["PIP_EXIT_CODE"]
  install(checkout, environment, "torch")
  assert len(environment.pip_calls) == 2


@pytest.mark.parametrize(
    "body, code",
    [
        ("def test_it():\n  pass\n", 0),
        ("def test_it():\n  assert False\n", 1),
        ("", 5),
        ("import pytest\n\n@pytest.mark.slow\ndef test_it():\n  pass\n", 5),
    ],
    ids=["passes", "fails", "no test", "only slow tests"],
)
def test_test_sh_leaves_with_the_exit_code_of_pytest(body, code, checkout, environment):
  (checkout / "tests" / "test_it.py").write_text(body)
  environment.variables["TEST_PROCESSES"] = "0"
  script = checkout / "launch" / "test.sh"
  done = run("bash", script, "-p", "no:cacheprovider", env=environment.variables)
  assert done.returncode == code, done.stdout + done.stderr
  if "slow" in body:
    assert run("bash", script, "--all", env=environment.variables).returncode == 0
  # The package, timm beside it, and for --all the older transformers; each once.
  beside = ["timm", "transformers4"] if "slow" in body else ["timm"]
  assert len(environment.pip_calls) == 1 + len(beside)
  for name, call in zip(beside, environment.pip_calls[1:]):
    assert "--no-deps" in call and f"/{name} " in call


def test_the_gate_is_test_sh_in_a_new_environment(checkout, environment):
  leftover = checkout / ".venv" / "leftover"
  leftover.parent.mkdir()
  leftover.touch()
  (checkout / "launch" / "test.sh").write_text('echo "${VIRTUAL_ENV:-none} $#"; exit 7\n')
  done = run("bash", checkout / ".ci" / "run", env=environment.variables, cwd="/")
  assert (done.returncode, done.stdout) == (7, "none 0\n")
  assert not leftover.exists()

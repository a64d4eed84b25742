"""What the launchers have in common: help that teaches, quoting that bash reads back."""

import re

from fake_commands import FakeCommands, HOSTILE, REPOSITORY
import pytest

from vit_jax import config as config_lib

LAUNCHERS = ["gke.sh", "slurm.sh", "supervise.sh", "tpu_pod.sh"]


@pytest.fixture
def fake(tmp_path):
  return FakeCommands(tmp_path / "fake")


@pytest.mark.parametrize("script", LAUNCHERS)
def test_help_shows_an_example_and_every_option(script, fake):
  for asked in ("--help", "-h"):
    shown = fake.launch(script, asked)
    assert shown.returncode == 0 and f"usage: bash launch/{script} " in shown.stdout
  assert "Example" in shown.stdout and "--workdir=" in shown.stdout
  read = re.search(r'^read_options "([^"]*)" \\?\s*"?([a-z -]+)"?', (REPOSITORY / "launch" / script)
                   .read_text(), re.MULTILINE)
  for name in f"{read[1]} {read[2]}".split():
    assert f"--{name}" in shown.stdout


@pytest.mark.parametrize("script", ["slurm.sh", "supervise.sh"])
def test_the_examples_are_taken(script, fake):
  shown = fake.launch(script, "--help").stdout.replace("\\\n", " ")
  examples = re.findall(rf"^ +bash launch/{re.escape(script)} (.*)$", shown, re.MULTILINE)
  assert examples
  for example in examples:
    done = fake.launch(script, "--dry-run", *example.split())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["gke.sh", "tpu_pod.sh"])
def test_the_examples_with_a_verb_are_taken(script, fake):
  shown = fake.launch(script, "--help").stdout.replace("\\\n", " ")
  (example,) = re.findall(rf"^ +bash launch/{re.escape(script)} (.*)$", shown, re.MULTILINE)
  verb, *rest = example.split()
  done = fake.launch(script, verb, "--dry-run", *rest)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["gke.sh", "tpu_pod.sh"])
def test_the_examples_name_data_that_can_be_read_from_a_bucket(script, fake):
  shown = fake.launch(script, "--help").stdout.replace("\\\n", " ")
  (words,) = re.findall(r" -- +train (.*)$", shown, re.MULTILINE)
  options = dict(word.removeprefix("--").split("=", 1) for word in words.split())
  spec, _ = options.pop("config"), options.pop("workdir")
  overrides = {key.removeprefix("config."): value for key, value in options.items()}
  config = config_lib.load(spec, overrides)
  assert config.input.path.startswith("gs://") and config.input.dataset == "array_record"


@pytest.mark.parametrize("prefix", ["", "--name="])
@pytest.mark.parametrize("word", HOSTILE, ids=range(len(HOSTILE)))
def test_bash_reads_back_what_was_quoted(prefix, word, fake):
  script = 'source "$1"; eval "given=($(quoted "$2" last))"; printf "%s\\0" "${given[@]}"'
  arguments = REPOSITORY / "launch" / "arguments.sh"
  done = fake.run("bash", "-euc", script, "-", arguments, prefix + word)
  assert done.stdout == f"{prefix}{word}\0last\0", done.stderr


@pytest.mark.parametrize(
    "code, again", [(0, 1), (1, 1), (2, 1), (75, 0), (134, 0), (137, 0), (143, 0), (139, 1)]
)
def test_which_exit_codes_are_worth_a_restart(code, again, fake):
  arguments = REPOSITORY / "launch" / "arguments.sh"
  done = fake.run("bash", "-c", f'source "$0"; restartable {code}', arguments)
  assert done.returncode == again


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["train", "--", "train", "--workdir=x"], "'train' stands before --"),
        (["--first-delay=soon", "--", "train", "--workdir=x"], "--first-delay is 'soon'"),
        (["--longest-delay=-1", "--", "train", "--workdir=x"], "--longest-delay is '-1'"),
        (["--", "evaluate", "--workdir=x"], "'evaluate'"),
        (["--", "train"], "--workdir is missing"),
        ([], "nothing"),
    ],
)
def test_the_supervisor_names_wrong_arguments(arguments, named, fake):
  fake.add("vit-jax")
  refused = fake.launch("supervise.sh", *arguments)
  assert refused.returncode == 2 and named in refused.stderr and refused.stderr.count("\n") == 1
  assert not fake.take_calls()

"""launch/supervise.sh with a `vit-jax` that leaves, commits and hears signals as it is told."""

import os
import signal
import subprocess
import sys
import time

from fake_commands import FakeCommands, HOSTILE, REPOSITORY
import pytest

# Each run takes the first line of $PLAN: an exit code, or a signal to die by, and steps to commit.
# SIGTERM is counted; the first commits step 900 a little later, as long as no second interrupts.
VIT_JAX = r"""
trap 'echo TERM >>"$PLAN.signals"' TERM
read -r way steps <"$PLAN"
sed -i 1d "$PLAN"
for step in $steps; do
  mkdir -p "$RUN/checkpoints/$step"
  touch "$RUN/checkpoints/$step/manifest.json"
done
case $way in
  wait)
    echo started >>"$PLAN.started"
    until [[ -s $PLAN.signals ]]; do sleep 0.02; done
    sleep 0.3
    (($(wc -l <"$PLAN.signals") == 1)) || exit 130
    mkdir -p "$RUN/checkpoints/900"
    touch "$RUN/checkpoints/900/manifest.json"
    exit 75 ;;
  KILL | ABRT) kill -s "$way" $$ ;;
  *) exit "$way" ;;
esac
"""
QUICK = ["--first-delay=0.01", "--longest-delay=0.02"]


@pytest.fixture
def supervised(tmp_path):
  """Runs a plan; returns what came of it, with the count of runs of vit-jax in `runs`."""
  fake = FakeCommands(tmp_path / "fake")
  fake.add("vit-jax", VIT_JAX)
  plan, run = tmp_path / "plan", tmp_path / "the run"
  fake.variables |= {"PLAN": str(plan), "RUN": str(run)}

  def start(lines, options=QUICK, workdir=str(run)):
    plan.write_text("".join(line + "\n" for line in lines))
    done = fake.launch("supervise.sh", *options, "--", "train", f"--workdir={workdir}")
    done.runs = len([call for call in fake.take_calls() if call[0] == "vit-jax"])
    return done

  start.fake, start.plan, start.run = fake, plan, run
  return start


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 130])
def test_other_exit_codes_are_its_own(code, supervised):
  done = supervised([f"{code}", "0"])
  assert (done.returncode, done.runs) == (code, 1)


@pytest.mark.parametrize("way", ["75", "134", "137", "143", "ABRT", "KILL"])
def test_restarts_what_a_restart_helps(way, supervised):
  done = supervised([way, "0"])
  assert (done.returncode, done.runs) == (0, 2)
  assert "(1 of 3 without a new checkpoint)" in done.stderr


def test_gives_up_after_three_restarts_without_a_checkpoint(supervised):
  done = supervised(["75"] * 9)
  assert (done.returncode, done.runs) == (1, 4)
  assert "3 restarts brought no new checkpoint" in done.stderr


def test_a_checkpoint_begins_the_count_again(supervised):
  done = supervised(["75", "75", "75 10", "137", "137", "137 20 30", "75", "75", "75", "75", "75"])
  assert (done.returncode, done.runs) == (1, 9)


def test_each_commit_counts_also_one_behind_the_newest(supervised):
  """After step 100 was quarantined, steps 60 to 90 are progress."""
  done = supervised(["75 50 100", "75 60", "75 70", "75 80", "75 90", "0"])
  assert (done.returncode, done.runs) == (0, 6)


@pytest.mark.parametrize("name", ["7.corrupt", "tmp"])
def test_what_is_no_step_is_no_checkpoint(name, supervised):
  done = supervised(["75", f"75 {name}", "75", "75", "75"])
  assert (done.returncode, done.runs) == (1, 4)


def test_checkpoints_that_were_there_before_do_not_count(supervised):
  old = supervised.run / "checkpoints" / "5"
  old.mkdir(parents=True)
  (old / "manifest.json").touch()
  assert supervised(["75"] * 9).runs == 4


def test_the_runs_of_a_sweep_count(supervised):
  sweep = supervised.run.parent  # the run is one of it
  done = supervised(["75 1", "75 2", "75 3", "75 4", "0"], workdir=sweep)
  assert (done.returncode, done.runs) == (0, 5)


@pytest.mark.parametrize("index", [["--index=1"], ["--index", "1"], ["--index=01"]], ids=" ".join)
@pytest.mark.parametrize("run, runs", [("01_own", 5), ("00_other", 4), ("11_other", 4)])
def test_one_run_of_a_sweep_goes_by_its_own_checkpoints(index, run, runs, supervised):
  sweep = supervised.run
  supervised.fake.variables["RUN"] = str(sweep / run)
  supervised.plan.write_text("75 1\n75 2\n75 3\n75 4\n0\n")
  supervised.fake.launch("supervise.sh", *QUICK, "--", "sweep", f"--workdir={sweep}", *index)
  assert len(supervised.fake.take_calls()) == runs


def test_waits_twice_as_long_each_time_up_to_the_longest(supervised):
  plan = ["75"] * 3 + ["75 10", "75", "0"]
  done = supervised(plan, ["--first-delay=0.02", "--longest-delay=0.05"])
  waits = [line.partition("restart in ")[2].split()[0] for line in done.stderr.splitlines()]
  assert waits == ["0.02", "0.04", "0.05", "0.02", "0.04"]


LISTING = "gs://b/run/checkpoints/10/manifest.json"


@pytest.mark.parametrize(
    "script, runs",
    [
        (f"echo {LISTING}", 4),  # the same each time
        ("echo x >>$HOME/n; echo gs://b/run/checkpoints/$(wc -l <$HOME/n)/manifest.json", 6),
        ("echo 'ERROR: One or more URLs matched no objects.' >&2; exit 1", 4),
        ("echo 'ERROR: no credentials' >&2; exit 1", 4),
    ],
    ids=["unchanged", "a new one each time", "none", "cannot be listed"],
)
def test_a_bucket_is_listed_with_gcloud(script, runs, supervised):
  supervised.fake.add("gcloud", script)
  done = supervised(["75"] * 5 + ["0"], workdir="gs://b/run")
  assert done.runs == runs
  assert ("cannot list" in done.stderr) == ("credentials" in script)
  assert "matched no objects" not in done.stderr


def test_the_bucket_is_asked_for_manifests(supervised):
  supervised.fake.add("gcloud", f"echo {LISTING}")
  supervised.plan.write_text("0\n")
  supervised.fake.launch("supervise.sh", "--", "train", "--workdir", "gs://b/run/")
  assert supervised.fake.take_calls()[:2] == [
      ["gcloud", "storage", "ls", f"gs://b/run/{runs}checkpoints/*/manifest.json"]
      for runs in ("", "*/")
  ]


def test_the_runs_of_a_sweep_in_a_bucket_count(supervised):
  """gcloud takes a pattern without a match for an error."""
  supervised.fake.add("gcloud", """
    [[ $3 == 'gs://b/run/*/checkpoints/'* ]] || { echo 'matched no objects' >&2; exit 1; }
    echo x >>$HOME/n; echo gs://b/run/00_a/checkpoints/$(wc -l <$HOME/n)/manifest.json""")
  assert supervised(["75"] * 5 + ["0"], workdir="gs://b/run").runs == 6


def test_without_gcloud_the_reader_of_training_is_used(tmp_path):
  """What a container has: Python with epath."""
  steps = [tmp_path / "00_a" / "checkpoints" / "7", tmp_path / "checkpoints" / "12"]
  for step in steps:
    step.mkdir(parents=True)
    (step / "manifest.json").touch()
  fake = FakeCommands(tmp_path / "fake")
  fake.add("python", f"""
    [[ $3 == gs://b/run ]] && exec {sys.executable} -c "$2" "{tmp_path}" "${{@:4}}" """)
  script = """
    source "$0"
    command() { return 1; }  # there is no gcloud
    committed_checkpoints gs://b/run"""
  listed = fake.run("bash", "-c", script, REPOSITORY / "launch" / "checkpoints.sh")
  assert listed.stdout == "".join(f"{step}/manifest.json\n" for step in steps), listed.stderr


def begin(supervised, plan, options=QUICK) -> subprocess.Popen:
  supervised.plan.write_text(plan)
  return subprocess.Popen(
      ["bash", str(REPOSITORY / "launch" / "supervise.sh"), *options, "--", "train",
       f"--workdir={supervised.run}"],
      env=supervised.fake.variables, start_new_session=True, stderr=subprocess.PIPE, text=True,
      preexec_fn=hear_signals,
  )


def hear_signals() -> None:
  """bash cannot trap what it was started to ignore, as `nohup` and `&` have their commands do."""
  for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)


def wait_for(file):
  deadline = time.monotonic() + 20
  while not file.exists():
    assert time.monotonic() < deadline, f"{file} did not come"
    time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("whom", ["it alone", "its process group"])
def test_told_to_stop_it_lets_vit_jax_save_and_does_not_restart(number, whom, supervised):
  """Ctrl-C goes to a terminal's whole group: vit-jax must still hear it once."""
  process = begin(supervised, "wait\n0\n")
  wait_for(supervised.plan.with_suffix(".started"))
  (os.kill if whom == "it alone" else os.killpg)(process.pid, number)
  _, errors = process.communicate(timeout=20)
  assert process.returncode == 75, errors
  assert "stopped as asked; vit-jax left with 75" in errors
  assert "restart in" not in errors
  assert (supervised.run / "checkpoints" / "900" / "manifest.json").exists()
  assert len(supervised.fake.take_calls()) == 1


def test_told_to_stop_while_it_waits_to_restart(supervised):
  process = begin(supervised, "137\n0\n", ["--first-delay=60"])
  for line in process.stderr:
    if "restart in 60 s" in line:
      break
  began = time.monotonic()
  process.terminate()
  process.communicate(timeout=20)
  assert process.returncode == 137 and time.monotonic() - began < 10
  assert len(supervised.fake.take_calls()) == 1


def test_what_it_is_given_arrives_as_it_is(supervised):
  supervised.plan.write_text("75\n0\n")
  given = ["train", f"--workdir={supervised.run}", *HOSTILE]
  shown = supervised.fake.launch("supervise.sh", "--dry-run", "--", *given)
  assert shown.returncode == 0 and not supervised.fake.take_calls()
  assert supervised.fake.launch("supervise.sh", *QUICK, "--", *given).returncode == 0
  assert supervised.fake.take_calls() == [["vit-jax", *given]] * 2
  # What a dry run printed, run by bash, is the same.
  supervised.plan.write_text("0\n")
  assert supervised.fake.run("bash", "-c", shown.stdout).returncode == 0
  assert supervised.fake.take_calls() == [["vit-jax", *given]]
  assert not list(supervised.fake.home.glob("injected*"))


def test_a_workdir_injects_nothing(supervised):
  """Its checkpoints are found and its name arrives, whatever a shell would make of it."""
  run = supervised.run.with_name("""$(touch injected)'";& `touch injected` *[a] -n $HOME \\""")
  supervised.fake.variables["RUN"] = str(run)
  done = supervised(["75 1", "75 2", "75 3", "75 4", "75 5", "0"], workdir=run)
  assert (done.returncode, done.runs) == (0, 6)
  assert (run / "checkpoints" / "5" / "manifest.json").exists()
  assert not [*supervised.fake.home.rglob("injected*"), *run.parent.glob("injected*")]

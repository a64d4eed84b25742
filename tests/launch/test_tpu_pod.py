"""launch/tpu_pod.sh against a `gcloud` that notes what it is asked, and plays the machines."""

import math
import os
import tarfile

from fake_commands import check_golden, FakeCommands, HOSTILE, REPOSITORY
import pytest

from vit_jax.parallel.chips import CHIPS

PLACE = ["vit", "--zone=us-west4-a"]
TRAIN = ["--", "train", "--config=vit_i1k:B/16", "--workdir=gs://bucket/run"]
SLICES = ["--accelerator=v5litepod-64", "--slices=2", "--spot", "--project=my-project"]

# The first line of $STATES is the state of the queued resource; `ssh` may run on this machine.
ANSWERS = 'if [[ $4 == list ]]; then head -n 1 "$STATES"; sed -i 1d "$STATES"; fi'
CONNECTS = r"""
if [[ $4 == ssh ]]; then
  for word; do [[ $word != --command=* ]] || bash -c "${word#--command=}"; done
fi
"""
CASES = {
    "create": ["create", *PLACE, "--accelerator=v4-32", "--reserved"],
    "create_slices": ["create", *PLACE, *SLICES],
    "setup": ["setup", *PLACE],
    "run": ["run", *PLACE, *TRAIN],
    "logs": ["logs", *PLACE],
    "status": ["status", *PLACE],
    "stop": ["stop", *PLACE],
    "resume": ["resume", *PLACE, *SLICES, *TRAIN],
    "delete": ["delete", *PLACE],
}
# What the cloud says in the order it is asked, where a dry run assumes it.
ASSUMED = {"setup": ["ACTIVE"], "status": ["ACTIVE"], "resume": ["SUSPENDED", "ACTIVE"],
           "delete": ["ACTIVE"]}


@pytest.fixture
def cloud(tmp_path):
  """The fake programs; `states(...)` says what the cloud will answer."""
  fake = FakeCommands(tmp_path / "fake")
  fake.add("gcloud", ANSWERS)
  for name in ("tar", "mkdir", "sleep"):
    fake.add(name)
  file = tmp_path / "states"
  file.touch()
  fake.variables |= {"STATES": str(file)}
  fake.states = lambda *states: file.write_text("".join(state + "\n" for state in states))
  return fake


def asked(cloud, *arguments):
  """Runs the script, which must do well; the verbs that gcloud was called with."""
  done = cloud.launch("tpu_pod.sh", *arguments)
  assert done.returncode == 0, done.stderr
  return [call[4] for call in cloud.take_calls() if call[0] == "gcloud"]


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_runs_nothing_and_prints_what_would_run(case, cloud):
  verb, *rest = CASES[case]
  shown = cloud.launch("tpu_pod.sh", verb, "--dry-run", *rest)
  assert shown.returncode == 0 and not cloud.take_calls(), shown.stderr
  check_golden(f"tpu_pod_{case}.txt", shown.stdout)

  cloud.add("gcloud", ANSWERS)
  assert cloud.run("bash", "-euc", shown.stdout).returncode == 0
  printed = cloud.take_calls()
  cloud.states(*ASSUMED.get(case, []))
  assert cloud.launch("tpu_pod.sh", verb, *rest).returncode == 0
  assert cloud.take_calls() == printed != []


@pytest.mark.parametrize("tpu", ["v4", "v5p"])
def test_every_slice_that_can_be_planned_can_be_created(tpu, cloud):
  sizes = sorted({math.prod(shape) for shape in CHIPS[tpu].shapes()})
  for chips in (*sizes[:12], sizes[-1]):
    command = ["create", *PLACE, f"--accelerator={tpu}-{2 * chips}", "--dry-run"]
    assert cloud.launch("tpu_pod.sh", *command).returncode == 0, chips


@pytest.mark.parametrize(
    "accelerator, runtime",
    [("v4-8", "tpu-ubuntu2204-base"), ("v5litepod-16", "v2-alpha-tpuv5-lite"),
     ("v5p-128", "v2-alpha-tpuv5"), ("v6e-8", "v2-alpha-tpuv6e")],
)
def test_the_runtime_follows_the_accelerator(accelerator, runtime, cloud):
  command = ["create", *PLACE, f"--accelerator={accelerator}", "--dry-run"]
  assert f"--runtime-version={runtime} --node-id=vit" in cloud.launch("tpu_pod.sh", *command).stdout
  shown = cloud.launch("tpu_pod.sh", *command, "--runtime=v9-alpha").stdout
  assert "--runtime-version=v9-alpha" in shown and runtime not in shown


def test_create_and_delete_may_be_repeated(cloud):
  create = ["create", *PLACE, "--accelerator=v4-8"]
  assert asked(cloud, *create) == ["list", "create"]
  cloud.states("WAITING_FOR_RESOURCES")
  assert asked(cloud, *create) == ["list"]
  cloud.states("ACTIVE")
  assert asked(cloud, "delete", *PLACE) == ["list", "delete"]
  assert asked(cloud, "delete", *PLACE) == ["list"]


@pytest.mark.parametrize(
    "states, verbs",
    [
        (["ACTIVE", "ACTIVE"], ["list"] * 2),
        (["PROVISIONING", "PROVISIONING", "ACTIVE"], ["list"] * 3),
        (["SUSPENDING", "SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE"],
         ["list", "list", "delete", "create", "list", "list"]),
        (["FAILED", "ACTIVE"], ["list", "delete", "create", "list"]),
        (["", "ACTIVE"], ["list", "create", "list"]),
    ],
    ids=["ready", "on its way", "preempted", "failed", "deleted"],
)
def test_resume_does_what_is_left_to_do(states, verbs, cloud):
  cloud.states(*states)
  assert asked(cloud, "resume", *PLACE, *SLICES, *TRAIN) == verbs + ["scp", "ssh", "ssh", "ssh"]


@pytest.mark.parametrize("state", ["", "FAILED", "SUSPENDED"])
def test_setup_does_not_wait_for_what_will_not_come(state, cloud):
  cloud.states(state)
  done = cloud.launch("tpu_pod.sh", "setup", *PLACE)
  assert done.returncode == 1 and "resume" in done.stderr
  assert len(cloud.take_calls()) == 1


@pytest.mark.parametrize("verb", ["create", "setup", "resume", "delete"])
def test_a_cloud_that_cannot_be_asked_ends_it(verb, cloud):
  cloud.add("gcloud", "echo 'no credentials' >&2; exit 7")
  rest = SLICES if verb in ("create", "resume") else []
  done = cloud.launch("tpu_pod.sh", verb, *PLACE, *rest, *(TRAIN if verb == "resume" else []))
  assert done.returncode == 7 and "no credentials" in done.stderr
  assert len(cloud.take_calls()) == 1


@pytest.fixture
def worker(cloud):
  """A machine whose systemd has the programs of the unit run at once, in the unit's directory."""
  cloud.add("gcloud", ANSWERS + CONNECTS)
  (cloud.home / "vit_jax").mkdir()
  (cloud.home / "vit_jax" / "launch").symlink_to(REPOSITORY / "launch")
  cloud.add("sudo", 'exec "$@"')
  cloud.add("systemctl", '[[ $1 == is-active && -e $HOME/active ]]')
  cloud.add("systemd-run", r"""
for word; do case $word in --working-directory=*) cd "${word#*=}" ;; esac; done
while [[ $1 == --* ]]; do shift; done
exec "$@" """)
  cloud.add("vit-jax")
  return cloud


def test_run_gives_vit_jax_what_it_was_given(worker):
  given = ["train", "--workdir=gs://bucket/a b'$(x)", *HOSTILE]
  done = worker.launch("tpu_pod.sh", "run", *PLACE, "--", *given)
  assert done.returncode == 0, done.stderr
  calls = worker.take_calls()
  assert [call for call in calls if call[0] == "vit-jax"] == [["vit-jax", *given]]
  # Nothing of it in the unit's own command, in which systemd would replace $NAME and %.
  unit = next(call for call in calls if call[0] == "systemd-run")
  assert unit[-2:] == ["bash", "run.sh"] and "--property=KillMode=mixed" in unit
  assert not list(worker.home.rglob("injected*"))


@pytest.mark.parametrize("verb", ["run", "setup"])
def test_what_runs_is_left_alone(verb, worker):
  (worker.home / "active").touch()
  worker.add("diff")
  worker.states("ACTIVE")
  done = worker.launch("tpu_pod.sh", verb, *PLACE, *(TRAIN if verb == "run" else []))
  assert done.returncode == 0 and "vit-jax runs" in done.stdout
  assert not {"systemd-run", "vit-jax", "python3"} & {call[0] for call in worker.take_calls()}


@pytest.mark.parametrize("other", [False, True], ids=["same code", "other code"])
def test_where_a_worker_runs_no_other_gets_other_code(other, worker):
  """As where one of several was lost: content counts, not times, and no bytecode."""
  (worker.home / "active").touch()
  worker.add("tar", 'if [[ $1 == --extract ]]; then exec /bin/tar "$@"; fi')
  worker.add("mkdir", 'exec /bin/mkdir "$@"')
  installed = worker.home / "vit_jax"
  (installed / "launch").unlink()
  for part in ("configs", "launch", "vit_jax/models"):
    (installed / part).mkdir(parents=True)
    (installed / part / "a.py").write_text("1\n")
  for name in ("constraints.txt", "pyproject.toml"):
    (installed / name).write_text("2\n")
  with tarfile.open(worker.home / "vit_jax.tar.gz", "w:gz") as archive:
    for path in sorted(installed.iterdir()):
      archive.add(path, path.name)
  (installed / "vit_jax" / "__pycache__").mkdir()
  (worker.home / "vit_jax.new" / "configs").mkdir(parents=True)
  (worker.home / "vit_jax.new" / "configs" / "of_an_earlier_checkout.py").touch()
  os.utime(installed / "configs" / "a.py", (0, 0))
  if other:
    (installed / "vit_jax" / "models" / "a.py").write_text("3\n")
  worker.states("ACTIVE", "ACTIVE")
  done = worker.launch("tpu_pod.sh", "resume", *PLACE, *SLICES, *TRAIN)
  calls = worker.take_calls()
  assert not {"systemd-run", "vit-jax", "python3"} & {call[0] for call in calls}
  connections = [call for call in calls if call[0] == "gcloud" and call[4] == "ssh"]
  if other:
    assert done.returncode == 1 and len(connections) == 1
    assert "models/a.py" in done.stderr
    assert "runs, with other code than this checkout: stop vit first" in done.stderr
  else:
    assert done.returncode == 0 and len(connections) == 3
    assert "left as it is" in done.stdout and "runs already" in done.stdout


def test_setup_installs_on_a_worker(worker):
  worker.states("ACTIVE")
  worker.add("python3")
  worker.add("rm")
  done = worker.launch("tpu_pod.sh", "setup", *PLACE)
  assert done.returncode == 0, done.stderr
  calls = worker.take_calls()
  packed, unpacked = (call for call in calls if call[0] == "tar")
  for name in packed[packed.index("--exclude=__pycache__") + 1:]:
    assert (REPOSITORY / name).exists()
  assert unpacked[-1] == "--file=../vit_jax.tar.gz"
  installed = [call for call in calls if call[0] == "python3"][-1]
  assert installed[-1] == "--editable=.[gcs,tpu]"


@pytest.mark.parametrize(
    "arguments, named, fix",
    [
        ([], "the verb", "write create"),
        (["destroy", *PLACE], "'destroy'", "write create"),
        (["stop"], "NAME", "lower-case"),
        (["stop", "Vit", "--zone=us-west4-a"], "'Vit'", "lower-case"),
        (["stop", "a" * 41, "--zone=us-west4-a"], "41 characters", "at most 40"),
        (["stop", "vit; rm -r x", "--zone=us-west4-a"], "'vit; rm -r x'", "lower-case"),
        (["stop", "vit\nx", "--zone=us-west4-a"], r"$'vit\nx'", "lower-case"),
        (["stop", "vit", "more", "--zone=us-west4-a"], "'more'", "write VERB NAME"),
        (["stop", "vit"], "--zone is missing", "--zone=VALUE"),
        (["stop", "vit", "--zone=$(x)"], "--zone is '$(x)'", "us-west4-a"),
        (["stop", "vit", "--zone", "us-west4-a"], "--zone needs a value", "--zone=VALUE"),
        (["stop", *PLACE, "--zone=us-west4-b"], "--zone is given twice", "leave one out"),
        (["stop", *PLACE, "--dry-run=yes"], "--dry-run takes no value", "--dry-run alone"),
        (["stop", *PLACE, "--zones=x"], "'--zones=x' is no option", "--help"),
        (["stop", *PLACE, "--zone project=x"], "is no option", "--help"),
        (["stop", *PLACE, "--project=a b"], "--project is 'a b'", "ID"),
        (["create", *PLACE], "--accelerator is missing", "--accelerator=VALUE"),
        (["create", *PLACE, "--accelerator=v5e-8"], "'v5e-8'", "v5litepod-N"),
        (["create", *PLACE, "--accelerator=v5litepod-48"], "'v5litepod-48'", "32, 64"),
        (["create", *PLACE, "--accelerator=v5p-96"], "'v5p-96'", "32, 64 or a multiple"),
        (["create", *PLACE, "--accelerator=v4-8320"], "'v4-8320'", "at most 8192"),
        (["create", *PLACE, "--accelerator=v5p-3712"], "'v5p-3712'", "a cuboid of 4x4x4 chips"),
        (["create", *PLACE, "--accelerator=v4-18446744073709551616"], "'v4-18", "v5p-N or v6e-N"),
        (["create", *PLACE, "--accelerator=v4-8", "--slices=0"], "--slices is '0'", "from 1"),
        (["create", *PLACE, "--accelerator=v4-8", "--spot", "--reserved"], "--spot", "leave one"),
        (["create", *PLACE, "--accelerator=v4-8", "--runtime=a;b"], "--runtime", "v2-alpha"),
        (["run", *PLACE], "nothing", "-- train"),
        (["run", *PLACE, "--", "rm", "-r"], "'rm'", "-- train"),
        (["run", *PLACE, "--", "train"], "--workdir is missing", "--workdir=RUN"),
        (["run", *PLACE, "--", "train", "--workdir=/disk"], "'/disk'", "gs://BUCKET/RUN"),
        (["run", *PLACE, "--", "train", "--workdir=gs://b/*"], "'gs://b/*'", "gs://BUCKET/RUN"),
    ],
)
def test_wrong_arguments_are_named_with_the_fix(arguments, named, fix, cloud):
  refused = cloud.launch("tpu_pod.sh", *arguments)
  assert refused.returncode == 2 and not refused.stdout
  assert refused.stderr.startswith("tpu_pod.sh: ") and refused.stderr.count("\n") == 1
  assert named in refused.stderr and fix in refused.stderr
  assert not cloud.take_calls()

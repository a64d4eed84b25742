"""launch/slurm.sh: the job that it submits, and what that job does on a cluster of fakes."""

import shutil

from fake_commands import check_golden, FakeCommands, HOSTILE, REPOSITORY
import pytest

TRAIN = ["--", "train", "--config=vit_i1k:B/16", "--workdir=/runs/vit"]
CASES = {
    "train": ["--nodes=4", "--gpus-per-node=8", "--time=24:00:00", "--partition=gpu", *TRAIN],
    "sweep": ["--gpus-per-node=1", "--array=0-7%2", "--name=tune", "--account=lab", "--mem=64G",
              "--cpus-per-task=8", "--grace=120", "--", "sweep", "--config=finetune:cifar10",
              "--workdir=/runs/tune"],
}


@pytest.fixture
def cluster(tmp_path):
  """`sbatch` keeps the job's text; `srun` runs the step's command once, here."""
  fake = FakeCommands(tmp_path / "fake")
  fake.add("sbatch", 'cat >"$HOME/job"')
  fake.add("srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
  fake.add("scontrol")
  fake.variables |= {"SLURM_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}
  return fake


@pytest.mark.parametrize("case", CASES)
def test_what_is_submitted_is_what_a_dry_run_prints(case, cluster):
  shown = cluster.launch("slurm.sh", "--dry-run", *CASES[case])
  assert shown.returncode == 0 and not cluster.take_calls(), shown.stderr
  check_golden(f"slurm_{case}.txt", shown.stdout)
  assert cluster.launch("slurm.sh", *CASES[case]).returncode == 0
  assert cluster.take_calls() == [["sbatch"]]
  assert (cluster.home / "job").read_text() == shown.stdout


@pytest.mark.parametrize("array", [False, True])
def test_vit_jax_gets_what_was_given(array, cluster):
  cluster.add("vit-jax")
  given = ["sweep" if array else "train", "--workdir=/runs/a b'$(x)\n", *HOSTILE]
  cluster.launch("slurm.sh", "--gpus-per-node=2", *["--array=0-7"] * array, "--", *given)
  done = cluster.run("bash", cluster.home / "job")
  assert done.returncode == 0, done.stderr
  got = [call for call in cluster.take_calls() if call[0] == "vit-jax"]
  assert got == [["vit-jax", *given, *["--index=3"] * array]]
  assert not list(cluster.home.rglob("injected*"))


def test_what_is_given_adds_no_directive(cluster):
  """Slurm reads #SBATCH lines up to the first command, in quotes or not."""
  shown = cluster.launch("slurm.sh", "--dry-run", "--gpus-per-node=1", *TRAIN, *HOSTILE).stdout
  head, _, rest = shown.partition("\nlaunch=")
  assert "#SBATCH --x" not in head and "\n#SBATCH --x" in rest
  assert all(line.startswith("#") for line in head.splitlines())


def test_paths_are_those_of_where_it_was_submitted(cluster, tmp_path):
  cluster.add("vit-jax", 'pwd >"$HOME/place"; mkdir -p runs/a/checkpoints/5'
                         '; touch runs/a/checkpoints/5/manifest.json; exit 143')
  cluster.launch("slurm.sh", "--gpus-per-node=1", "--", "train", "--workdir=runs/a")
  cluster.add("srun", 'cd "$PWD"; vit-jax; exit 75')
  (tmp_path / "submitted").mkdir()
  cluster.take_calls()
  cluster.run("bash", cluster.home / "job", cwd=tmp_path / "submitted")
  assert (cluster.home / "place").read_text() == f"{tmp_path / 'submitted'}\n"
  assert ["scontrol", "requeue", "17"] in cluster.take_calls()  # its checkpoint was seen there


@pytest.mark.parametrize(
    "code, checkpoint, again",
    [(75, True, True), (137, True, True), (75, False, False), (0, True, False), (3, True, False)],
)
def test_a_turn_that_brought_a_checkpoint_queues_again(code, checkpoint, again, cluster, tmp_path):
  run = tmp_path / "run"
  cluster.launch("slurm.sh", "--gpus-per-node=1", "--", "train", f"--workdir={run}")
  save = f'mkdir -p "{run}/checkpoints/5"; touch "{run}/checkpoints/5/manifest.json"'
  cluster.add("srun", f"{save if checkpoint else ''}\nexit {code}")
  cluster.take_calls()
  assert cluster.run("bash", cluster.home / "job").returncode == code
  calls = cluster.take_calls()
  assert (["scontrol", "requeue", "17"] in calls) == again


@pytest.mark.parametrize(
    "saved, again", [("03_rate=0.1", True), ("04_rate=0.2", False), ("103_rate=0.3", False)]
)
@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_task_of_an_array_goes_by_its_own_run(where, saved, again, cluster, tmp_path):
  """Else it is queued again for as long as others advance."""
  sweep = "gs://b/sweep" if where == "bucket" else tmp_path / "sweep"
  cluster.launch("slurm.sh", "--gpus-per-node=1", "--array=0-7", "--", "sweep",
                 f"--workdir={sweep}")
  manifest = f"{saved}/checkpoints/5/manifest.json"
  # What gcloud does: a bucket's patterns are expanded here by bash, in a directory.
  cluster.add("gcloud", f"""cd {tmp_path} && shopt -s failglob && printf '%s\\n' ${{3#gs://b/}} ||
    {{ echo 'ERROR: One or more URLs matched no objects.' >&2; exit 1; }}""")
  file = tmp_path / "sweep" / manifest
  cluster.add("srun", f"mkdir -p {file.parent}; touch {file}; exit 75")
  cluster.take_calls()
  assert cluster.run("bash", cluster.home / "job").returncode == 75
  calls = cluster.take_calls()
  assert (["scontrol", "requeue", "17"] in calls) == again
  listed = {call[-1] for call in calls if call[0] == "gcloud"}
  assert listed == ({f"{sweep}/03_*/checkpoints/*/manifest.json"} if where == "bucket" else set())


def test_the_job_lists_a_bucket_with_the_python_of_its_environment(cluster, tmp_path):
  """Of a checkout with a .venv, where none is active; gcloud is missing."""
  checkout = tmp_path / "a checkout"
  shutil.copytree(REPOSITORY / "launch", checkout / "launch")
  (checkout / ".venv" / "bin").mkdir(parents=True)
  (checkout / ".venv" / "bin" / "activate").write_text('python() { echo "$@" >>"$HOME/python"; }')
  job = cluster.run("bash", checkout / "launch" / "slurm.sh", "--dry-run", "--gpus-per-node=1",
                    "--", "train", "--workdir=gs://b/run").stdout
  cluster.add("srun")
  del cluster.variables["VIRTUAL_ENV"]
  hidden = 'command() { [[ $2 != gcloud ]]; }\n'
  done = cluster.run("bash", "-c", hidden + job)
  assert done.returncode == 0, done.stderr
  assert "gs://b/run" in (cluster.home / "python").read_text()


@pytest.mark.parametrize(
    "arguments, named, fix",
    [
        (TRAIN, "--gpus-per-node is missing", "--gpus-per-node=VALUE"),
        (["--gpus-per-node=1", "--array=7-0", *TRAIN], "--array is '7-0'", "as in 0-7"),
        (["--gpus-per-node=all", *TRAIN], "--gpus-per-node is 'all'", "whole number"),
        (["--gpus-per-node=8", "--nodes=-1", *TRAIN], "--nodes is '-1'", "whole number"),
        (["--gpus-per-node=8", "--grace=0", *TRAIN], "--grace is '0'", "from 1"),
        (["--gpus-per-node=8", "--cpus-per-task=x", *TRAIN], "--cpus-per-task", "whole number"),
        (["--gpus-per-node=8", "--name=a\n#SBATCH --x", *TRAIN], "--name", "letters"),
        (["--gpus-per-node=8", "--partition=a b", *TRAIN], "--partition is 'a b'", "letters"),
        (["--gpus-per-node=8", "--time=soon", *TRAIN], "--time is 'soon'", "24:00:00"),
        (["--gpus-per-node=8", "--array=x", "--", "sweep"], "--array is 'x'", "0-7"),
        (["--gpus-per-node=8", "--array=0-7", *TRAIN], "'train'", "-- sweep"),
        (["--gpus-per-node=8", "--", "sweep", "--workdir=x"], "'sweep'", "-- train"),
        (["--gpus-per-node=8", "train"], "'train' stands before --", "after --"),
        (["--gpus-per-node=8"], "nothing", "-- train"),
        (["--gpus-per-node=8", "--", "train"], "--workdir is missing", "--workdir=RUN"),
    ],
)
def test_wrong_arguments_are_named_with_the_fix(arguments, named, fix, cluster):
  refused = cluster.launch("slurm.sh", *arguments)
  assert refused.returncode == 2 and not refused.stdout
  assert refused.stderr.startswith("slurm.sh: ") and refused.stderr.count("\n") == 1
  assert named in refused.stderr and fix in refused.stderr
  assert not cluster.take_calls()

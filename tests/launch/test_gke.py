"""launch/gke.sh: the manifest against JobSet's schema and as Kubernetes reads it, and kubectl."""

import json
import pathlib
import re

from fake_commands import check_golden, FakeCommands, HOSTILE
import jsonschema
import pytest
import yaml

from vit_jax.parallel.chips import CHIPS

SCHEMA = json.loads((pathlib.Path(__file__).parent / "jobset.schema.json").read_text())
TRAIN = ["--", "train", "--config=vit_i1k:B/16", "--workdir=gs://bucket/run"]
SWEEP = [
    "--", "sweep", "--config=finetune:imagenet", "--config.init.checkpoint=gs://bucket/vit",
    "--config.input.dataset=array_record", "--config.input.path=gs://bucket/imagenet",
    "--workdir=gs://bucket/rates",
]
TPU = ["run", "vit", "--image=registry/vit:1", "--tpu=v5e", "--topology=8x8"]
GPU = ["run", "vit", "--image=registry/vit:1", "--gpus=8", "--gpu=nvidia-h100-80gb"]
MANIFESTS = {
    "tpu": [*TPU, "--slices=2", "--spot", "--service-account=trainer", *TRAIN],
    "gpu": [*GPU, "--nodes=4", "--restarts=9", *TRAIN],
    "sweep": [*GPU, "--nodes=2", "--runs=4", *SWEEP],
}


def faults(document) -> list[str]:
  """What in a manifest the schema forbids."""
  found = jsonschema.Draft202012Validator(SCHEMA).iter_errors(document)
  return [f"{error.json_path}: {error.message}" for error in found]


def expand(word: str, variables: dict[str, str]) -> str:
  """As Kubernetes reads a container's args: $(NAME) is replaced where it is set, $$ is a $."""
  def replace(match):
    return "$" if match[0] == "$$" else variables.get(match[1], match[0])
  return re.sub(r"\$\$|\$\(([^()$]+)\)", replace, word)


@pytest.fixture
def cluster(tmp_path):
  fake = FakeCommands(tmp_path / "fake")
  fake.add("kubectl", '[[ $1 != apply ]] || cat >"$HOME/applied"')
  return fake


def manifest(cluster, *arguments) -> dict:
  shown = cluster.launch("gke.sh", arguments[0], "--dry-run", *arguments[1:])
  assert shown.returncode == 0, shown.stderr
  return yaml.safe_load(shown.stdout)


def job_of(document) -> tuple[dict, dict, dict]:
  """The replicated job, its job's spec, and its only container."""
  (replicated,) = document["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  return replicated, job, container


@pytest.mark.parametrize("case", MANIFESTS)
def test_what_is_applied_is_what_a_dry_run_prints(case, cluster):
  verb, *rest = MANIFESTS[case]
  shown = cluster.launch("gke.sh", verb, "--dry-run", *rest)
  assert shown.returncode == 0 and not cluster.take_calls(), shown.stderr
  check_golden(f"gke_{case}.yaml", shown.stdout)
  assert faults(yaml.safe_load(shown.stdout)) == []
  for _ in range(2):
    assert cluster.launch("gke.sh", verb, *rest).returncode == 0
    assert cluster.take_calls() == [["kubectl", "apply", "-f", "-"]]
    assert (cluster.home / "applied").read_text() == shown.stdout


@pytest.mark.parametrize(
    "path, value",
    [
        (["spec", "replicatedJobs", 0, "replicas"], "2"),
        (["spec", "replicatedJobs", 0, "template", "spec", "paralellism"], 4),
        (["spec", "failurePolicy", "rules", 0, "action"], "Restart"),
        (["metadata", "name"], "Vit"),
        (["spec", "replicatedJobs", 0, "template", "spec", "template"], {}),
    ],
)
def test_the_schema_refuses(path, value, cluster):
  document = manifest(cluster, *MANIFESTS["tpu"])
  place = document
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = value
  assert len(faults(document)) == 1


@pytest.mark.parametrize("base", [TPU, [*GPU, "--nodes=3"]], ids=["tpu", "gpu"])
def test_the_container_gets_what_was_given(base, cluster):
  given = ["train", "--workdir=gs://bucket/a b'$(x)", *HOSTILE]
  _, _, container = job_of(manifest(cluster, *base, "--", *given))
  words = [expand(word, {"JOB_COMPLETION_INDEX": "2", "x": "?"}) for word in container["args"]]
  assert words[:len(given)] == given
  assert container["command"] == ["bash", "/opt/vit_jax/launch/supervise.sh", "--"]
  # TPU machines find each other; GPU machines are told.
  told = ["--coordinator=vit-worker-0-0.vit:8476", "--processes=3", "--process=2"]
  assert words[len(given):] == ["--start-timeout=86400", *(told if base is not TPU else [])]
  assert not list(cluster.home.rglob("injected*"))


@pytest.mark.parametrize(
    "tpu, topology, options, accelerator, hosts, chips",
    [
        ("v4", "2x2x4", [], "tpu-v4-podslice", 4, 4),
        ("v5e", "1x1", [], "tpu-v5-lite-podslice", 1, 1),
        ("v5e", "2x4", [], "tpu-v5-lite-podslice", 1, 8),
        ("v5e", "2x4", ["--chips-per-host=4"], "tpu-v5-lite-podslice", 2, 4),
        ("v5e", "16x16", [], "tpu-v5-lite-podslice", 64, 4),
        ("v5p", "4x4x8", [], "tpu-v5p-slice", 32, 4),
        ("v6e", "4x4", [], "tpu-v6e-slice", 4, 4),
    ],
)
def test_a_slice_has_a_pod_for_each_of_its_machines(
    tpu, topology, options, accelerator, hosts, chips, cluster
):
  replicated, job, container = job_of(manifest(
      cluster, "run", "vit", "--image=i", f"--tpu={tpu}", f"--topology={topology}", "--slices=3",
      *options, *TRAIN,
  ))
  assert (replicated["replicas"], job["parallelism"], job["completions"]) == (3, hosts, hosts)
  assert container["resources"] == {"limits": {"google.com/tpu": chips}}
  assert job["template"]["spec"]["nodeSelector"] == {
      "cloud.google.com/gke-tpu-accelerator": accelerator,
      "cloud.google.com/gke-tpu-topology": topology,
  }


@pytest.mark.parametrize("tpu", ["v4", "v5e", "v5p", "v6e"])
def test_every_slice_that_can_be_planned_can_be_launched(tpu, cluster):
  shapes = CHIPS[tpu].shapes()
  for shape in shapes[:8] + shapes[-1:]:
    shown = cluster.launch(
        "gke.sh", "run", "vit", "--image=i", f"--tpu={tpu}",
        f"--topology={'x'.join(map(str, shape))}", "--dry-run", *TRAIN,
    )
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("given", [[], ["--start-timeout=60"], ["--start-timeout", "60"]])
def test_pods_wait_a_day_for_the_others(given, cluster):
  waiting = job_of(manifest(cluster, *TPU, *TRAIN, *given))[2]["args"]
  assert waiting == [*TRAIN[1:], *(given or ["--start-timeout=86400"])]
  alone = job_of(manifest(cluster, *GPU, *TRAIN, *given))[2]["args"]
  assert alone == [*TRAIN[1:], *given]


def test_images_of_worker_processes_have_room(cluster):
  pod = job_of(manifest(cluster, *TPU, *TRAIN))[1]["template"]["spec"]
  assert pod["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
  assert pod["containers"][0]["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]


def test_one_gpu_machine_needs_no_coordinator(cluster):
  assert job_of(manifest(cluster, *GPU, *TRAIN))[2]["args"] == TRAIN[1:]


def test_each_job_of_a_sweep_trains_its_own_run(cluster):
  """On machines that meet at that job's first pod, and wait for none of another job."""
  replicated, job, container = job_of(manifest(cluster, *MANIFESTS["sweep"]))
  assert (replicated["replicas"], job["parallelism"]) == (4, 2)
  (variable,) = container["env"]
  index = "metadata.annotations['jobset.sigs.k8s.io/job-index']"
  assert variable["valueFrom"] == {"fieldRef": {"fieldPath": index}}
  told = {variable["name"]: "3", "JOB_COMPLETION_INDEX": "1"}
  assert [expand(word, told) for word in container["args"]] == [
      *SWEEP[1:], "--index=3", "--start-timeout=86400", "--coordinator=vit-worker-3-0.vit:8476",
      "--processes=2", "--process=1",
  ]
  alone = job_of(manifest(cluster, *GPU, "--runs=4", *SWEEP))[2]["args"]
  assert [expand(word, told) for word in alone] == [*SWEEP[1:], "--index=3"]


def test_a_sweep_in_one_job_trains_its_runs_one_after_the_other(cluster):
  container = job_of(manifest(cluster, *TPU, *SWEEP))[2]
  assert container["args"] == [*SWEEP[1:], "--start-timeout=86400"] and "env" not in container


@pytest.mark.parametrize(
    "code, disrupted, ends",
    [(75, False, False), (134, False, False), (137, False, False), (143, False, False),
     (1, False, True), (2, False, True), (4, False, True), (1, True, False)],
)
def test_only_errors_that_stay_end_the_set(code, disrupted, ends, cluster):
  """The first rule that fits decides, for the pod and then for the set."""
  document = manifest(cluster, *MANIFESTS["tpu"])
  _, job, container = job_of(document)
  assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
  reason = "BackoffLimitExceeded"
  for rule in job["podFailurePolicy"]["rules"]:
    if "onPodConditions" in rule:
      assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
      fits = disrupted
    else:
      codes = rule["onExitCodes"]
      assert codes["operator"] == "NotIn" and codes["containerName"] == container["name"]
      fits = code not in codes["values"]
    if fits:
      reason = {"FailJob": "PodFailurePolicy"}.get(rule["action"], reason)
      break
  (rule,) = document["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet"
  assert (reason in rule["onJobFailureReasons"]) == ends


@pytest.mark.parametrize("verb", ["logs", "status", "delete"])
def test_other_verbs_print_and_run_the_same(verb, cluster):
  shown = cluster.launch("gke.sh", verb, "vit", "--dry-run")
  assert shown.returncode == 0 and not cluster.take_calls()
  check_golden(f"gke_{verb}.txt", shown.stdout)
  assert cluster.run("bash", "-c", shown.stdout).returncode == 0
  printed = cluster.take_calls()
  assert cluster.launch("gke.sh", verb, "vit").returncode == 0
  assert cluster.take_calls() == printed != []


@pytest.mark.parametrize(
    "arguments, named, fix",
    [
        (["start", "vit"], "'start'", "write run"),
        (["run", "Vit"], "'Vit'", "lower-case"),
        (["run", "a\nspec: x"], "NAME", "lower-case"),
        (["run", "vit", "--tpu=v5e"], "--image is missing", "--image=VALUE"),
        (["run", "vit", '--image=i"\nx: y'], "--image", "REGISTRY/NAME:TAG"),
        (["run", "vit", "--image=i"], "neither --tpu nor --gpus", "add --tpu"),
        (["run", "vit", "--image=i", "--tpu=v3", "--topology=4x4"], "'v3'", "v4, v5e"),
        (["run", "vit", "--image=i", "--tpu=v5e"], "--topology is missing", "--topology=VALUE"),
        (["run", "vit", "--image=i", "--tpu=v5e", "--topology=2x2x2"], "'2x2x2'", "2x4, 4x4"),
        (["run", "vit", "--image=i", "--tpu=v6e", "--topology=4x2"], "'4x2'", "2x4, 4x4"),
        (["run", "vit", "--image=i", "--tpu=v5p", "--topology=4x8x4"], "'4x8x4'", "not fall"),
        (["run", "vit", "--image=i", "--tpu=v4", "--topology=16x16x20"], "'16x16x20'", "4096"),
        (["run", "vit", "--image=i", "--tpu=v5p", "--topology=4x4"], "'4x4'", "2x2x2"),
        ([*TPU, "--chips-per-host=7", *TRAIN], "--chips-per-host is '7'", "8x8 has 4 chips"),
        ([*TPU, "--chips-per-host=8", *TRAIN], "--chips-per-host is '8'", "8x8 has 4 chips"),
        (["run", "vit", "--image=i", "--tpu=v5e", "--topology=2x4", "--chips-per-host=2", *TRAIN],
         "--chips-per-host is '2'", "2x4 has 4 or 8 chips"),
        (["run", "vit", "--image=i", "--tpu=v5p", "--topology=4x4x4", "--chips-per-host=8", *TRAIN],
         "--chips-per-host is '8'", "4x4x4 has 4 chips"),
        (["run", "vit", "--image=i", "--tpu=v4", "--topology=2x2x1", "--chips-per-host=2", *TRAIN],
         "--chips-per-host is '2'", "2x2x1 has 4 chips"),
        ([*TPU, "--gpus=8", *TRAIN], "--gpus does not go", "--tpu, or --gpus"),
        ([*GPU, "--slices=2", *TRAIN], "--slices does not go", "--tpu, or --gpus"),
        (["run", "vit", "--image=i", "--gpus=8"], "--gpu is missing", "--gpu=VALUE"),
        ([*GPU, "--nodes=two", *TRAIN], "--nodes is 'two'", "whole number"),
        ([*TPU, "--service-account=a b", *TRAIN], "--service-account", "lower-case"),
        ([*TPU, "--restarts=x", *TRAIN], "--restarts", "whole number"),
        ([*TPU, "--", "evaluate"], "'evaluate'", "-- train|sweep"),
        ([*GPU, "--runs=4", *TRAIN], "'train'", "-- sweep"),
        ([*GPU, "--runs=all", *SWEEP], "--runs is 'all'", "whole number"),
        ([*GPU, "--runs=4", *SWEEP, "--index=1"], "--index=1", "--runs gives each job its own"),
        ([*TPU, "--runs=4", *SWEEP], "--runs does not go with --tpu", "sweep ... --index=N"),
        ([*TPU, "--", "train", "--workdir=/disk"], "'/disk'", "gs://BUCKET/RUN"),
        ([*TPU, *TRAIN, "--config.x=a\x07"], r"$'--config.x=a\a'", "leave it out"),
    ],
)
def test_wrong_arguments_are_named_with_the_fix(arguments, named, fix, cluster):
  refused = cluster.launch("gke.sh", *arguments)
  assert refused.returncode == 2 and not refused.stdout
  assert refused.stderr.startswith("gke.sh: ") and refused.stderr.count("\n") == 1
  assert named in refused.stderr and fix in refused.stderr
  assert not cluster.take_calls()

#!/usr/bin/env bash
# Trains on Google Kubernetes Engine, on TPU slices or GPU machines, as a JobSet.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/gke.sh VERB NAME [OPTION...] [-- train|sweep ARGUMENT...]

  run      apply the JobSet NAME; again, with the same options, it changes nothing
  logs     follow the log of process 0 (with --runs, of run 0)
  status   its pods
  delete   end it: the pods get SIGTERM, save a checkpoint and go

Options of run:
  --image=IMAGE            built from launch/Dockerfile
  --tpu=v4|v5e|v5p|v6e     and --topology=AxB[xC], the chips of a slice
  --chips-per-host=N       of the node pool's machines [v5e, v6e: all, up to 8 chips, else 4]
  --slices=N               slices, a node pool each, that train together [1]
  --gpus=N                 instead of --tpu: N GPUs of each machine
  --gpu=TYPE               such as nvidia-h100-80gb
  --nodes=N                GPU machines [1]
  --runs=N                 with sweep, on GPUs: one job for each of its N runs (--index), which has
                           --nodes machines for itself
  --spot                   on spot machines
  --service-account=NAME   Kubernetes' name for who may read and write the bucket
  --restarts=N             of the whole set, when machines are lost [100]
  --dry-run                print the manifest, or the command, and do nothing

Inside a pod launch/supervise.sh restarts vit-jax.  A lost machine restarts the whole set; an error
that a restart does not mend ends it.  Needs kubectl for your cluster, with JobSet installed in it.

Example:
  docker build --build-arg=DEVICE=tpu --file=launch/Dockerfile --tag=IMAGE . && docker push IMAGE
  bash launch/gke.sh run vit --image=IMAGE --tpu=v5e --topology=8x8 --slices=2 -- \
      train --config=vit_i1k:B/16 --config.input.dataset=array_record \
      --config.input.path=gs://bucket/imagenet --workdir=gs://bucket/run
END
}

# shellcheck source=launch/arguments.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

case ${1:-} in -h | --help) usage; exit 0 ;; esac
read_options "image tpu topology chips-per-host slices gpus gpu nodes runs
  service-account restarts" "spot dry-run" "$@"
verb=${positional[0]:-} name=${positional[1]:-}
check_pattern "the verb" "$verb" "run|logs|status|delete" "write run, logs, status or delete"
((${#positional[@]} <= 2)) || fail "${positional[2]@Q} is too many: write VERB NAME, then options"
check_resource_name "NAME, after the verb," "$name" 40

# check_cuboid TOPOLOGY MOST: of v4 and v5p; as vit_jax/parallel/chips.py has them.
check_cuboid() {
  local hint="a slice of ${option[tpu]} is 2x2x1, 2x2x2, 2x2x4, 2x4x4, or three multiples of 4 that"
  local a b c
  hint+=" do not fall, at most $2 chips"
  check_pattern --topology "$1" '([1-9][0-9]?x){2}[1-9][0-9]?' "$hint"
  [[ ! $1 =~ ^(2x2x1|2x2x2|2x2x4|2x4x4)$ ]] || return 0
  IFS=x read -r a b c <<<"$1"
  ((a % 4 == 0 && b % 4 == 0 && c % 4 == 0 && a <= b && b <= c && c <= 96 && a * b * c <= $2)) ||
    fail "--topology is ${1@Q}: $hint"
}

check_tpu() {
  local shapes='1x1|2x2|2x4|4x4|4x8|8x8|8x16|16x16' chips=1 side most='' all_on_one machines=4
  check_pattern --tpu "${option[tpu]}" 'v4|v5e|v5p|v6e' "write v4, v5e, v5p or v6e"
  # GKE tells all slices of a set that they train together.
  [[ -z ${option[runs]:-} ]] ||
    fail "--runs does not go with --tpu: start a set for each run, with -- sweep ... --index=N"
  check_needed topology
  case ${option[tpu]} in
    v4) accelerator=tpu-v4-podslice most=4096 all_on_one=4 ;;
    v5e) accelerator=tpu-v5-lite-podslice all_on_one=8 ;;
    v5p) accelerator=tpu-v5p-slice most=6144 all_on_one=4 ;;
    v6e) accelerator=tpu-v6e-slice all_on_one=8 ;;
  esac
  if [[ $most ]]; then
    check_cuboid "${option[topology]}" "$most"
  else
    check_pattern --topology "${option[topology]}" "$shapes" \
      "a slice of ${option[tpu]} is one of ${shapes//|/, }"
  fi
  for side in ${option[topology]//x/ }; do
    chips=$((chips * side))
  done
  check_count slices 1
  check_count chips-per-host $((chips <= all_on_one ? chips : 4))
  if ((chips < 4)); then
    machines=$chips
  elif ((chips == all_on_one && chips > 4)); then
    machines="4|$chips"
  fi
  check_pattern --chips-per-host "${option[chips-per-host]}" "$machines" \
    "a machine of ${option[tpu]} ${option[topology]} has ${machines/|/ or } chips"
  replicas=${option[slices]} devices=${option[chips-per-host]}
  hosts=$((chips / devices)) together=$((chips * replicas / devices))
  resource=google.com/tpu group=slice
}

check_gpu() {
  check_needed gpus gpu
  check_count gpus ""
  check_count nodes 1
  check_pattern --gpu "${option[gpu]}" '[a-z0-9-]+' "write a type such as nvidia-h100-80gb"
  [[ -z ${option[runs]:-} ]] || check_count runs ""
  accelerator=${option[gpu]} replicas=${option[runs]:-1} devices=${option[gpus]}
  hosts=${option[nodes]} together=${option[nodes]}
  resource=nvidia.com/gpu group=worker
}

check_run() {
  local unfit=(gpus gpu nodes) each
  check_needed image
  check_pattern --image "${option[image]}" '[A-Za-z0-9][A-Za-z0-9._/:@-]*' "write REGISTRY/NAME:TAG"
  [[ -n ${option[tpu]:-} || -n ${option[gpus]:-} ]] ||
    fail "neither --tpu nor --gpus is given: add --tpu=v5e --topology=4x4, or --gpus=8 --gpu=TYPE"
  [[ -n ${option[tpu]:-} ]] || unfit=(topology chips-per-host slices)
  for each in "${unfit[@]}"; do
    [[ -z ${option[$each]:-} ]] || fail "--$each does not go with the rest: --tpu, or --gpus"
  done
  if [[ -n ${option[tpu]:-} ]]; then check_tpu; else check_gpu; fi
  check_count restarts 100
  [[ -z ${option[service-account]:-} ]] ||
    check_resource_name --service-account "${option[service-account]}" 63
  if [[ ${option[runs]:-} ]]; then
    check_command sweep
    for each in "${arguments[@]}"; do
      [[ $each != --index* ]] || fail "$each does not go: --runs gives each job its own; leave it out"
    done
  else
    check_command train sweep
  fi
  check_bucket
  for each in "${arguments[@]}"; do
    [[ ${each//[$'\n\t\r']/} != *[$'\x01'-$'\x1f'$'\x7f']* ]] ||
      fail "${each@Q} has a control character, which a manifest cannot hold: leave it out"
  done
}

# A string for YAML.  Kubernetes would replace $(NAME) in a command: $$ is a $.
yaml_string() {
  local LC_ALL=C text=$1 quote='"'
  text=${text//\\/\\\\}
  text=${text//$quote/\\$quote}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  text=${text//$'\r'/\\r}
  text=${text//$'\xc2\x85'/\\N}     # these three are line breaks to YAML
  text=${text//$'\xe2\x80\xa8'/\\L}
  text=${text//$'\xe2\x80\xa9'/\\P}
  text=${text//\$/\$\$}
  printf '%s' "\"$text\""
}

processes() {
  local job=0
  if [[ ${option[runs]:-} ]]; then
    job="\$(JOB_INDEX)"
    printf '              - "%s"\n' "--index=$job"
  fi
  # A slice may wait long for its machines, spot ones most of all: the others are patient.
  if ((together > 1)) && [[ " ${arguments[*]}" != *" --start-timeout"[=\ ]* ]]; then
    echo '              - "--start-timeout=86400"'
  fi
  if [[ $group == worker ]] && ((hosts > 1)); then
    # TPU hosts find each other; GPU machines are told their job's first pod in the set's network.
    printf '              - "%s"\n' "--coordinator=$name-worker-$job-0.$name:8476" \
      "--processes=$hosts" "--process=\$(JOB_COMPLETION_INDEX)"
  fi
}

manifest() {
  local word
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
END
  [[ $group == worker ]] || cat <<END
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
END
  cat <<END
spec:
  failurePolicy:
    maxRestarts: ${option[restarts]}
    rules:
    - name: errorThatStays
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: $group
    replicas: $replicas
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: Count
            onPodConditions:
            - type: DisruptionTarget
              status: "True"
          - action: FailJob
            onExitCodes:
              containerName: vit-jax
              operator: NotIn
              values: [75, 134, 137, 143]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300
END
  [[ -z ${option[service-account]:-} ]] ||
    echo "            serviceAccountName: ${option[service-account]}"
  echo "            nodeSelector:"
  if [[ $group == slice ]]; then
    echo "              cloud.google.com/gke-tpu-accelerator: $accelerator"
    echo "              cloud.google.com/gke-tpu-topology: ${option[topology]}"
  else
    echo "              cloud.google.com/gke-accelerator: $accelerator"
  fi
  [[ -z ${option[spot]:-} ]] || echo '              cloud.google.com/gke-spot: "true"'
  cat <<END
            containers:
            - name: vit-jax
              image: $(yaml_string "${option[image]}")
              command: [bash, /opt/vit_jax/launch/supervise.sh, --]
              args:
END
  for word in "${arguments[@]}"; do
    printf '              - %s\n' "$(yaml_string "$word")"
  done
  processes
  [[ -z ${option[runs]:-} ]] || cat <<END
              env:
              - name: JOB_INDEX
                valueFrom:
                  fieldRef:
                    fieldPath: metadata.annotations['jobset.sigs.k8s.io/job-index']
END
  cat <<END
              resources:
                limits:
                  $resource: $devices
              volumeMounts:
              - name: shm
                mountPath: /dev/shm # images come from worker processes through it; else 64 MB
END
  [[ $group == worker ]] || cat <<END
              securityContext:
                runAsUser: 0 # a TPU's device files are root's
END
  cat <<END
            volumes:
            - name: shm
              emptyDir:
                medium: Memory
END
}

if [[ $verb == run ]]; then
  check_run
  text=$(manifest)
  if [[ ${option[dry-run]:-} ]]; then printf '%s\n' "$text"; else kubectl apply -f - <<<"$text"; fi
  exit
fi
labels=jobset.sigs.k8s.io/jobset-name=$name
case $verb in
  logs)
    perform kubectl logs --follow --tail=100 \
      "--selector=$labels,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    ;;
  status) perform kubectl get pods "--selector=$labels" --output=wide ;;
  delete) perform kubectl delete jobset "$name" --ignore-not-found ;;
esac

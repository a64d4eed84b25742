#!/usr/bin/env bash
# Trains on Cloud TPU: one slice or several, got through a queued resource.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/tpu_pod.sh VERB NAME --zone=ZONE [OPTION...] [-- train ARGUMENT...]

  create   ask for the TPU; does nothing if NAME is there already
  setup    wait for it, then copy this checkout to every worker and install it there
  run      start training on every worker, detached and restarted (launch/supervise.sh)
  logs     follow the log of worker 0
  status   the TPU's state, and the last line of every worker's log
  stop     let every worker save a checkpoint and end
  resume   whatever has happened, preemption too: create, setup and run as far as is needed
  delete   stop paying: delete NAME and its machines

  --zone=ZONE            all verbs
  --project=PROJECT      all verbs [gcloud's own]
  --accelerator=TYPE     create, resume: v4-N, v5litepod-N, v5p-N or v6e-N
  --slices=N             create, resume: slices of that type that train together [1]
  --spot | --reserved    create, resume [on demand]
  --runtime=VERSION      create, resume: software of the machines [the one for TYPE]
  --dry-run              print the commands and run none; where they depend on the TPU's state,
                         those for one that is not there (create), ready, or preempted (resume)

Example, from nothing to a run, and again after a preemption:
  bash launch/tpu_pod.sh resume vit --zone=us-west4-a --accelerator=v5litepod-64 --spot -- \
      train --config=vit_i1k:B/16 --config.input.dataset=array_record \
      --config.input.path=gs://bucket/imagenet --workdir=gs://bucket/run
A recipe of your own goes into configs/ first: `setup` copies that too.
END
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null && pwd)
repository=${here%/*}
# shellcheck source=launch/arguments.sh
source "$here/arguments.sh"

case ${1:-} in -h | --help) usage; exit 0 ;; esac
read_options "zone project accelerator slices runtime" "spot reserved dry-run" "$@"
verb=${positional[0]:-} name=${positional[1]:-}
check_pattern "the verb" "$verb" "create|setup|run|logs|status|stop|resume|delete" \
  "write create, setup, run, logs, status, stop, resume or delete"
((${#positional[@]} <= 2)) || fail "${positional[2]@Q} is too many: write VERB NAME, then options"
check_resource_name "NAME, after the verb," "$name" 40
check_needed zone
check_pattern --zone "${option[zone]}" '[a-z]+-[a-z]+[0-9]+-[a-z]' "write a zone such as us-west4-a"
place=("--zone=${option[zone]}")
if [[ ${option[project]:-} ]]; then
  check_pattern --project "${option[project]}" '[a-z0-9:.-]+' "write the project's ID"
  place+=("--project=${option[project]}")
fi
case $verb in
  run | resume)
    check_command train
    check_bucket
    ;;
esac
gcloud=(gcloud compute tpus queued-resources)

# is_cuboid N: whether N cubes of 64 chips are a slice, whose sides are at most 24 cubes.
is_cuboid() {
  local a b
  for ((a = 1; a * a * a <= $1; a++)); do
    for ((b = a; a * b * b <= $1; b++)); do
      ((a * b * (($1) / (a * b)) != $1 || $1 / (a * b) > 24)) || return 0
    done
  done
  return 1
}

check_machines() {
  local type cores most
  check_needed accelerator
  type=${option[accelerator]}
  check_pattern --accelerator "$type" '(v4|v5litepod|v5p|v6e)-[1-9][0-9]{0,4}' \
    "write v4-N, v5litepod-N (v5e), v5p-N or v6e-N"
  cores=${type#*-}
  case $type in
    v4-* | v5p-*) # counted in cores, two a chip
      most=8192
      [[ $type == v4-* ]] || most=12288
      if [[ ! $cores =~ ^(8|16|32|64)$ ]]; then
        if ((cores % 128 || cores > most)) || ! is_cuboid $((cores / 128)); then
          fail "--accelerator is ${type@Q}: N, two cores a chip, is 8, 16, 32, 64 or a multiple" \
            "of 128 that is a cuboid of 4x4x4 chips, at most $most"
        fi
      fi
      ;;
    *) check_pattern --accelerator "$type" '[^-]*-(1|4|8|16|32|64|128|256)' \
      "N is 1, 4, 8, 16, 32, 64, 128 or 256 chips" ;;
  esac
  check_count slices 1
  [[ -z ${option[spot]:-} || -z ${option[reserved]:-} ]] ||
    fail "--spot and --reserved exclude each other: leave one out"
  case $type in
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
  esac
  runtime=${option[runtime]:-$runtime}
  check_pattern --runtime "$runtime" '[a-z0-9.-]+' "write a version such as v2-alpha-tpuv6e"
}
case $verb in create | resume) check_machines ;; esac

# Sets `state`, empty where NAME is not there; a dry run assumes $1.
read_state() {
  local command=("${gcloud[@]}" list "${place[@]}" "--filter=name~/$name\$"
    "--format=value(state.state)")
  state=$1
  if [[ ${option[dry-run]:-} ]]; then
    perform "${command[@]}"
  else
    state=$("${command[@]}") || exit
  fi
}

request() {
  local command=("${gcloud[@]}" create "$name" "${place[@]}"
    "--accelerator-type=${option[accelerator]}" "--runtime-version=$runtime")
  if ((option[slices] > 1)); then
    command+=("--node-count=${option[slices]}" "--node-prefix=$name")
  else
    command+=("--node-id=$name")
  fi
  [[ -z ${option[spot]:-} ]] || command+=(--spot)
  [[ -z ${option[reserved]:-} ]] || command+=(--reserved)
  perform "${command[@]}"
}

wait_until_ready() {
  while read_state ACTIVE && [[ $state != ACTIVE ]]; do
    case $state in
      "" | FAILED | SUSPENDING | SUSPENDED)
        echo "$name is ${state:-not there}: see its status; \`resume\` asks for it again" >&2
        exit 1
        ;;
    esac
    echo "$name is $state; looking again in a minute" >&2
    sleep 60
  done
}

# on WORKERS COMMAND: runs it in the home directory, on worker 0 or on all, of each slice.
on() {
  perform "${gcloud[@]}" ssh "$name" "${place[@]}" "--node=$1" "--worker=$1" "--command=$2"
}

busy='systemctl is-active --quiet vit-jax'

setup() {
  local archive=$repository/build/$name.tar.gz
  perform mkdir -p "$repository/build"
  perform tar --create --gzip "--file=$archive" "--directory=$repository" --exclude=__pycache__ \
    LICENSE README.md configs constraints.txt launch pyproject.toml vit_jax
  perform "${gcloud[@]}" scp "$archive" "$name:vit_jax.tar.gz" "${place[@]}" --node=all --worker=all
  # Where some workers still run, the others must not get other code: all are asked before any is
  # touched.
  on all "set -e
if $busy; then
  rm -rf vit_jax.new
  mkdir vit_jax.new
  tar --extract --gzip --file=vit_jax.tar.gz --directory=vit_jax.new
  for part in configs launch vit_jax constraints.txt pyproject.toml; do
    diff --recursive --brief --exclude=__pycache__ vit_jax.new/\$part vit_jax/\$part >&2 || {
      echo 'vit-jax runs, with other code than this checkout: stop $name first' >&2
      exit 1
    }
  done
fi"
  # uv brings Python 3.12: the machines' own is older than vit_jax needs.
  on all "set -e
if $busy; then echo 'vit-jax runs: left as it is'; exit; fi
mkdir -p vit_jax
cd vit_jax
rm -rf configs launch vit_jax
tar --extract --gzip --file=../vit_jax.tar.gz
python3 -m pip install --quiet --user uv
test -x .venv/bin/python || python3 -m uv venv --quiet --python=3.12 .venv
python3 -m uv pip install --quiet --python=.venv/bin/python --constraint=constraints.txt \
--editable='.[gcs,tpu]'"
}

# As a unit of systemd it outlives the connection and, at shutdown, gets SIGTERM once (not its
# child too, which would be the second, the one that interrupts) while there is still a network.
# The command goes through a file because systemd replaces $NAME and %-signs in a command line.
run() {
  local script
  script=$(quoted exec bash launch/supervise.sh -- "${arguments[@]}")
  on all "set -e
if $busy; then echo 'vit-jax runs already'; exit; fi
cd vit_jax
printf '%s\\n' $(quoted "$script") >run.sh
sudo systemctl reset-failed vit-jax 2>/dev/null || true
sudo systemd-run --unit=vit-jax --uid=\"\$(id -u)\" \
--working-directory=\"\$PWD\" --property=After=network-online.target --property=KillMode=mixed \
--property=TimeoutStopSec=300 --property=StandardOutput=append:\"\$PWD/log\" \
--property=StandardError=append:\"\$PWD/log\" bash run.sh"
}

resume() {
  while read_state SUSPENDED && [[ $state == SUSPENDING || $state == DELETING ]]; do
    sleep 60
  done
  case $state in
    SUSPENDED | FAILED)
      delete
      request
      ;;
    "") request ;;
  esac
  wait_until_ready
  setup
  run
}

delete() {
  perform "${gcloud[@]}" delete "$name" "${place[@]}" --force --quiet
}

case $verb in
  create)
    read_state ""
    if [[ $state ]]; then echo "$name is there already: $state"; else request; fi
    ;;
  setup)
    wait_until_ready
    setup
    ;;
  run) run ;;
  logs) on 0 "tail --lines=100 --retry --follow=name vit_jax/log" ;;
  status)
    perform "${gcloud[@]}" describe "$name" "${place[@]}" "--format=yaml(state)"
    read_state ACTIVE
    [[ $state != ACTIVE ]] || on all 'systemctl is-active vit-jax; tail --lines=1 vit_jax/log'
    ;;
  stop) on all "if $busy; then sudo systemctl stop vit-jax; fi" ;;
  resume) resume ;;
  delete)
    read_state ACTIVE
    if [[ $state ]]; then delete; else echo "$name is not there"; fi
    ;;
esac

#!/usr/bin/env bash
# Trains on the GPUs of several machines of a Slurm cluster.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/slurm.sh --gpus-per-node=N [OPTION...] -- train|sweep --workdir=RUN ...

Submits a job with one process a GPU; they find each other through Slurm.  Before its time is over
the job is told, saves a checkpoint, and queues again, as often as each turn brought a new
checkpoint.  Within a turn launch/supervise.sh restarts what fails.  The checkout and RUN must lie
on a disk that all machines see; RUN may be gs://.

  --gpus-per-node=N      GPUs of each machine
  --nodes=N              machines [1]
  --name=NAME            of the job and its log, NAME-JOB.log [vit-jax]
  --time=TIME            limit of one turn, as for sbatch [the partition's]
  --partition=NAME, --account=NAME, --cpus-per-task=N, --mem=SIZE     as for sbatch
  --grace=SECONDS        from the notice to the end of a turn: enough for a checkpoint [300]
  --array=FIRST-LAST     with sweep: one job for each of its runs (--index)
  --dry-run              print the job and submit nothing

Examples:
  bash launch/slurm.sh --nodes=4 --gpus-per-node=8 --time=24:00:00 -- \
      train --config=vit_i1k:B/16 --config.input.path=/data/imagenet --workdir=/runs/vit
  bash launch/slurm.sh --gpus-per-node=1 --array=0-7 -- \
      sweep --config=finetune:cifar10 --config.init.checkpoint=/runs/vit --workdir=/runs/cifar10
END
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null && pwd)
# shellcheck source=launch/arguments.sh
source "$here/arguments.sh"

case ${1:-} in -h | --help) usage; exit 0 ;; esac
read_options "gpus-per-node nodes name time partition account cpus-per-task mem grace array" \
  dry-run "$@"
((${#positional[@]} == 0)) || fail "${positional[0]@Q} stands before --: write it after --"
check_needed gpus-per-node
check_count gpus-per-node ""
check_count nodes 1
check_count grace 300
name=${option[name]:-vit-jax}
word='[A-Za-z0-9_][A-Za-z0-9_.,-]*'
check_pattern --name "$name" "$word" "write letters, digits, hyphens, dots"
for each in partition account mem; do
  check_pattern "--$each" "${option[$each]:-x}" "$word" "write letters, digits, hyphens, dots"
done
check_pattern --time "${option[time]:-1}" '[0-9]+(-[0-9]+)?(:[0-9]+){0,2}' \
  "write it as for sbatch, such as 24:00:00 or 2-00:00:00"
[[ -z ${option[cpus-per-task]:-} ]] || check_count cpus-per-task ""
log=$name-%j.log
if [[ ${option[array]:-} ]]; then
  check_pattern --array "${option[array]}" '[0-9]+(-[0-9]+)?(%[0-9]+)?' \
    "write the runs of the sweep, such as 0-7, or 0-7%2 for two at a time"
  each=${option[array]%\%*}
  ((10#${each%-*} <= 10#${each#*-})) ||
    fail "--array is ${option[array]@Q}: the first run comes before the last, as in 0-7"
  check_command sweep
  log=$name-%A_%a.log
else
  check_command train
fi

directive() {
  [[ -z $2 ]] || printf '#SBATCH --%s=%s\n' "$1" "$2"
}

# Slurm tells the tasks of the step (--signal without B:), not srun, which would kill them for it.
# Each task sees all GPUs of its machine (no --gpus-per-task): JAX takes the one of its own number.
job() {
  local command=(srun --kill-on-bad-exit=1) line
  if [[ ${option[cpus-per-task]:-} ]]; then
    command+=("--cpus-per-task=${option[cpus-per-task]}") # srun does not ask sbatch
  fi
  line=$(quoted "${arguments[@]}")
  # shellcheck disable=SC2016
  [[ -z ${option[array]:-} ]] || line+=' --index="$SLURM_ARRAY_TASK_ID"'
  echo '#!/usr/bin/env bash'
  directive job-name "$name"
  directive output "$log"
  directive nodes "${option[nodes]}"
  directive ntasks-per-node "${option[gpus-per-node]}"
  directive gpus-per-node "${option[gpus-per-node]}"
  for each in cpus-per-task mem time partition account array; do
    directive "$each" "${option[$each]:-}"
  done
  directive signal "TERM@${option[grace]}"
  directive open-mode append
  echo '#SBATCH --requeue'
  cat <<END
launch=$(quoted "$here")
source "\$launch/arguments.sh" || exit
source "\$launch/checkpoints.sh" || exit
source "\$launch/environment.sh" || exit
activate_environment
arguments=($line)
workdir=$(quoted "$workdir")
before=\$(committed_checkpoints "\$workdir")
$(quoted "${command[@]}" bash) "\$launch/supervise.sh" -- "\${arguments[@]}"
code=\$?
if restartable \$code && new_checkpoint "\$before" "\$(committed_checkpoints "\$workdir")"; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$code
END
}

if [[ ${option[dry-run]:-} ]]; then
  job
else
  job | sbatch
fi

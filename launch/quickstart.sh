#!/usr/bin/env bash
# The whole journey on real images in a few minutes, on any machine, without a download.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/quickstart.sh [--dry-run] [DIR]

Pre-trains a tiny ViT on scikit-learn's 1 797 handwritten digits, fine-tunes it at a higher
resolution, evaluates both on the held-out fifth, converts the result to a Hugging Face directory,
and lets PyTorch judge that directory from image files.  Writes DIR/summary.json (DIR is
runs/quickstart unless given) and fails if a promise in it does not hold.  Run again, it continues
where it was, or says that it is complete.  With --dry-run it prints the commands and runs none.
END
}

case ${1:-} in -h | --help) usage; exit 0 ;; esac
# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
if [[ ${1:-} == --dry-run ]]; then
  dry_run=yes
  shift
fi
if (($# > 1)) || [[ ${1:-} == -* ]]; then
  usage >&2
  exit 2
fi
active_before=${VIRTUAL_ENV:-}
directory=${1:-$repository/runs/quickstart}
here=$repository/launch

if [[ -f $directory/summary.json ]]; then
  activate_environment
  perform "${PYTHON:-python3}" "$here/quickstart.py" show "$directory"
  announce "complete already; remove $directory to begin again"
  exit 0
fi

install_vit_jax torch
perform mkdir -p -- "$directory"
if [[ -d $directory ]]; then
  directory=$(cd -- "$directory" >/dev/null && pwd) # one spelling, also when it is given otherwise
fi
# Accelerators would round float32 products to TF32 or bfloat16; here PyTorch's digits are compared.
perform export JAX_DEFAULT_MATMUL_PRECISION=highest

# DIR/train_seconds gets a line of wall seconds for each attempt at training, also for one that
# fails or is stopped (unless this script itself is killed with SIGKILL).  To find a run complete is
# no attempt.
training_since=
count_training() {
  if [[ -n $training_since ]]; then
    echo $((SECONDS - training_since)) >>"$directory/train_seconds"
    training_since=
  fi
}
trap count_training EXIT

train() {
  local run=$1
  shift
  if [[ $dry_run ]]; then
    perform SECONDS=0
    perform vit-jax train --workdir="$run" "$@"
    printf '%s\n' "echo \$SECONDS >>$(quoted "$directory/train_seconds")"
    return
  fi
  if [[ $(vit-jax status --json --workdir="$run" 2>/dev/null) != *'"state": "complete"'* ]]; then
    training_since=$SECONDS
  fi
  vit-jax train --workdir="$run" "$@"
  count_training
}

announce "== 1/5 pre-train at 16 px"
train "$directory/pretrain" --config=quickstart
announce "== 2/5 fine-tune at 24 px"
train "$directory/finetune" --config=quickstart:finetune \
  --config.init.checkpoint="$directory/pretrain"
announce "== 3/5 evaluate both on the held-out images"
perform vit-jax evaluate --model="$directory/pretrain" --output="$directory/pretrain.json"
perform vit-jax evaluate --model="$directory/finetune" --output="$directory/finetune.json"
announce "== 4/5 convert to a Hugging Face directory"
perform vit-jax convert --model="$directory/finetune" --output="$directory/huggingface" --to=huggingface
announce "== 5/5 PyTorch judges it from image files"
perform python "$here/quickstart.py" images "$directory"
perform python "$here/judge.py" --model="$directory/huggingface" --images="$directory/images" \
  --output="$directory/pytorch.json"
perform python "$here/quickstart.py" summary "$directory"
if [[ -z $active_before && ! $dry_run ]]; then
  echo "To use the vit-jax command in this shell:"
  printf '  source %q\n' "$VIRTUAL_ENV/bin/activate"
fi

#!/usr/bin/env bash
# The whole journey on real images in a few minutes, on any machine, without a download.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: bash launch/quickstart.sh [DIR]

Pre-trains a tiny ViT on scikit-learn's 1 797 handwritten digits, fine-tunes it at a higher
resolution, evaluates both on the held-out fifth, converts the result to a Hugging Face directory,
and lets PyTorch judge that directory from image files.  Writes DIR/summary.json (DIR is
runs/quickstart unless given) and fails if a promise in it does not hold.  Run again, it continues
where it was, or says that it is complete.
EOF
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  -*) usage >&2; exit 2 ;;
esac
start=$PWD
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
directory=${1:-$repository/runs/quickstart}
[[ $directory == /* ]] || directory=$start/$directory
here=$repository/launch

install_vit_jax torch
if [[ -f $directory/summary.json ]]; then
  python "$here/quickstart.py" show "$directory"
  echo "complete already; remove $directory to begin again"
  exit 0
fi

timed_train() {
  local began=$SECONDS
  vit-jax train "$@"
  echo $((SECONDS - began)) >>"$directory/train_seconds"
}

mkdir -p "$directory"
echo "== 1/5 pre-train at 16 px"
timed_train --config=quickstart --workdir="$directory/pretrain"
echo "== 2/5 fine-tune at 24 px"
timed_train --config=quickstart:finetune --config.init.checkpoint="$directory/pretrain" \
  --workdir="$directory/finetune"
echo "== 3/5 evaluate both on the held-out images"
vit-jax evaluate --model="$directory/pretrain"
vit-jax evaluate --model="$directory/finetune"
echo "== 4/5 convert to a Hugging Face directory"
vit-jax convert --model="$directory/finetune" --output="$directory/huggingface" --to=huggingface
echo "== 5/5 PyTorch judges it from image files"
python "$here/quickstart.py" images "$directory"
python "$here/judge.py" --model="$directory/huggingface" --images="$directory/images" \
  --output="$directory/pytorch.json"
python "$here/quickstart.py" summary "$directory"

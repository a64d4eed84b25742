#!/usr/bin/env bash
# Runs the tests: the quick gate, or with --all every marker.  Makes .venv and installs first.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: bash launch/test.sh [--dry-run] [--all] [PYTEST ARGUMENT...]

  (nothing)   the gate: everything quick
  --all       every marker: slow, multiprocess, topology, device too (those that can run here)
  --dry-run   print the commands and run none

Examples:
  bash launch/test.sh
  bash launch/test.sh tests/models -k positions
EOF
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
esac
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
all=
while [[ ${1:-} == --all || ${1:-} == --dry-run ]]; do
  if [[ $1 == --all ]]; then all=yes; else dry_run=yes; fi
  shift
done
if [[ $all ]]; then
  selection=""
else
  # A file's tests share what they compile and the runs that they look at: they stay in one process.
  # (With --all, the long ones would then wait for each other.)
  set -- --dist=loadfile "$@"
  selection="not slow and not multiprocess and not topology and not device and not legacy"
  # The gate compiles more than it computes: XLA leaves out what makes code faster.
  quick="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  perform export "XLA_FLAGS=$quick ${XLA_FLAGS:-}"
fi

install_vit_jax test
# timm needs torchvision, whose PyPI build beside PyTorch's CPU build breaks transformers' import.
install_beside timm timm==1.0.31 torchvision==0.28.0
if [[ $all ]]; then
  install_beside transformers4 transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
fi
perform cd "$repository"
# Exit code 5 of pytest (no test ran) is a failure, and stays one.
perform exec python -m pytest -n "${TEST_PROCESSES:-2}" -m "$selection" "$@"

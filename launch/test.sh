#!/usr/bin/env bash
# Runs the tests: the quick gate, or with --all every marker.  Makes .venv and installs first.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: bash launch/test.sh [--all] [PYTEST ARGUMENT...]

  (nothing)   the gate: everything quick
  --all       every marker: slow, multiprocess, topology, device too (those that can run here)

Examples:
  bash launch/test.sh
  bash launch/test.sh tests/models -k positions
EOF
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
esac
selection="not slow and not multiprocess and not topology and not device"
if [[ ${1:-} == --all ]]; then
  selection=""
  shift
fi

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_vit_jax test
cd "$repository"
# Exit code 5 of pytest (no test ran) is a failure, and stays one.
exec python -m pytest -n "${TEST_PROCESSES:-2}" -m "$selection" "$@"

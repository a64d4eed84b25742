#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash benchmarks/device.sh [--rows=NAME,NAME] [--rounds=N] [--budget=SECONDS]

Measures training steps on this machine's accelerator, or on its CPU if it has none, in at most
8 minutes: S/16, B/16 and L/16 in bfloat16 and attention alone (CPU: Ti/16 and a 32-px ViT in
float32), with timm beside them where torch and timm are installed.  Prints JSON lines, then a
markdown table.  What is measured and how: benchmarks/README.md.

Installs nothing.  Runs $PYTHON, or else the active virtual environment's Python, or else
.venv's, or else python3, on this working tree.
TEXT
}

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  usage
  exit 0
fi

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-}
if [[ -z $python && -n ${VIRTUAL_ENV:-} ]]; then
  python=$VIRTUAL_ENV/bin/python
elif [[ -z $python && -x $repository/.venv/bin/python ]]; then
  python=$repository/.venv/bin/python
fi
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
exec "${python:-python3}" "$repository/benchmarks/train_step.py" "$@"

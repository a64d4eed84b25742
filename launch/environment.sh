#!/usr/bin/env bash
# Sourced by the other scripts: a Python environment with the tested versions.
#
# install_vit_jax EXTRAS   installs this repository, editable, into the active virtual environment, or
#                          into .venv, made with $PYTHON (python3) if there is none.  Installs again
#                          only when pyproject.toml, constraints.txt or EXTRAS changed.
# Behind a mirror, or to take PyTorch's CPU build from its own index, set pip's PIP_INDEX_URL or
# PIP_EXTRA_INDEX_URL.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

install_vit_jax() {
  local extras=$1 stamp wanted
  if [[ -z ${VIRTUAL_ENV:-} ]]; then
    if [[ ! -x $repository/.venv/bin/python ]]; then
      "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "vit_jax needs Python 3.11 or newer: set PYTHON=/path/to/python3.11" >&2
        return 2
      }
      echo "making $repository/.venv"
      "${PYTHON:-python3}" -m venv "$repository/.venv"
    fi
    # shellcheck disable=SC1091
    source "$repository/.venv/bin/activate"
  fi
  stamp=$VIRTUAL_ENV/.vit_jax_installed
  wanted=$(cat "$repository/pyproject.toml" "$repository/constraints.txt" <(echo "$extras $repository") | cksum)
  if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
    echo "installing vit_jax[$extras] with the tested versions into $VIRTUAL_ENV"
    python -m pip install --quiet --disable-pip-version-check \
      --constraint "$repository/constraints.txt" --editable "${repository}[$extras]"
    echo "$wanted" >"$stamp"
  fi
}

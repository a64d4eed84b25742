#!/usr/bin/env bash
# Sourced by the other scripts: a Python environment with the tested versions.
#
# activate_environment     activates .venv, where it is made and no virtual environment is active.
# install_vit_jax EXTRAS   installs this repository, editable, into the active virtual environment, or
#                          into .venv, made with $PYTHON (python3) if there is none.  What is installed
#                          is remembered in the environment, for each EXTRAS; pip runs again only when
#                          pyproject.toml or constraints.txt changed, or for another checkout.
# install_beside NAME PACKAGE...   installs packages without their dependencies into $VIRTUAL_ENV/NAME,
#                          which is on no path: for libraries that disturb what the tests need, or
#                          an older version.  A process that wants them sets PYTHONPATH to it.
# In a dry run (perform.sh) the commands that are left to do are printed instead.
# Behind a mirror, or to take PyTorch's CPU build from its own index, set pip's PIP_INDEX_URL or
# PIP_EXTRA_INDEX_URL.

repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
# shellcheck source=launch/perform.sh
source "$repository/launch/perform.sh"

activate_environment() {
  # `activate` is the last file that venv writes: half an environment is not one.
  if [[ -z ${VIRTUAL_ENV:-} && -f $repository/.venv/bin/activate ]]; then
    enter_environment
  fi
}

enter_environment() {
  perform source "$repository/.venv/bin/activate"
  VIRTUAL_ENV=$repository/.venv
}

install_vit_jax() {
  local extras=$1 installed version
  activate_environment
  if [[ -z ${VIRTUAL_ENV:-} ]]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "vit_jax needs Python 3.11 or newer: set PYTHON=/path/to/python3.11" >&2
      return 2
    }
    announce "making $repository/.venv"
    perform "${PYTHON:-python3}" -m venv "$repository/.venv"
    enter_environment
  fi
  # One line for each set of extras that was installed at this version of the files.
  installed=$VIRTUAL_ENV/.vit_jax_installed
  version=$(cd "$repository" && { cat pyproject.toml constraints.txt && pwd; } | cksum)
  if grep -qsxF "$version [$extras]" "$installed"; then
    return
  fi
  announce "installing vit_jax[$extras] with the tested versions into $VIRTUAL_ENV"
  local command=(python -m pip install --quiet --disable-pip-version-check
    --constraint "$repository/constraints.txt" --editable "${repository}[$extras]")
  if [[ $dry_run ]]; then
    perform "${command[@]}"
    return
  fi
  grep -s "^$version " "$installed" >"$installed.new" || true
  mv "$installed.new" "$installed"
  "${command[@]}" || return
  echo "$version [$extras]" >>"$installed"
}

install_beside() {
  local name=$1 place installed
  shift
  place=$VIRTUAL_ENV/$name
  installed=$place/.installed
  if [[ $(cat "$installed" 2>/dev/null) == "$*" ]]; then
    return
  fi
  announce "installing $* beside, into $place"
  perform rm -rf "$place"
  perform python -m pip install --quiet --disable-pip-version-check --no-deps --target "$place" "$@" ||
    return
  if [[ ! $dry_run ]]; then
    mkdir -p "$place" && echo "$*" >"$installed"
  fi
}

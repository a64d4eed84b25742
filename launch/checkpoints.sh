#!/usr/bin/env bash
# Sourced by the launchers: whether a run, or a run of a sweep, has committed a new checkpoint.
#
# committed_checkpoints WORKDIR   the manifests there, one a line; none where none can be read.
#                                 Of a sweep's runs all, or one where `arguments` (arguments.sh)
#                                 have --index=N: that others advance is no progress of its own.
# new_checkpoint BEFORE AFTER     whether AFTER lists one that BEFORE does not.  Steps go away
#                                 (retention) and fall behind (quarantine): the newest alone
#                                 says nothing.

committed_checkpoints() {
  local directory=${1%/} patterns
  mapfile -t patterns < <(manifest_patterns)
  # Only a manifest commits; a quarantined step is no number (STEP.corrupt).
  {
    if [[ $directory != gs://* ]]; then
      list_local "$directory" "${patterns[@]}"
    elif command -v gcloud >/dev/null; then
      list_bucket "$directory" "${patterns[@]}"
    else
      # A container has no gcloud, but the reader that training itself uses.
      python -c 'import sys; from etils import epath
for pattern in sys.argv[2:]:
  for path in epath.Path(sys.argv[1]).glob(pattern): print(path)' "$directory" "${patterns[@]}"
    fi
  } | LC_ALL=C sort | grep -E '/checkpoints/[0-9]+/manifest\.json$' || true
}

# Where manifests lie below --workdir.
manifest_patterns() {
  local position run=
  # shellcheck disable=SC2154
  for ((position = 0; position < ${#arguments[@]}; position++)); do
    case ${arguments[position]} in
      --index=*) run=${arguments[position]#*=} ;;
      --index) run=${arguments[position + 1]:-} ;;
    esac
  done
  if [[ $run =~ ^[0-9]+$ ]]; then
    printf '%02d_*/checkpoints/*/manifest.json\n' "$((10#$run))" # as vit_jax/sweep.py names it
  else
    printf '%s\n' 'checkpoints/*/manifest.json' '*/checkpoints/*/manifest.json'
  fi
}

list_local() (
  shopt -s nullglob
  directory=$1 IFS=
  shift
  for pattern; do
    # shellcheck disable=SC2086
    printf '%s\n' "$directory"/$pattern
  done
)

# One pattern at a time: gcloud takes one without a match for an error of all.
list_bucket() {
  local directory=$1 pattern listed
  shift
  for pattern; do
    if listed=$(gcloud storage ls "$directory/$pattern" 2>&1); then
      printf '%s\n' "$listed"
    elif [[ $listed != *"matched no objects"* ]]; then
      printf 'cannot list the checkpoints in %s: %s\n' "$directory" "$listed" >&2
      return
    fi
  done
}

new_checkpoint() {
  [[ $(LC_ALL=C comm -13 <(printf '%s\n' "$1") <(printf '%s\n' "$2")) ]]
}

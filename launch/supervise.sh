#!/usr/bin/env bash
# Runs vit-jax, and runs it again where that helps.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash launch/supervise.sh [--first-delay=SECONDS] [--longest-delay=SECONDS] [--dry-run]
                                -- train|sweep --workdir=RUN ...

Runs `vit-jax train ...` and, when it leaves with 75 (preempted, or a peer lost), 134, 137 or 143
(an abort, or a kill), runs it again: the same command resumes.  Before each restart it waits, 10
seconds at first and twice as long each time, at most 300; a new checkpoint sets that back.  After 3
restarts in a row without a new committed checkpoint (RUN/checkpoints/STEP/manifest.json) it gives
up with exit code 1.  Every other exit code of vit-jax becomes its own.

Told to stop (SIGTERM, Ctrl-C), it passes that on, waits until vit-jax has saved, and leaves with
its exit code (75), without a restart.

Example:
  bash launch/supervise.sh -- train --config=folder:scratch --config.input.path=photos \
      --workdir=runs/photos
END
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null && pwd)
# shellcheck source=launch/arguments.sh
source "$here/arguments.sh"
# shellcheck source=launch/checkpoints.sh
source "$here/checkpoints.sh"
# shellcheck source=launch/environment.sh
source "$here/environment.sh"

case ${1:-} in -h | --help) usage; exit 0 ;; esac
read_options "first-delay longest-delay" "dry-run" "$@"
((${#positional[@]} == 0)) || fail "${positional[0]@Q} stands before --: write it after --"
check_command train sweep
first_delay=${option[first-delay]:-10}
longest_delay=${option[longest-delay]:-300}
for name in first-delay longest-delay; do
  check_pattern "--$name" "${option[$name]:-1}" '[0-9]+(\.[0-9]+)?' \
    "write seconds, such as 10 or 0.5"
done
if [[ ${option[dry-run]:-} ]]; then
  quoted vit-jax "${arguments[@]}"
  printf '\n# again after 75, 134, 137, 143; %s s later, then twice as long, at most %s s;\n' \
    "$first_delay" "$longest_delay"
  echo "# until 3 restarts in a row bring no new checkpoint"
  exit 0
fi
activate_environment
command -v vit-jax >/dev/null ||
  fail "vit-jax is not installed here: activate its environment, or pip install this checkout"

say() {
  printf 'supervise: %s\n' "$*" >&2
}

stopping='' heard='' told='' child=''
# shellcheck disable=SC2317,SC2329
stop() {
  stopping=yes heard=yes
  if [[ $child ]]; then
    told=yes
    kill -TERM "$child" 2>/dev/null || true
  fi
}
trap stop TERM INT HUP

# Waits for the program just started and sets `code`.  A trap ends `wait` before its time; asked
# again, it knows a child that has ended.
attend() {
  child=$!
  if [[ $stopping && -z $told ]]; then # before `child` was known
    kill -TERM "$child" 2>/dev/null || true
  fi
  while heard='' code=0; wait "$child" || code=$?; [[ $heard ]]; do :; done
  child=''
}

run_once() {
  # A process group of its own: Ctrl-C in a terminal shall reach it once, through `stop`.
  set -m
  vit-jax "${arguments[@]}" </dev/null &
  set +m
  attend
}

last=75 # where it is told to stop before anything ran
fruitless=0 delay=$first_delay
before=$(committed_checkpoints "$workdir")
while [[ -z $stopping ]]; do
  run_once
  last=$code
  if [[ $stopping ]] || ! restartable "$last"; then
    break
  fi
  after=$(committed_checkpoints "$workdir")
  if new_checkpoint "$before" "$after"; then
    fruitless=0 delay=$first_delay
  fi
  before=$after
  if ((fruitless == 3)); then
    say "vit-jax left with $last again: 3 restarts brought no new checkpoint in $workdir." \
      "Its messages above say why; the same command resumes."
    exit 1
  fi
  fruitless=$((fruitless + 1))
  say "vit-jax left with $last; restart in $delay s ($fruitless of 3 without a new checkpoint)"
  sleep "$delay" &
  attend
  delay=$(awk -v now="$delay" -v most="$longest_delay" \
    'BEGIN { next_one = 2 * now; print (next_one < most ? next_one : most) }')
done
if [[ $stopping ]]; then
  say "stopped as asked; vit-jax left with $last"
fi
exit "$last"

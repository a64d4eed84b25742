#!/usr/bin/env bash
# Sourced by the launchers: options read and checked; and perform.sh.
#
# read_options "VALUED..." "FLAGS..." ARGUMENT...   fills `option` (name to value, a flag's is
#                  "yes"), `positional`, and `arguments`, what stands after `--`: vit-jax's own.
# check_NAME ...   leave with exit code 2 and one paragraph on stderr that names the argument.
# restartable CODE whether vit-jax should be started again after that exit code.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "this needs bash 4.4 or newer (macOS: brew install bash), and runs in $BASH_VERSION" >&2
  exit 2
fi
# shellcheck source=launch/perform.sh
source "${BASH_SOURCE[0]%/*}/perform.sh"
declare -A option=()
positional=()
arguments=()
workdir=

fail() {
  printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2
  exit 2
}

read_options() {
  local known=" ${1//$'\n'/ } $2 " flags=" $2 " argument name
  shift 2
  while (($#)); do
    argument=$1
    shift
    if [[ $argument == -- ]]; then
      arguments=("$@")
      return
    elif [[ $argument != -* ]]; then
      positional+=("$argument")
      continue
    fi
    name=${argument#--}
    name=${name%%=*}
    if [[ ! $argument =~ ^--[a-z] || ! $name =~ ^[a-z-]+$ || $known != *" $name "* ]]; then
      fail "${argument@Q} is no option here: see --help. What vit-jax shall get stands after --"
    elif [[ -n ${option[$name]:-} ]]; then
      fail "--$name is given twice: leave one out"
    elif [[ $flags == *" $name "* ]]; then
      [[ $argument == "--$name" ]] || fail "--$name takes no value: write --$name alone"
      option[$name]=yes
      [[ $name != dry-run ]] || dry_run=yes
    else
      [[ $argument == "--$name="?* ]] || fail "--$name needs a value: write --$name=VALUE"
      option[$name]=${argument#*=}
    fi
  done
}

check_needed() {
  local name
  for name; do
    [[ -n ${option[$name]:-} ]] || fail "--$name is missing: add --$name=VALUE (see --help)"
  done
}

# check_pattern WHAT VALUE REGEX HINT
check_pattern() {
  [[ $2 =~ ^($3)$ ]] || fail "$1 is ${2@Q}: $4"
}

# Names of cloud resources; LONGEST leaves room for what is appended to them.
check_resource_name() {
  local what=$1 value=$2 longest=$3
  check_pattern "$what" "$value" '[a-z]([a-z0-9-]*[a-z0-9])?' \
    "write lower-case letters, digits and hyphens, a letter first, no hyphen last"
  ((${#value} <= longest)) || fail "$what has ${#value} characters: at most $longest fit"
}

# check_count NAME DEFAULT: a whole number of at least 1 in --NAME.
check_count() {
  option[$1]=${option[$1]:-$2}
  check_pattern "--$1" "${option[$1]}" '[1-9][0-9]{0,4}' "write a whole number from 1 to 99999"
}

# check_command VERB...: `arguments` begin with one of the verbs; sets `workdir`.
check_command() {
  local verb=${arguments[0]:-} allowed="$*" index word
  [[ $verb && " $allowed " == *" $verb "* && $verb != *" "* ]] ||
    fail "after -- stands ${verb:+${verb@Q}, }${verb:-nothing}: write -- ${allowed// /|}" \
      "--config=... --workdir=..., as for vit-jax"
  workdir=
  for ((index = 1; index < ${#arguments[@]}; index++)); do
    word=${arguments[index]}
    case $word in
      --workdir=*) workdir=${word#*=} ;;
      --workdir) workdir=${arguments[index + 1]:-} ;;
    esac
  done
  [[ $workdir ]] || fail "--workdir is missing after --: add --workdir=RUN, where checkpoints go"
}

# Machines that come and go share a bucket, not a disk.
check_bucket() {
  [[ $workdir =~ ^gs://[^][*?]+$ ]] ||
    fail "--workdir is ${workdir@Q}: write --workdir=gs://BUCKET/RUN (without *, ? or brackets)," \
      "for the disks of these machines go with them"
}

# 75: preempted, or a peer was lost; 134, 137, 143: an abort, or a kill from outside.
restartable() {
  case $1 in 75 | 134 | 137 | 143) return 0 ;; *) return 1 ;; esac
}

#!/usr/bin/env bash
# Sourced by the other scripts: commands quoted, shown or run.
#
# quoted WORD...   the words as one line that bash reads back as they are, whatever is in them.
# perform COMMAND  runs it; where `dry_run` is not empty prints it instead.
# announce TEXT    says what comes next; in a dry run as a comment.

dry_run=

quoted() {
  local word line='' name escaped="'\\''"
  for word; do
    if [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      name=''
      if [[ $word =~ ^--[a-z-]+= ]]; then
        name=${BASH_REMATCH[0]} # --name='the value' reads better than '--name=the value'
      fi
      word=${word#"$name"}
      word="$name'${word//\'/"$escaped"}'"
    fi
    line+=" $word"
  done
  printf '%s' "${line# }"
}

perform() {
  if [[ $dry_run ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

announce() {
  printf '%s%s\n' "${dry_run:+# }" "$*"
}

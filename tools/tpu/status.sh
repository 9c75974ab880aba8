#!/usr/bin/env bash
# Prints the state of a TPU VM in one word, such as READY, PREEMPTED or WAITING_FOR_RESOURCES.
source "${BASH_SOURCE[0]%/*}/common.sh"

OPTIONS=()
parse "" "Prints the state of a TPU VM, or of its place in the queue; MISSING if there is neither." \
  "$@"

if [[ -n $DRY_RUN ]]; then
  tpu tpu-vm describe "$NAME" "--format=value(state)"
  exit 0
fi
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
tpu tpu-vm describe "$NAME" "--format=value(state)" 2>"$errors" && exit 0
# Only "not found" means that there is none; no answer is no answer.
if grep -q NOT_FOUND "$errors"; then
  tpu queued-resources describe "$NAME" "--format=value(state.state)" 2>"$errors" && exit 0
  grep -q NOT_FOUND "$errors" && echo MISSING && exit 0
fi
cat "$errors" >&2
exit 1

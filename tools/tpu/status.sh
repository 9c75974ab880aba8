#!/usr/bin/env bash
# Prints the state of a TPU VM in one word, such as READY, PREEMPTED or WAITING_FOR_RESOURCES.
source "${BASH_SOURCE[0]%/*}/common.sh"

OPTIONS=()
parse "" "Prints the state of a TPU VM, or of its place in the queue; MISSING if there is neither." \
  "$@"

tpu tpu-vm describe "$NAME" "--format=value(state)" 2>/dev/null ||
  tpu queued-resources describe "$NAME" "--format=value(state.state)" 2>/dev/null ||
  echo MISSING

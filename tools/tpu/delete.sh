#!/usr/bin/env bash
# Deletes a TPU VM, which ends its costs, and what is on its disks.
source "${BASH_SOURCE[0]%/*}/common.sh"

QUEUED=''
OPTIONS=("--queued QUEUED= it was made by the queue; leave that too")
parse "" "Deletes a TPU VM and what is on its disks." "$@"

if [[ -n $QUEUED ]]; then
  tpu queued-resources delete "$NAME" --force --quiet
else
  tpu tpu-vm delete "$NAME" --quiet
fi

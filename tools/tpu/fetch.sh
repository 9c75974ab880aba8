#!/usr/bin/env bash
# Copies a folder of results from worker 0 to this machine.
source "${BASH_SOURCE[0]%/*}/common.sh"

FROM='' TO=.
OPTIONS=(
  "--from FROM folder in the checkout on the VM, such as work/clue (required)"
  "--to TO folder here (default: this one)"
)
parse "" "Copies a folder of results from worker 0." "$@"
[[ -n $FROM ]] || die "--from is needed"
[[ $FROM == /* || $FROM == \~* ]] || FROM=$FOLDER/$FROM

[[ -n $DRY_RUN ]] || mkdir -p "$TO"
tpu tpu-vm scp --recurse "$NAME:$FROM" "$TO" --worker=0

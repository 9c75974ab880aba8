#!/usr/bin/env bash
# Creates a TPU VM: at once, as spot capacity, or by a place in the queue.
source "${BASH_SOURCE[0]%/*}/common.sh"

TYPE=v3-8 VERSION='' SPOT='' QUEUED='' VALID=''
OPTIONS=(
  "--type TYPE kind and size, such as v3-8, v3-32, v4-8, v5litepod-8, v6e-8 (default: v3-8)"
  "--version VERSION software of the VM (default: what fits the kind)"
  "--spot SPOT= cheaper, and may be taken away at any time; resume.sh brings it back"
  "--queued QUEUED= wait in the queue for it"
  "--valid VALID with --queued: give up after so long, such as 6h"
)
parse "" "Creates a TPU VM." "$@"

if [[ -z $VERSION ]]; then
  case $TYPE in
  v2-* | v3-* | v4-*) VERSION=tpu-ubuntu2204-base ;;
  v5litepod-*) VERSION=v2-alpha-tpuv5-lite ;;
  v5p-*) VERSION=v2-alpha-tpuv5 ;;
  v6e-*) VERSION=v2-alpha-tpuv6e ;;
  *) die "--type $TYPE: not known; name its software with --version" ;;
  esac
fi
[[ -z $VALID || -n $QUEUED ]] || die "--valid needs --queued"

if [[ -n $QUEUED ]]; then
  tpu queued-resources create "$NAME" "--node-id=$NAME" "--accelerator-type=$TYPE" \
    "--runtime-version=$VERSION" ${SPOT:+--spot} ${VALID:+"--valid-until-duration=$VALID"}
  printf 'queued; its state: bash tools/tpu/status.sh --name %s --zone %s\n' "$NAME" "$ZONE" >&2
else
  tpu tpu-vm create "$NAME" "--accelerator-type=$TYPE" "--version=$VERSION" ${SPOT:+--spot}
fi

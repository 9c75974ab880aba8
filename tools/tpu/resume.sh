#!/usr/bin/env bash
# Watches a TPU VM; when it was taken away, makes it again and starts the same command, which goes on.
source "${BASH_SOURCE[0]%/*}/common.sh"

TYPE=v3-8 VERSION='' SPOT='' QUEUED='' BUCKET='' EVERY=60
OPTIONS=(
  "--type TYPE as for create.sh (default: v3-8)"
  "--version VERSION as for create.sh"
  "--spot SPOT= as for create.sh"
  "--queued QUEUED= as for create.sh"
  "--bucket BUCKET as for setup.sh; the run's --output must lie in bucket/"
  "--every EVERY seconds between looks (default: 60)"
)
parse "COMMAND" "Keeps a command running until it ends by itself: creates the TPU VM if it is missing
or was taken away, sets it up, starts the command again. A run goes on from its newest checkpoint." \
  "$@"

here=${BASH_SOURCE[0]%/*}
same=(--name "$NAME" --zone "$ZONE" ${PROJECT:+--project "$PROJECT"} ${DRY_RUN:+--dry-run})

bring_up() {
  bash "$here/create.sh" "${same[@]}" --type "$TYPE" ${VERSION:+--version "$VERSION"} \
    ${SPOT:+--spot} ${QUEUED:+--queued} || return 0 # no room there now: look again later
  [[ -n $DRY_RUN ]] || until [[ $(bash "$here/status.sh" "${same[@]}") == READY ]]; do
    sleep "$EVERY"
  done
  bash "$here/setup.sh" "${same[@]}" ${BUCKET:+--bucket "$BUCKET"}
  bash "$here/start.sh" "${same[@]}" -- "${COMMAND[@]}"
}

if [[ -n $DRY_RUN ]]; then
  bash "$here/status.sh" "${same[@]}"
  bash "$here/delete.sh" "${same[@]}" ${QUEUED:+--queued}
  bring_up
  exit 0
fi
while true; do
  case $(bash "$here/status.sh" "${same[@]}") in
  READY)
    # 0: it runs; 1: it has ended, well or not; anything else: no answer, ask again.
    state=0
    on 0 "cd $FOLDER && test -f job.pid && kill -0 \$(cat job.pid) 2>/dev/null" || state=$?
    if ((state == 1)); then
      echo "the command has ended; its last lines:" >&2
      bash "$here/log.sh" "${same[@]}"
      exit 0
    fi
    ;;
  MISSING) bring_up ;;
  PREEMPTED | TERMINATED | SUSPENDED | FAILED)
    bash "$here/delete.sh" "${same[@]}" ${QUEUED:+--queued}
    bring_up
    ;;
  esac
  sleep "$EVERY"
done

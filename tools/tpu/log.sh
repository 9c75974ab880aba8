#!/usr/bin/env bash
# Shows what the started command says, from worker 0.
source "${BASH_SOURCE[0]%/*}/common.sh"

WORKER=0 LINES_BACK=40 FOLLOW=''
OPTIONS=(
  "--worker WORKER whose log (default: 0, which alone writes metrics)"
  "--lines LINES_BACK lines from the end (default: 40)"
  "--follow FOLLOW= go on as it grows"
)
parse "" "Shows the log of the command that start.sh started." "$@"

on "$WORKER" "tail -n $LINES_BACK ${FOLLOW:+-f }$FOLDER/job.log"

#!/usr/bin/env bash
# Ends the started command on all workers; a training run saves its step first.
source "${BASH_SOURCE[0]%/*}/common.sh"

OPTIONS=()
parse "" "Ends the command that start.sh started; a training run saves its step first." "$@"

on all "cd $FOLDER && test -f job.pid && kill \$(cat job.pid) || true
for _ in \$(seq 120); do kill -0 \$(cat job.pid) 2>/dev/null || break; sleep 1; done
rm -f job.pid"

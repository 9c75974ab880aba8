#!/usr/bin/env bash
# Ends the started command on all workers; a training run saves its step first.
source "${BASH_SOURCE[0]%/*}/common.sh"

OPTIONS=()
parse "" "Ends the command that start.sh started; a training run saves its step first." "$@"

on all "cd $FOLDER || exit 1
test -f job.pid || { echo 'error: no job was started here' >&2; exit 1; }
touch job.stopped
kill \$(cat job.pid) 2>/dev/null
for _ in \$(seq 120); do
  kill -0 \$(cat job.pid) 2>/dev/null || exit 0
  sleep 1
done
echo 'error: it is still saving; call this again' >&2
exit 1"

#!/usr/bin/env bash
# Starts a command on all workers of a TPU VM; it goes on when the connection ends.
source "${BASH_SOURCE[0]%/*}/common.sh"

WORKER=all
OPTIONS=("--worker WORKER a single worker (default: all, which train as one)")
parse "COMMAND" "Starts a command, such as python -m pretraining.run ..., in the checkout of all
workers. log.sh shows what it says, stop.sh ends it." "$@"

command=$(quoted "${COMMAND[@]}")
# nohup becomes the command, so that the SIGTERM of stop.sh reaches it; what is around it keeps how
# it ended.
on "$WORKER" "cd $FOLDER && . .venv/bin/activate || exit 1
if test -f job.pid && kill -0 \$(cat job.pid) 2>/dev/null; then echo 'error: a job runs already' >&2; exit 1; fi
rm -f job.pid job.status job.stopped
(trap '' HUP
nohup env $command >job.log 2>&1 </dev/null &
echo \$! >job.pid
status=0
wait \$! || status=\$?
echo \$status >job.status) >/dev/null 2>&1 </dev/null &
until test -s job.pid; do sleep 0.1; done"

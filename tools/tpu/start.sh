#!/usr/bin/env bash
# Starts a command on all workers of a TPU VM; it goes on when the connection ends.
source "${BASH_SOURCE[0]%/*}/common.sh"

WORKER=all
OPTIONS=("--worker WORKER a single worker (default: all, which train as one)")
parse "COMMAND" "Starts a command, such as python -m pretraining.run ..., in the checkout of all
workers. log.sh shows what it says, stop.sh ends it." "$@"

command=$(quoted "${COMMAND[@]}")
# SIGTERM, which stop.sh sends, saves the step.
on "$WORKER" "cd $FOLDER && . .venv/bin/activate
if test -f job.pid && kill -0 \$(cat job.pid) 2>/dev/null; then echo 'error: a job runs already' >&2; exit 1; fi
nohup $command >job.log 2>&1 </dev/null &
echo \$! >job.pid"

#!/usr/bin/env bash
# Watches a TPU VM; when it was taken away, makes it again and starts the same command, which goes on.
source "${BASH_SOURCE[0]%/*}/common.sh"

TYPE=v3-8 VERSION='' SPOT='' QUEUED='' BUCKET='' EVERY=60
OPTIONS=(
  "--bucket BUCKET as for setup.sh; the run's --output must lie in bucket/ (required)"
  "--type TYPE as for create.sh (default: v3-8)"
  "--version VERSION as for create.sh"
  "--spot SPOT= as for create.sh"
  "--queued QUEUED= as for create.sh"
  "--every EVERY seconds between looks (default: 60)"
)
parse "COMMAND" "Keeps a command running until it ends by itself or by stop.sh: creates the TPU VM if it
is missing or was taken away, sets it up, starts the command. A run goes on from its newest checkpoint." \
  "$@"
[[ -n $BUCKET && " ${COMMAND[*]}" == *[\ =]bucket/* ]] ||
  die "what lies on the VM goes with it: --bucket is needed, and an --output in bucket/"

here=${BASH_SOURCE[0]%/*}
same=(--name "$NAME" --zone "$ZONE" ${PROJECT:+--project "$PROJECT"} ${DRY_RUN:+--dry-run})
commit=$(git -C "$here" rev-parse HEAD) # later ones do not come into a run
failures=0

create() {
  bash "$here/create.sh" "${same[@]}" --type "$TYPE" ${VERSION:+--version "$VERSION"} \
    ${SPOT:+--spot} ${QUEUED:+--queued}
}
set_up() {
  bash "$here/setup.sh" "${same[@]}" --bucket "$BUCKET" --commit "$commit"
}
start() {
  bash "$here/start.sh" "${same[@]}" -- "${COMMAND[@]}"
}
finish() { # STATUS WORDS
  printf '%s; its last lines:\n' "$2" >&2
  bash "$here/log.sh" "${same[@]}" || true
  printf '%s is still there and costs: bash tools/tpu/delete.sh --name %s --zone %s%s\n' \
    "$NAME" "$NAME" "$ZONE" "${QUEUED:+ --queued}" >&2
  exit "$1"
}

if [[ -n $DRY_RUN ]]; then
  create
  set_up
  start
  exit 0
fi

# Answers in words, since a status may be that of gcloud or of ssh.
look="cd $FOLDER 2>/dev/null || { echo none; exit 0; }
if test -f job.pid && kill -0 \$(cat job.pid) 2>/dev/null; then echo runs
elif test -f job.stopped; then echo stopped
elif test -f job.status; then echo ended \$(cat job.status)
else echo none; fi"

while true; do
  state=$(bash "$here/status.sh" "${same[@]}") || state=unknown
  case $state in
  READY)
    job=$(on 0 "$look") || job=unknown
    case $job in
    runs) failures=0 ;;
    stopped) finish 0 "stopped by stop.sh" ;;
    "ended 0") finish 0 "the command has ended" ;;
    "ended 143") start || failures=$((failures + 1)) ;; # saved, and the VM is still there
    ended*) finish 1 "the command has failed (${job#ended } is its status)" ;;
    none) { set_up && start; } || failures=$((failures + 1)) ;;
    esac
    ;;
  MISSING) create || failures=$((failures + 1)) ;;
  PREEMPTED | TERMINATED | SUSPENDED | FAILED)
    bash "$here/delete.sh" "${same[@]}" ${QUEUED:+--queued} || failures=$((failures + 1))
    ;;
  esac
  ((failures < 20)) || die "gave up after 20 failures in a row; see the messages above"
  sleep "$EVERY"
done

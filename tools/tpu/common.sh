# shellcheck shell=bash
# Sourced by the scripts beside it: their common options, and how they run gcloud.
#
# Sets NAME, ZONE, PROJECT, WORKERS, DRY_RUN and, after `--`, the array COMMAND. Options of a script
# of its own stand in the array OPTIONS as "--option VARIABLE help", or "--option VARIABLE= help"
# for one without a value.

set -euo pipefail

NAME='' ZONE='' PROJECT='' DRY_RUN=''
# shellcheck disable=SC2034  # the scripts use it
FOLDER=clue_jax # the checkout on the VM
COMMAND=()
COMMON=(
  "--name NAME name of the TPU (required)"
  "--zone ZONE its zone, such as europe-west4-a (required)"
  "--project PROJECT Google Cloud project (default: that of gcloud config)"
  "--dry-run DRY_RUN= print the commands and run none"
)

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

usage() {
  printf 'usage: bash tools/tpu/%s [OPTIONS]%s\n\n%s\n\noptions:\n' "${0##*/}" "$1" "$2"
  local option flag variable help
  for option in "${COMMON[@]}" ${OPTIONS[@]+"${OPTIONS[@]}"}; do
    read -r flag variable help <<<"$option"
    [[ $variable == *= ]] || flag+=" ${variable#*_}"
    printf '  %-26s %s\n' "$flag" "$help"
  done
  printf '  %-26s %s\n' "--help" "show this and exit"
}

# parse TAKES_COMMAND DESCRIPTION ARGUMENTS...
parse() {
  local takes=$1 description=$2 option flag variable found
  shift 2
  while (($#)); do
    if [[ $1 == --help || $1 == -h ]]; then
      usage "${takes:+ -- $takes}" "$description"
      exit 0
    elif [[ $1 == -- && -n $takes ]]; then
      shift
      COMMAND=("$@")
      break
    fi
    found=
    for option in "${COMMON[@]}" ${OPTIONS[@]+"${OPTIONS[@]}"}; do
      read -r flag variable _ <<<"$option"
      [[ $1 == "$flag" ]] || continue
      found=yes
      if [[ $variable == *= ]]; then
        printf -v "${variable%=}" yes
        shift
      else
        (($# > 1)) || die "$1 needs a value"
        printf -v "$variable" '%s' "$2"
        shift 2
      fi
      break
    done
    [[ -n $found ]] || die "unknown option $1; --help lists them"
  done
  [[ -n $NAME && -n $ZONE ]] || die "--name and --zone are needed; --help lists all options"
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || die "--name $NAME: small letters, digits and -"
  [[ -z $takes ]] || ((${#COMMAND[@]})) || die "a command is needed after --"
  [[ -n $DRY_RUN ]] || command -v gcloud >/dev/null ||
    die "gcloud is not there; see https://cloud.google.com/sdk/docs/install, or use --dry-run"
}

# What a shell would read as these words.
quoted() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

# tpu GROUP VERB ARGUMENTS...: runs gcloud on the TPU's zone, or prints the command.
tpu() {
  local words=(gcloud compute tpus "$@" "--zone=$ZONE")
  [[ -z $PROJECT ]] || words+=("--project=$PROJECT")
  if [[ -n $DRY_RUN ]]; then
    quoted "${words[@]}"
    printf '\n'
  else
    "${words[@]}"
  fi
}

# on WORKERS SCRIPT: runs a script on all, or on one of them.
on() {
  tpu tpu-vm ssh "$NAME" "--worker=$1" "--command=$2"
}

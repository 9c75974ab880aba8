#!/usr/bin/env bash
# Brings this checkout to all workers of a TPU VM, with Python and what it needs, and mounts a bucket.
source "${BASH_SOURCE[0]%/*}/common.sh"

BUCKET='' PYTHON=3.12 COMMIT=HEAD
OPTIONS=(
  "--bucket BUCKET mount this Cloud Storage bucket as bucket/ in the checkout of every worker"
  "--commit COMMIT of this checkout (default: HEAD)"
  "--python PYTHON version to use (default: 3.12)"
)
parse "" "Sets up all workers of a TPU VM. What runs on spot capacity belongs into --bucket." "$@"

root=$(cd "${BASH_SOURCE[0]%/*}/../.." && pwd)
archive=$(mktemp -d)/clue_jax.tar.gz
trap 'rm -rf "${archive%/*}"' EXIT
[[ -n $DRY_RUN ]] || git -C "$root" archive --format=tar.gz -o "$archive" "$COMMIT"
tpu tpu-vm scp "$archive" "$NAME:clue_jax.tar.gz" --worker=all

# The VM's own Python is older than the project takes; uv brings one.
on all "set -e
if test -f $FOLDER/job.pid && kill -0 \$(cat $FOLDER/job.pid) 2>/dev/null; then echo 'error: a job runs there; stop.sh ends it' >&2; exit 1; fi
mkdir -p $FOLDER && tar -xzf clue_jax.tar.gz -C $FOLDER && cd $FOLDER
python3 -m pip install --quiet --user uv
test -x .venv/bin/python || python3 -m uv venv --quiet --python $PYTHON .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
.venv/bin/python -c 'import jax; print(jax.local_devices())'"

if [[ -n $BUCKET ]]; then
  on all "set -e
mkdir -p $FOLDER/bucket
mountpoint -q $FOLDER/bucket && exit 0
command -v gcsfuse >/dev/null || {
  . /etc/os-release
  echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$VERSION_CODENAME main\" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 install gcsfuse
}
gcsfuse --implicit-dirs --rename-dir-limit 100000 $(quoted "${BUCKET#gs://}") $FOLDER/bucket"
fi

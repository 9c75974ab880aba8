# shellcheck shell=bash
# Sourced by run_sample.sh and run_tests.sh: makes .venv if there is none, installs a requirement
# file into it when that has changed, and sets $python.
#
#   source tools/setup_env.sh REQUIREMENTS_FILE

python=.venv/bin/python
if [ ! -x "$python" ]; then
  printf '\n== making the virtual environment .venv\n' >&2
  "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3" >&2
    exit 1
  }
  "${PYTHON:-python3}" -m venv .venv
fi
_stamp=.venv/installed-$1
if ! cat requirements.txt pyproject.toml "$1" | cmp -s - "$_stamp"; then
  printf '\n== installing %s (a few minutes the first time)\n' "$1" >&2
  "$python" -m pip install --quiet --disable-pip-version-check -r "$1" >&2
  cat requirements.txt pyproject.toml "$1" >"$_stamp"
fi
unset _stamp

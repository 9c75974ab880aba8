#!/usr/bin/env bash
# Sets up the virtual environment and runs the tests; arguments go to pytest.
#
#   bash run_tests.sh                the default suite
#   bash run_tests.sh -m slow        the long tests
#   CLUE_JAX_WITHOUT=tensorflow bash run_tests.sh      as on a machine without tensorflow
set -euo pipefail
cd "$(dirname "$0")"

source tools/setup_env.sh requirements-test.txt

printf '\n== ruff\n' >&2
"$python" -m ruff check .
"$python" -m ruff format --check .

printf '\n== pytest\n' >&2
# Two processes, each with whole files: most of the time goes into compiling, which takes one core.
exec "$python" -m pytest -n 2 --dist loadfile "$@"

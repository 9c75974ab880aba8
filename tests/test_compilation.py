"""Where compiled programs are kept."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = """
import jax
backend = {backend!r}
jax.default_backend = lambda: backend
from clue_jax.compilation import keep_compiled
keep_compiled()
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize(
    ("backend", "given", "expected"),
    [
        ("cpu", None, "None"),
        ("gpu", None, "{home}/compiled"),
        ("tpu", "/elsewhere", "/elsewhere"),
        ("gpu", "", ""),
    ],
)
def test_where_programs_are_kept(tmp_path, backend, given, expected):
    environment = os.environ | {"CLUE_JAX_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if given is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = given
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(backend=backend)], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected.format(home=tmp_path)

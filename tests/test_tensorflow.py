"""tensorflow is a help, not a need: a broken installation counts as none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("fault", ["ImportError", "RuntimeError"])
def test_a_broken_tensorflow_counts_as_none(tmp_path, shards, micro_model, fault):
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "__init__.py").write_text(f"raise {fault}('no such library')\n")
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
    environment.pop("CLUE_JAX_WITHOUT", None)
    command = [sys.executable, "-m", "pretraining.evaluate", "--model", str(micro_model)]
    result = subprocess.run(
        [*command, "--data", str(shards), "--max-predictions", "5"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert '"masked_lm_loss"' in result.stdout

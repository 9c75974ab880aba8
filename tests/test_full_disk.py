"""A disk that fills up, at different places of a run."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from conftest import ROOT, arguments
from test_run import assert_same_run

from clue_jax.checkpoint import load_params
from pretraining import run

OPTIONS = {"steps": 6, "save_every": 2, "log_every": 2, "mesh": "data=2"}


@pytest.fixture
def disk(tmp_path):
    """A disk of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a disk of its own can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def whole(shards, micro_model, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    run.main(arguments(shards, output, micro_model, **OPTIONS))
    return output


# Bytes left: none, for the log but no checkpoint, for a part of one, for some but not the export.
@pytest.mark.parametrize(
    "left", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (20_000, 300_000, 1_500_000))]
)
def test_a_full_disk_leaves_older_checkpoints(shards, micro_model, disk, whole, left):
    output = disk / "out"
    run.main(arguments(shards, output, micro_model, **OPTIONS | {"steps": 2}))
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    size = filler.stat().st_size
    with filler.open("r+b") as file:
        file.truncate(max(0, size - left))
    command = [sys.executable, "-m", "pretraining.run"]
    given = arguments(shards, output, micro_model, **OPTIONS)
    failed = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1, failed.stderr
    # The library's threads may still complain of the write that failed; then comes our one line.
    assert "pretraining/run.py" not in failed.stderr, failed.stderr
    lines = failed.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], failed.stderr
    assert str(disk) in lines[-1] and "o space left" in lines[-1]
    _, step = load_params(output / "checkpoints", 2)
    assert step == 2

    filler.unlink()
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(output, whole, 6)

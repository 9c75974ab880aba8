"""The Beam engine, on Beam's own local runners, against the local engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SAMPLE
from test_resumable import contents

from clue_jax.errors import Interrupted, UserError
from clue_jax.files import read_json, write_text
from pretraining import build_shards, clean_text, pieces
from pretraining.beam import run_task
from pretraining.pieces import Task

PROCESSES = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> list[str]:
    """Four files, and so four pieces; the second repeats some of the first."""
    folder = tmp_path_factory.mktemp("texts")
    documents = SAMPLE.read_text("utf-8").strip("\n").split("\n\n")
    paths = [folder / f"{i}.txt" for i in range(4)]
    for i, path in enumerate(paths):
        some = documents[i::4] + (documents[:4] if i == 1 else [])
        path.write_text("\n\n".join(some) + "\n", "utf-8")
    return [str(path) for path in paths]


def beam(module: str, arguments: list[str], *options: str) -> subprocess.CompletedProcess:
    """In a process of its own: Beam's import warns, and leaves threads behind."""
    pytest.importorskip("apache_beam", exc_type=ImportError)
    return subprocess.run(
        [sys.executable, "-m", module, *arguments, "--engine", "beam", "--", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _without_warnings():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def shards_of(texts: list[str], vocab_file: Path, output: Path) -> list[str]:
    return [
        "--input", *texts, "--vocab", str(vocab_file), "--output", str(output),
        "--seq-len", "32", "--held-out", "20%", "--workers", "1",
    ]  # fmt: skip


def test_shards_are_the_same(texts, vocab_file, tmp_path):
    """Built by two worker processes of Beam."""
    build_shards.main(shards_of(texts, vocab_file, tmp_path / "local"))
    given = shards_of(texts, vocab_file, tmp_path / "beam")
    done = beam("pretraining.build_shards", given, *PROCESSES)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert len(list((tmp_path / "beam").glob("shard-*"))) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"local", "beam"}


def test_clean_text_is_the_same(texts, tmp_path):
    def given(output: Path) -> list[str]:
        return ["--input", *texts, "--output", str(output), "--dedup", "near", "--workers", "1"]

    summary = clean_text.main(given(tmp_path / "local"))
    assert summary["dropped"]
    done = beam("pretraining.clean_text", given(tmp_path / "beam"))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")


def test_a_fault_in_the_text_is_one_line(texts, vocab_file, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes("好的。\n".encode() + b"\xff\xfe\n")
    done = beam(
        "pretraining.build_shards", shards_of([*texts, str(bad)], vocab_file, tmp_path / "out")
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {bad}, line 2: not UTF-8 text; convert the file first"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"bad.txt"}


def test_an_error_of_the_disk_is_no_fault_of_the_text(tmp_path):
    """A runner tries again; a fault of the text would come again, and is kept as the result."""

    def full(job):
        write_text(tmp_path / "file" / "under", "a file is no folder")

    def bad(job):
        raise UserError("line 2: not UTF-8 text")

    (tmp_path / "file").write_text("")
    with pytest.raises(Interrupted):
        run_task(Task(full, None, str(tmp_path / "a.json")))
    run_task(Task(bad, None, str(tmp_path / "b.json")))
    assert read_json(tmp_path / "b.json") == "line 2: not UTF-8 text"
    assert not (tmp_path / "a.json").exists()


def test_a_pipeline_that_failed_goes_on(texts, vocab_file, tmp_path):
    """A worker that ends in the middle of the third piece."""
    pytest.importorskip("apache_beam", exc_type=ImportError)
    script = tmp_path / "failing.py"
    script.write_text(
        "from pretraining import build_shards, pieces\n"
        "from clue_jax.errors import run_command\n"
        "run = pieces.Task.run\n"
        "def failing(task):\n"
        "    if task.result.endswith('2.json'):\n"
        "        raise MemoryError('no memory left')\n"
        "    return run(task)\n"
        "pieces.Task.run = failing\n"
        "run_command(build_shards.main)\n"
    )
    output = tmp_path / "out"
    given = shards_of(texts, vocab_file, output)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), *given, "--engine", "beam"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and not output.exists()
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch("error: the Beam pipeline failed .*no memory left.*", last), done.stderr
    build_shards.main(given)  # the local engine does the rest
    build_shards.main(shards_of(texts, vocab_file, tmp_path / "whole"))
    assert contents(output) == contents(tmp_path / "whole")


def test_options_without_their_engine(texts, vocab_file, tmp_path, monkeypatch):
    given = shards_of(texts, vocab_file, tmp_path / "out")
    with pytest.raises(UserError, match="--runner=X: options after -- are for --engine beam"):
        build_shards.main([*given, "--", "--runner=X"])
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match="needs Apache Beam: pip install apache-beam"):
        build_shards.main([*given, "--engine", "beam"])
    assert not (tmp_path / "out").exists()
    assert pieces.split_options(["a", "--", "b", "--", "c"]) == (["a"], ["b", "--", "c"])

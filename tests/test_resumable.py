"""A build of shards that is cut, by a worker's death or its own, goes on where it was."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SAMPLE

from clue_jax.errors import Interrupted, UserError
from clue_jax.files import resumable_directory, write_text
from pretraining import build_shards

# A build whose worker waits before each piece, so that there is time to kill it.
SLOW = """
import functools, sys, time
from pretraining import build_shards, corpus
build_shards.cut_pieces = functools.partial(corpus.cut_pieces, size=2000)
whole = build_shards._tokenize
def slowly(*given):
    time.sleep(0.15)
    yield from whole(*given)
build_shards._tokenize = slowly
if __name__ == "__main__":
    from clue_jax.errors import run_command
    run_command(build_shards.main)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(SAMPLE.read_text("utf-8").strip("\n").join(["", "\n\n"]) * 4, "utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def command(text: Path, vocab_file: Path, output: Path, workers: int) -> list[str]:
    return [
        "--input", str(text), "--vocab", str(vocab_file), "--output", str(output),
        "--seq-len", "32", "--held-out", "20%", "--workers", str(workers),
    ]  # fmt: skip


def children(process: int) -> list[int]:
    """Its worker processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "stat").read_text().rsplit(")", 1)[1].split()
            line = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status[1]) == process and b"spawn_main" in line:
            found.append(int(path.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_killed_five_times_it_leaves_the_same_bytes(text, vocab_file, tmp_path):
    """Workers and the build itself, in turn; no piece that was done is built again."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = [sys.executable, str(script)]
    subprocess.run(
        [*run, *command(text, vocab_file, whole, 1)], env=environment, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    expected = contents(whole)
    pieces = len(json.loads(expected["manifest.json"])["shards"])
    assert pieces >= 8
    done = tmp_path / ".cut.unfinished" / ".done"
    before = 0
    for kill in range(5):
        process = subprocess.Popen(
            [*run, *command(text, vocab_file, cut, 2)], env=environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len(list(done.glob("*.json"))) <= before:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        is_worker = kill % 2 == 0
        workers = children(process.pid)
        os.kill(workers[0] if is_worker else process.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)  # the workers end as well
        if is_worker:
            assert process.returncode == 1
            assert re.fullmatch("error: a worker process was killed .*\n", errors), errors
        assert not cut.exists()
        before = len(list(done.glob("*.json")))
        assert 0 < before < pieces
    stamps = {path.name: path.stat().st_mtime_ns for path in done.parent.glob("shard-*")}
    kept = [path.name for path in done.glob("*.json")]
    subprocess.run(
        [*run, *command(text, vocab_file, cut, 2)], env=environment, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert contents(cut) == expected
    for name in kept:
        shard = f"shard-{name[-10:-5]}-of-{pieces:05d}.rows"
        assert (cut / shard).stat().st_mtime_ns == stamps[shard]
    assert {path.name for path in tmp_path.iterdir()} == {"slow.py", "whole", "cut"}


def test_what_is_left_of_other_settings_is_not_used(tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(Interrupted), resumable_directory(folder, "one") as unfinished:
        (unfinished / "a").write_text("a")
        raise Interrupted
    with pytest.raises(KeyboardInterrupt), resumable_directory(folder, "one") as unfinished:
        assert (unfinished / "a").exists()
        raise KeyboardInterrupt
    with resumable_directory(folder, "two") as unfinished:
        assert not (unfinished / "a").exists()
        (unfinished / "b").write_text("b")
    assert [path.name for path in folder.iterdir()] == ["b"]
    with pytest.raises(UserError), resumable_directory(folder, "three") as unfinished:
        (unfinished / "c").write_text("c")
        raise UserError("bad text")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_an_error_of_the_disk_loses_nothing(tmp_path):
    """But a file that is missing says that what is there cannot be used."""
    folder = tmp_path / "out"
    for error in (OSError(errno.ENOSPC, "No space left"), PermissionError(errno.EACCES, "no")):
        with pytest.raises(Interrupted), resumable_directory(folder, "one") as unfinished:
            (unfinished / "a").write_text("a")
            raise error
        with (
            pytest.raises(Interrupted, match="a/b: cannot write"),
            resumable_directory(folder, "one") as unfinished,
        ):
            assert (unfinished / "a").exists()
            (unfinished / "b").mkdir(exist_ok=True)
            write_text(unfinished / "a" / "b", "a file is no folder")
    with pytest.raises(UserError), resumable_directory(folder, "one") as unfinished:
        assert (unfinished / "a").exists()
        (unfinished / "gone").read_bytes()
    assert not list(tmp_path.iterdir())


def test_two_builds_of_one_folder(tmp_path):
    with (
        resumable_directory(tmp_path / "out", "one"),
        pytest.raises(UserError, match="another process is writing it"),
        resumable_directory(tmp_path / "out", "one"),
    ):
        pass


def test_a_changed_text_is_read_again(text, vocab_file, tmp_path):
    """Of the same size, built by half with the old content."""
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_shards, "copy_vocabulary", _interrupt)
        build_shards.main(command(text, vocab_file, output, 1))
    assert (tmp_path / ".out.unfinished").is_dir()
    content = text.read_text("utf-8")
    text.write_text(content.replace("清晨", "傍晚"), "utf-8")
    build_shards.main(command(text, vocab_file, output, 1))
    build_shards.main(command(text, vocab_file, tmp_path / "again", 1))
    assert contents(output) == contents(tmp_path / "again")


def _interrupt(*_):
    raise KeyboardInterrupt

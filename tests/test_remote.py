"""Text and shards in an object store: a real S3 server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SAMPLE, arguments, build
from test_resumable import contents

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="module")
def store():
    """The environment in which s3://bucket is there."""
    pytest.importorskip("moto.server", exc_type=ImportError)
    s3fs = pytest.importorskip("s3fs", exc_type=ImportError)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        yield from _store(s3fs, process.stdout.readline().strip())
        process.terminate()


def _store(s3fs, port: str):
    environment = {
        "AWS_ACCESS_KEY_ID": "name", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "EPATH_USE_TF": "0",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        files.mkdir("bucket")
        yield files


def command(module: str, *given: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *given], cwd=ROOT, env=os.environ,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_from_text_to_a_model(store, vocab_file, micro_model, tmp_path, monkeypatch):
    """Text, vocabulary and shards lie there; the shards are those built here, and a run reads
    them."""
    store.put(str(SAMPLE), "bucket/text/sample.txt")
    store.put(str(vocab_file), "bucket/vocab.txt")
    build(vocab_file, tmp_path / "here", "--held-out", "0.2")
    clean = ["--input", "s3://bucket/text/sample.txt", "--workers", "1", "--output"]
    done = command("pretraining.clean_text", *clean, "s3://bucket/clean")
    assert done.returncode == 0, done.stderr
    assert sorted(store.ls("bucket/clean", detail=False)) == [
        "bucket/clean/clean-00000-of-00001.txt", "bucket/clean/report.json",
    ]  # fmt: skip
    given = ["--input", str(SAMPLE), "--vocab", "s3://bucket/vocab.txt", "--seq-len", "32"]
    given[1] = "s3://bucket/text/sample.txt"
    given += ["--max-predictions", "5", "--workers", "1", "--held-out", "0.2"]
    done = command("pretraining.build_shards", *given, "--output", "s3://bucket/shards")
    assert done.returncode == 0, done.stderr
    store.get("bucket/shards", str(tmp_path / "there"), recursive=True)
    ours, theirs = contents(tmp_path / "here"), contents(tmp_path / "there")
    assert [*ours] and theirs.keys() == ours.keys()
    for name in ours:  # the manifest names the input, of another name
        same = ours[name].replace(SAMPLE.name.encode(), b"sample.txt")
        assert theirs[name] == same, name
    again = command("pretraining.build_shards", *given, "--output", "s3://bucket/shards")
    assert again.returncode == 1 and "holds these shards already" in again.stderr

    monkeypatch.setenv("CLUE_JAX_HOME", str(tmp_path / "cache"))
    run = arguments("s3://bucket/shards", tmp_path / "run", micro_model, steps=2, eval_every=2)
    done = command("pretraining.run", *run, "--mesh", "data=1")
    assert done.returncode == 0, done.stderr
    assert "held_out/masked_lm_loss" in (tmp_path / "run" / "metrics.jsonl").read_text()
    copies = sorted((tmp_path / "cache" / "data").glob("*/manifest.json"))
    assert [path.parent.name.rsplit("-", 1)[0] for path in copies] == ["held-out", "shards"]

    missing = arguments("s3://bucket/nothing", tmp_path / "no", micro_model)
    done = command("pretraining.run", *missing)
    assert done.returncode == 1
    assert "error: s3://bucket/nothing: holds no manifest.json" in done.stderr


def test_a_sentencepiece_vocabulary(store, tmp_path):
    """Its model lies beside it, and is what the shards are made with."""
    make = ["--algorithm", "sentencepiece", "--input", str(SAMPLE), "--size", "900", "--output"]
    for output in ("s3://bucket/pieces/vocab.txt", str(tmp_path / "vocab.txt")):
        done = command("pretraining.build_vocab", *make, output)
        assert done.returncode == 0, done.stderr
    names = ["bucket/pieces/tokenizer.model", "bucket/pieces/vocab.txt"]
    assert sorted(store.ls("bucket/pieces", detail=False)) == names
    made = []
    for number, vocab in enumerate(("s3://bucket/pieces/vocab.txt", str(tmp_path / "vocab.txt"))):
        given = ["--input", str(SAMPLE), "--vocab", vocab, "--seq-len", "32", "--workers", "1"]
        folder = tmp_path / f"shards{number}"
        done = command("pretraining.build_shards", *given, "--output", str(folder))
        assert done.returncode == 0, done.stderr
        made.append(contents(folder))
    assert made[0] == made[1] and "tokenizer.model" in made[0]


def test_a_build_that_failed_leaves_nothing(store, vocab_file, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes("好的。\n".encode() + b"\xff\xfe\n")
    store.put(str(bad), "bucket/bad.txt")
    given = ["--input", "s3://bucket/bad.txt", "--vocab", str(vocab_file), "--workers", "1"]
    done = command("pretraining.build_shards", *given, "--output", "s3://bucket/failed")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: s3://bucket/bad.txt, line 2: not UTF-8 text; convert the file first"
    )
    assert not store.exists("bucket/failed")


def test_a_cut_copy_goes_on(store, shards, tmp_path, monkeypatch):
    """One file was there; it is not copied again, and another manifest starts anew."""
    from etils.epath import gpath

    from clue_jax.data import remote

    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)  # it knows no S3
    monkeypatch.setenv("CLUE_JAX_HOME", str(tmp_path))
    store.put(str(shards) + "/", "bucket/copied", recursive=True)
    copy = remote.shutil.copyfileobj
    calls = []

    def cut(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        copy(*given)

    monkeypatch.setattr(remote.shutil, "copyfileobj", cut)
    with pytest.raises(KeyboardInterrupt):
        remote.local_copy("s3://bucket/copied")
    here = remote.local_copy("s3://bucket/copied")
    names = sorted(path.name for path in Path(shards).iterdir() if path.is_file())
    assert sorted(path.name for path in here.iterdir()) == names
    assert len(calls) == len(names) + 1
    assert remote.local_copy("s3://bucket/copied") == here and len(calls) == len(names) + 1

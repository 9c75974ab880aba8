"""What the commands refuse: one line, and nothing half-written."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SAMPLE, arguments, build, micro_config, random_params

from clue_jax import sharding
from clue_jax.checkpoint import Checkpoints
from clue_jax.convert import model_dir
from clue_jax.errors import UserError
from finetune import clue, sweep
from finetune import run as finetune_run
from pretraining import build_shards, build_vocab, evaluate, run
from tools import convert, export, predict


def refused(command, arguments_, message, nothing_at=None):
    """One line on standard error, exit status 1, nothing left behind."""
    result = subprocess.run(
        [sys.executable, "-m", command, *map(str, arguments_)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 1, result.stderr
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    assert message in lines[0]
    if nothing_at is not None:
        assert not nothing_at.exists() or not [p for p in nothing_at.rglob("*") if p.is_file()]


def test_the_command_line_reports_faults_in_one_line(tmp_path, vocab_file):
    options = ["--vocab", vocab_file, "--output", tmp_path / "out", "--input"]
    refused(
        "pretraining.build_shards", [*options, tmp_path / "no.txt"], "no.txt: cannot read",
        tmp_path / "out",
    )  # fmt: skip


BLANK = b"\n \n\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "text.txt: empty file"),
        (BLANK, "no text to train on"),
        ("一\n".encode() + b"\xff\n", "text.txt, line 2: not UTF-8 text"),
        (None, "text.txt: cannot read"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_bad_text_leaves_nothing(tmp_path, vocab_file, content, message, workers):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    output = tmp_path / "out"
    # Among good files, so that good shards are under way; but blank text must be all there is.
    inputs = [str(text)] if content == BLANK else [str(SAMPLE), str(text), str(SAMPLE)]
    with pytest.raises(UserError, match=message):
        build_shards.main(
            ["--input", *inputs, "--vocab", str(vocab_file), "--output", str(output)]
            + ["--workers", workers]
        )
    assert not [path for path in output.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seq-len", "4"], "--seq-len 4 must be at least 8"),
        (["--held-out", "half"], "--held-out 'half': expected a share"),
        (["--held-out", "100%"], "expected a share"),
        (["--format", "original"], "--format original needs fixed masks"),
        (["--masking", "token", "--masked-lm-prob", "1.5"], "--masked-lm-prob 1.5"),
        (["--dupe-factor", "0"], "must be at least 1"),
    ],
)
def test_bad_shard_settings(tmp_path, vocab_file, options, message):
    with pytest.raises(UserError, match=message):
        build_shards.main(
            ["--input", str(SAMPLE), "--vocab", str(vocab_file), "--output", str(tmp_path / "o")]
            + options
        )
    assert not (tmp_path / "o").exists()


def test_shards_are_the_same_for_any_number_of_workers(tmp_path, vocab_file):
    texts = []
    for i in range(5):
        path = tmp_path / f"text{i}.txt"
        path.write_text("\n".join(SAMPLE.read_text().split("\n")[i:]), encoding="utf-8")
        texts.append(str(path))
    folders = []
    for workers in ("1", "2", "4"):
        folders.append(tmp_path / f"w{workers}")
        build_shards.main(
            ["--input", *texts, "--vocab", str(vocab_file), "--output", str(folders[-1])]
            + ["--workers", workers, "--held-out", "20%", "--masking", "token"]
        )
    names = sorted(p.relative_to(folders[0]) for p in folders[0].rglob("*") if p.is_file())
    assert len([name for name in names if name.suffix == ".rows"]) == 10
    for folder in folders[1:]:
        assert names == sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        for name in names:
            assert (folder / name).read_bytes() == (folders[0] / name).read_bytes()


def test_shards_of_other_settings_are_not_overwritten(tmp_path, vocab_file):
    build(vocab_file, tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    build(vocab_file, tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before
    with pytest.raises(UserError, match="holds shards built with packing 'lossless', now 'pairs'"):
        build(vocab_file, tmp_path, "--packing", "pairs")
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_failed_rebuild_leaves_the_old_shards(tmp_path, vocab_file):
    text, output = tmp_path / "text.txt", tmp_path / "out"
    arguments_ = ["--input", str(text), "--vocab", str(vocab_file), "--output", str(output)]
    text.write_text("今天天气很好。\n", encoding="utf-8")
    build_shards.main(arguments_)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    text.write_bytes(b"\xff" + text.read_bytes()[1:])
    with pytest.raises(UserError, match="text.txt, line 1: not UTF-8"):
        build_shards.main(arguments_)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.txt"]


def test_folders_of_something_else_are_left_alone(tmp_path, vocab_file, shards, micro_model):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no shards"):
        build(vocab_file, tmp_path)
    with pytest.raises(UserError, match="holds something else than a run"):
        run.main(arguments(shards, tmp_path, micro_model))
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match=r"notes.txt: is a file, expected a folder"):
        build(vocab_file, tmp_path / "model" / "notes.txt")


def test_no_folder_of_a_run_lies_in_a_store(shards, micro_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = "gs://bucket/run"
    tuning = ["--model", str(micro_model), "--output", address]
    for main, given in (
        (run.main, arguments(shards, address, micro_model)),
        (finetune_run.main, ["--task", "afqmc", *tuning]),
        (sweep.main, ["--task", "afqmc", *tuning]),
        (clue.main, ["--tasks", "all", *tuning]),
        (convert.main, [str(micro_model), address, "--to", "tf"]),
        (export.main, [*tuning, "--to", "stablehlo", "--task", "fill-mask"]),
    ):
        with pytest.raises(UserError, match="gs://bucket/run: this folder must be a local or"):
            main(given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "--batch-size 12 is not a multiple of 8"),
        ({"mesh": "data=16"}, "needs 16 devices, there are 8"),
        ({"mesh": "rows=2"}, "expected AXIS=SIZE"),
        ({"seq_len": 64}, "--seq-len 64, but .* holds rows of 32 slots"),
        ({"warmup_steps": 9}, "--warmup-steps 9 must lie between 0 and --steps 6"),
        ({"learning_rate": -1}, "--learning-rate -1.0 must be positive"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"adam_b2": 2}, "--adam-b2 2.0 must lie between 0 and 1"),
        ({"max_gradient_norm": 0}, "--max-gradient-norm 0.0 must be positive"),
        ({"eval_every": -2}, "--eval-every and --weight-decay must not be negative"),
        ({"data": "/nowhere"}, "/nowhere: no such data folder"),
        ({"init": "/nowhere"}, "/nowhere: no such file or folder"),
        ({"next_sentence": None}, None),
    ],
)
def test_bad_run_settings(shards, micro_model, tmp_path, changes, message):
    output = tmp_path / "out"
    arguments_ = arguments(**{"data": shards, "output": output, "model": micro_model} | {
        ("model" if k == "init" else k): v for k, v in changes.items()
    })  # fmt: skip
    if message is None:
        arguments_, message = (
            [*arguments_, "--next-sentence"],
            "--next-sentence needs sentence pairs",
        )
    with pytest.raises(UserError, match=message):
        run.main(arguments_)
    assert not output.exists()


def test_another_vocabulary_is_refused(shards, vocab_file, micro_model, tmp_path):
    other = tmp_path / "vocab.txt"
    other.write_text(vocab_file.read_text() + "多\n", encoding="utf-8")
    with pytest.raises(UserError, match="built with another vocabulary than .*vocab.txt"):
        run.main(arguments(shards, tmp_path / "out", micro_model, vocab=other))
    config = micro_config(len(other.read_text().splitlines()))
    from clue_jax.text import WordPieceTokenizer

    model_dir.save(
        tmp_path / "model", random_params(config), config, WordPieceTokenizer(other),
        heads={"masked_lm": "trained"}, source="random", max_seq_length=32,
    )  # fmt: skip
    with pytest.raises(UserError, match="built with another vocabulary"):
        evaluate.main(["--model", str(tmp_path / "model"), "--data", str(shards)])
    with pytest.raises(UserError, match="built with another vocabulary"):
        run.main(arguments(shards, tmp_path / "out", tmp_path / "model"))
    assert not (tmp_path / "out").exists()


def test_another_runs_folder_is_refused(finished, shards, micro_model):
    before = sorted(path.stat().st_mtime_ns for path in finished.rglob("*"))
    with pytest.raises(UserError, match="holds a run with learning_rate 0.001, now 0.002"):
        run.main(arguments(shards, finished, micro_model, learning_rate=0.002))
    with pytest.raises(UserError, match="holds a run with init_sha256"):
        run.main(arguments(shards, finished, None))
    with pytest.raises(UserError, match="is at step 6 already, beyond --steps 4"):
        run.main(arguments(shards, finished, micro_model, steps=4))
    assert sorted(path.stat().st_mtime_ns for path in finished.rglob("*")) == before


def test_a_skipped_save_is_an_error(tmp_path, monkeypatch):
    """Orbax answers None when it does not save; that must not pass unseen."""
    from clue_jax.optim import adamw
    from clue_jax.train_state import new_state

    mesh = sharding.make_mesh("data=1")
    state = new_state(lambda: {"x": np.ones(3, np.float32)}, adamw(lambda s: 0.1, b2=0.9), mesh)
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(
            checkpoints._checkpointer, "save_checkpointables_async", lambda *a, **k: None
        )
        with pytest.raises(UserError, match="step 0 was not saved"):
            checkpoints.save(state, {})


@pytest.mark.parametrize("module", [build_vocab, build_shards, run, evaluate, predict])
def test_help_explains_every_option(module, capsys):
    with pytest.raises(SystemExit) as exit_:
        module.main(["--help"])
    assert exit_.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option in re.findall(r"(?<= )--[a-z0-9-]+(?= )", shown):
        after = shown.split(f" {option} ", 1)[1]
        assert re.match(r"[^()]{0,90}[A-Za-z]{3}", after), f"{option} is not explained"
    for field in dataclasses.fields(module.Settings):
        assert f"--{field.name.replace('_', '-')}" in shown

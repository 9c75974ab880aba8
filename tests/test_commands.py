"""The command lines, end to end on a small model: results, resuming, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, SAMPLE, build, micro_config, random_params

from clue_jax import sharding
from clue_jax.checkpoint import Checkpoints
from clue_jax.convert import merge, model_dir, tf_bert
from clue_jax.convert.names import rows
from clue_jax.errors import UserError
from clue_jax.model import PretrainingModel
from clue_jax.predictor import Predictor
from pretraining import build_shards, build_vocab, evaluate, run
from pretraining.examples import Examples
from pretraining.masking import Masking
from tools import predict


def arguments(data, output, model, **changes) -> list[str]:
    options = {
        "data": data, "output": output, "init": model, "steps": 6, "batch_size": 8,
        "learning_rate": 1e-3, "warmup_steps": 2, "save_every": 2, "log_every": 2,
        "max_predictions": 5, "dtype": "float32",
    }  # fmt: skip
    out = []
    for name, value in {**options, **changes}.items():
        if value is not None:
            out += [f"--{name.replace('_', '-')}", str(value)]
    return out


def metrics(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "masked_lm_loss" in line]


@pytest.fixture(scope="module")
def finished(shards, micro_model, tmp_path_factory) -> Path:
    """A run of six steps on all 8 devices."""
    output = tmp_path_factory.mktemp("run") / "out"
    run.main(arguments(shards, output, micro_model, eval_every=3))
    return output


def test_a_run_leaves_everything(finished):
    assert {path.name for path in finished.iterdir()} == {
        "model", "tf", "checkpoints", "metrics.jsonl", "tensorboard", "settings.json"
    }  # fmt: skip
    assert {path.name for path in (finished / "tf").iterdir()} == {
        "bert_config.json", "bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index",
        "checkpoint", "vocab.txt",
    }  # fmt: skip
    assert [line["step"] for line in metrics(finished)] == [2, 4, 6]
    text = (finished / "metrics.jsonl").read_text()
    assert text.count("held_out/masked_lm_accuracy") == 2
    assert any((finished / "tensorboard").iterdir())
    loaded = model_dir.load(finished / "model")
    assert loaded.info["heads"] == {"masked_lm": "trained", "next_sentence": "fresh"}
    tf_params, _ = tf_bert.load(finished / "tf" / "bert_model.ckpt", loaded.config)
    ours, theirs = merge.flatten(loaded.params), merge.flatten(tf_params)
    assert all((ours[path] == theirs[path]).all() for path in ours)


def test_tensorflow_lists_the_originals_variables(finished):
    tf = pytest.importorskip("tensorflow")
    prefix = str(finished / "tf" / "bert_model.ckpt")
    config = model_dir.load(finished / "model").config
    listed = dict(tf.train.list_variables(prefix))
    assert set(listed) == {row.tf for row in rows(config)}  # the 39-variable layout, no slots
    assert listed["bert/encoder/layer_1/attention/self/query/kernel"] == [32, 32]
    assert listed["cls/seq_relationship/output_weights"] == [2, 32]
    assert tf.train.latest_checkpoint(str(finished / "tf")) == prefix
    reader = tf.train.load_checkpoint(prefix)
    params = merge.to_named_tensors(model_dir.load(finished / "model").params, config, "tf")
    for name, value in params.items():
        np.testing.assert_array_equal(reader.get_tensor(name), value)


def test_the_variable_names_are_those_the_original_wrote(shared):
    """Against the listing of a checkpoint that the original's own code saved."""
    folder = shared / "fixtures/tf_bert_original"
    from clue_jax import ModelConfig

    config = ModelConfig.from_tf_bert(folder / "bert_config.json")
    entries, _ = tf_bert.read_index(folder / "bert_model.ckpt")
    recorded = {n for n in entries if "adam" not in n and n != "global_step"}
    assert {row.tf for row in rows(config)} == recorded


def test_transformers_gives_the_logits_of_a_trained_model(finished):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    loaded = model_dir.load(finished / "model")
    ids = np.random.default_rng(0).integers(104, loaded.config.vocab_size, (2, 20))
    model = transformers.BertForMaskedLM.from_pretrained(finished / "model").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    positions = np.broadcast_to(np.arange(20), (2, 20))
    ours, _ = PretrainingModel(loaded.config).apply(
        {"params": loaded.params}, ids, np.ones_like(ids), ids * 0, positions
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_finished_run_exports_again_without_training(finished, shards, micro_model, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    shutil.rmtree(output / "model")
    result = run.main(arguments(shards, output, micro_model, eval_every=3))
    assert result["masked_lm_loss"] is None
    same = (finished / "model" / "model.safetensors").read_bytes()
    assert (output / "model" / "model.safetensors").read_bytes() == same


@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=4", "data=2,model=4"])
def test_every_mesh_gives_the_losses_of_one_device(shards, micro_model, tmp_path, mesh, one_device):
    """20 steps, dropout on."""
    output = tmp_path / "out"
    run.main(arguments(shards, output, micro_model, steps=20, log_every=1, mesh=mesh))
    losses = [line["masked_lm_loss"] for line in metrics(output)]
    np.testing.assert_allclose(losses, one_device, rtol=1e-5)
    assert len(losses) == 20


@pytest.fixture(scope="module")
def one_device(shards, micro_model, tmp_path_factory) -> list[float]:
    output = tmp_path_factory.mktemp("one") / "out"
    run.main(arguments(shards, output, micro_model, steps=20, log_every=1, mesh="data=1"))
    without = tmp_path_factory.mktemp("without") / "out"
    run.main(
        arguments(shards, without, micro_model, steps=2, log_every=1, mesh="data=1", dropout=0)
    )
    losses = [line["masked_lm_loss"] for line in metrics(output)]
    assert losses[0] != metrics(without)[0]["masked_lm_loss"]  # dropout was indeed on
    return losses


def test_the_state_is_sharded(shards, micro_model):
    params = model_dir.load(micro_model).params
    mesh = sharding.make_mesh("data=2,fsdp=2,model=2")
    placed = jax.device_put(params, sharding.state_shardings(params, mesh))
    kernel = placed["bert"]["encoder"]["layer_0"]["feed_forward"]["intermediate"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 32)
    words = placed["bert"]["embeddings"]["word_embeddings"]
    v = words.shape[0]
    assert words.addressable_shards[0].data.shape == (v // 2 if v % 2 == 0 else v, 16)


def test_an_odd_dimension_stays_whole_and_says_so(caplog):
    mesh = sharding.make_mesh("data=1,fsdp=1,model=8")
    sharding._say_replicated.cache_clear()
    for _ in range(2):
        spec = sharding.partition("bert/embeddings/word_embeddings", (8021, 312), mesh)
    assert spec == jax.sharding.PartitionSpec(None, "fsdp")
    assert caplog.text.count("8021") == 2  # one line: the shape and the dimension
    assert "is not a multiple of model=8 and stays whole" in caplog.text


def test_resuming_on_another_mesh_gives_the_same_losses(shards, micro_model, tmp_path, one_device):
    output = tmp_path / "out"
    for steps, mesh in ((8, "data=8"), (14, "data=2,fsdp=2"), (20, "data=1")):
        # The number of steps shapes the learning rate, so the run is cut, not shortened.
        cut_at(shards, output, micro_model, steps, mesh)
    losses = [line["masked_lm_loss"] for line in metrics(output)]
    np.testing.assert_allclose(losses, one_device, rtol=1e-5)


def cut_at(shards, output, model, step, mesh):
    """Runs towards 20 steps but stops after one of them, as an interrupt would."""
    original = run.RunLog.advance

    def advance(log, at):
        original(log, at)
        if at == step + 1:
            raise KeyboardInterrupt

    run.RunLog.advance = advance
    try:
        run.main(arguments(shards, output, model, steps=20, log_every=1, mesh=mesh))
    except KeyboardInterrupt:
        pass
    finally:
        run.RunLog.advance = original


def test_a_killed_run_ends_with_the_same_bits(shards, micro_model, tmp_path):
    """SIGKILL twice, at different places; then the same command to the end."""
    steps = {"steps": 40, "save_every": 3, "mesh": "data=2", "eval_every": None}
    run.main(arguments(shards, tmp_path / "whole", micro_model, **steps))
    output = tmp_path / "killed"
    command = [sys.executable, "-m", "pretraining.run"]
    command += arguments(shards, output, micro_model, **steps)
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    for after in (3, 18):
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while not any((output / "checkpoints" / str(s)).exists() for s in range(after, 40)):
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (output / "model").exists()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    for name in ("model/model.safetensors", "tf/bert_model.ckpt.data-00000-of-00001"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [line["step"] for line in metrics(output)] == list(range(2, 41, 2))


# ---- Evaluation ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixed_shards(tmp_path_factory, vocab_file) -> Path:
    folder = tmp_path_factory.mktemp("fixed")
    build(vocab_file, folder, "--masking", "whole-word", "--dupe-factor", "1")
    return folder


class Part:
    """The first rows of a data folder."""

    def __init__(self, examples, count):
        self.examples, self.count = examples, count

    def __len__(self):
        return self.count

    def batch(self, rows, epochs=0):
        return self.examples.batch(rows, epochs)


def test_evaluation_is_exact_for_every_count(fixed_shards, micro_model):
    """n = 1 .. 2B+1 records on 1 and 8 devices, against sums made a record at a time."""
    loaded = model_dir.load(micro_model)
    examples = Examples(fixed_shards, None, Masking(), 0)
    model = PretrainingModel(loaded.config.without_dropout())
    loss = correct = weight = 0.0
    expected = []
    step = jax.jit(lambda batch: evaluate.eval_step(loaded.params, batch, model=model))
    for i in range(17):
        sums = step(examples.batch(np.array([i])))
        loss += float(sums["masked_lm_loss_sum"])
        correct += float(sums["masked_lm_correct_sum"])
        weight += float(sums["masked_lm_weight_sum"])
        expected.append((loss / weight, correct / weight, int(weight)))
    for devices in (1, 8):
        mesh = sharding.make_mesh(f"data={devices}")
        params = jax.device_put(loaded.params, sharding.replicated(mesh))
        for n in range(1, 18):
            result = evaluate.evaluate(model, params, Part(examples, n), 8, mesh)
            assert result["sequences"] == n
            assert result["predictions"] == expected[n - 1][2]
            assert result["masked_lm_accuracy"] == pytest.approx(expected[n - 1][1], abs=1e-12)
            assert result["masked_lm_loss"] == pytest.approx(expected[n - 1][0], rel=1e-5)


def test_evaluate_command(finished, shards, capsys):
    arguments_ = ["--model", str(finished / "model"), "--data", str(shards / "held-out")]
    result = evaluate.main([*arguments_, "--max-predictions", "5"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result["sequences"] == len(Examples(shards / "held-out", None, Masking(), 0))
    assert 0 < result["most_frequent_token_accuracy"] < 0.3
    again = evaluate.main([*arguments_, "--max-predictions", "5", "--batch-size", "8"])
    assert again["predictions"] == result["predictions"]
    assert again["masked_lm_loss"] == pytest.approx(result["masked_lm_loss"], rel=1e-6)


# ---- The original's files, pairs, sentencepiece ----------------------------------------------------


def test_original_records_give_the_batches_of_our_rows(fixed_shards, vocab_file, tmp_path):
    """The same text, masks and order through both formats; the loop and evaluation read both."""
    pytest.importorskip("tensorflow")
    options = ("--packing", "original", "--masking", "token", "--dupe-factor", "2")
    build(vocab_file, tmp_path / "rows", *options)
    build(vocab_file, tmp_path / "tf", *options, "--format", "original")
    ours = Examples(tmp_path / "rows", None, Masking(), 0)
    theirs = Examples(tmp_path / "tf", None, Masking(), 0)
    assert len(ours) == len(theirs) > 20
    a, b = (examples.batch(np.arange(len(ours))) for examples in (ours, theirs))
    used = a["document_ids"] > 0
    for name in ("input_ids", "segment_ids", "masked_lm_positions", "masked_lm_ids"):
        np.testing.assert_array_equal(a[name], b[name])
    np.testing.assert_array_equal(a["document_ids"], b["document_ids"])
    np.testing.assert_array_equal(a["position_ids"], np.where(used, b["position_ids"], 0))
    np.testing.assert_array_equal(a["masked_lm_weights"], b["masked_lm_weights"])
    (tmp_path / "tf" / "manifest.json").unlink()  # as the original leaves them
    assert len(Examples(tmp_path / "tf", vocab_file, Masking(), 0)) == len(ours)


def test_damaged_original_records_are_refused(fixed_shards, vocab_file, tmp_path):
    pytest.importorskip("tensorflow")
    build(
        vocab_file, tmp_path, "--format", "original", "--masking", "token", "--packing", "original"
    )
    path = next(tmp_path.glob("*.tfrecord"))
    data = path.read_bytes()
    (tmp_path / "manifest.json").unlink()
    for at in (3, 40, 400):
        path.write_bytes(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])
        with pytest.raises(UserError, match=path.name):
            Examples(tmp_path, vocab_file, Masking(), 0).batch(np.arange(2))
    path.write_bytes(data[:-3])
    with pytest.raises(UserError, match="truncated in record"):
        Examples(tmp_path, vocab_file, Masking(), 0)


def test_pairs_train_both_heads(vocab_file, micro_model, tmp_path):
    build(vocab_file, tmp_path / "pairs", "--packing", "pairs", "--dupe-factor", "2")
    output = tmp_path / "out"
    run.main([*arguments(tmp_path / "pairs", output, micro_model, steps=4), "--next-sentence"])
    line = metrics(output)[-1]
    assert 0 <= line["next_sentence_accuracy"] <= 1
    assert model_dir.load(output / "model").info["heads"]["next_sentence"] == "trained"
    before = model_dir.load(micro_model).params["bert"]["pooler"]["kernel"]
    after = model_dir.load(output / "model").params["bert"]["pooler"]["kernel"]
    assert (before != after).any()


def test_sentencepiece_goes_all_the_way(tmp_path):
    vocab = tmp_path / "vocab" / "vocab.txt"
    vocab.parent.mkdir()
    result = build_vocab.main(
        ["--input", str(SAMPLE), "--output", str(vocab), "--algorithm", "sentencepiece"]
        + ["--size", "1000"]
    )
    build(vocab, tmp_path / "shards")
    examples = Examples(tmp_path / "shards", None, Masking(), 0)
    tokenizer = examples.tokenizer
    text = "清晨五点，渔港的灯！Ａ"
    encoding = tokenizer.encode(text)
    assert "".join(text[a:b] for a, b in encoding.offsets) == text
    assert tokenizer.encode_batch([text, ""]).row_splits.tolist() == [0, len(encoding.ids)] * 1 + [
        len(encoding.ids)
    ]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id) == (0, 100, 103)
    config = micro_config(result["entries"])
    model_dir.save(
        tmp_path / "model", random_params(config), config, tokenizer, heads={},
        source="random", max_seq_length=32,
    )  # fmt: skip
    assert model_dir.load(tmp_path / "model").tokenizer.encode(text) == encoding


# ---- Fill-mask -------------------------------------------------------------------------------------


def test_fill_mask_answers_every_mask(finished, tmp_path, capsys):
    predictor = Predictor(finished / "model")
    fillings = predictor.fill_mask("清晨[MASK]点，渔[MASK]的灯", top_k=3)
    assert [len(place) for place in fillings] == [3, 3]
    assert all(
        a.probability >= b.probability for p in fillings for a, b in zip(p, p[1:], strict=False)
    )
    (tmp_path / "in.txt").write_text("今天[MASK]好\n\n昨[MASK]\n", encoding="utf-8")
    predict.main(
        ["--model", str(finished / "model"), "--input", str(tmp_path / "in.txt")]
        + ["--output", str(tmp_path / "out.jsonl")]
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["今天[MASK]好", "昨[MASK]"]
    (tmp_path / "in.txt").write_text("今天[MASK]好\n没有\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"in.txt, line 2: the text holds no \[MASK\]"):
        predict.main(["--model", str(finished / "model"), "--input", str(tmp_path / "in.txt")])
    with pytest.raises(UserError, match="tokens, the model takes 64"):
        predictor.fill_mask("[MASK]" + "好" * 80)


# ---- What is refused -------------------------------------------------------------------------------


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
    # After a good file, so that a good shard is under way; but blank text must be all there is.
    inputs = [str(text)] if content == BLANK else [str(SAMPLE), str(text)]
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "--batch-size 12 is not a multiple of 8"),
        ({"mesh": "data=16"}, "needs 16 devices, this machine has 8"),
        ({"mesh": "rows=2"}, "expected AXIS=SIZE"),
        ({"seq_len": 64}, "--seq-len 64, but .* holds rows of 32 slots"),
        ({"warmup_steps": 9}, "--warmup-steps 9 must lie between 0 and --steps 6"),
        ({"learning_rate": -1}, "--learning-rate -1.0 must be positive"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"data": "/nowhere"}, "/nowhere: no such data folder"),
        ({"init": "/nowhere"}, "/nowhere: not a model directory"),
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

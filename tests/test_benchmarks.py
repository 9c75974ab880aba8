"""The benchmarks run to their end on real texts and tell what they must.

They take minutes; their numbers are not judged here.
"""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import SAMPLE, save_kind

from clue_jax.errors import UserError
from finetune.tasks import TASKS
from tools import (
    bench_data,
    bench_export,
    bench_finetune,
    bench_packing,
    bench_predict,
    bench_segmenter,
    bench_serve,
    bench_start,
    bench_tokenizer,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clue(shared):
    return str(shared / "data" / "clue")


def test_predictions_against_the_pipeline(kinds, clue, capsys):
    pytest.importorskip("transformers")
    options = ["--data-dir", clue, "--examples", "28", "--pairs", "2"]
    result = bench_predict.main(["--model", str(kinds["classification"]), *options])
    assert result["texts"] == 28 and result["same_labels"] == 1
    assert result["largest_difference"] < 1e-4 and result["ratio_min"] > 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["command"]


def test_a_server_under_load(kinds, clue):
    pytest.importorskip("aiohttp")
    options = ["--data-dir", clue, "--seconds", "2", "--soak", "2", "--texts", "2"]
    result = bench_serve.main(["--model", str(kinds["classification"]), *options])
    for load in ("at_70_percent", "with_slow_clients"):
        assert set(result[load]["statuses"]) == {"200"}
        assert result[load]["p50_ms"] <= result[load]["p99_ms"]
    assert set(result["at_5_times"]["statuses"]) <= {"200", "429"}
    assert not result["drain"]["lost"] and len(result["soak"]["memory_mb"]) == 11


def test_exported_models_on_a_task(tokenizer, clue, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tensorflow")
    folder = save_kind(tmp_path / "m", "classification", tokenizer)
    path = folder / "clue_jax.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    labels = list(TASKS["afqmc"].labels) + ["2"]  # the classifier has three columns
    path.write_text(json.dumps(info | {"task": "afqmc", "labels": labels}), encoding="utf-8")
    result = bench_export.main(["--model", str(folder), "--data-dir", clue, "--limit", "50"])
    rows = {row["runtime"]: row for row in result["rows"]}
    assert list(rows) == ["jax", "onnx", "onnx-int8", "savedmodel", "stablehlo"]
    for name, row in rows.items():
        assert row["largest_difference"] < (0.5 if name == "onnx-int8" else 1e-4)
    shutil.rmtree(folder)


def test_data_against_the_original_s_way(vocab_file, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("tensorflow")
    pytest.importorskip("jieba")
    given = ["--input", str(SAMPLE), "--vocab", str(vocab_file), "--pairs", "2"]
    result = bench_data.main([*given, "--seq-len", "64"])
    assert result["lines_equal"] == result["lines"] > 20
    assert result["our_rows"] > 20 and result["peer_rows"] > 20
    assert result["ratio_min"] <= result["ratio_median"] <= result["ratio_max"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["benchmark"] == "data"


@pytest.mark.parametrize("peer", ["python", "rust"])
def test_tokenizers_of_others(vocab_file, peer):
    pytest.importorskip("transformers")
    given = ["--input", str(SAMPLE), "--vocab", str(vocab_file), "--pairs", "2", "--peer", peer]
    result = bench_tokenizer.main(given)
    assert result["lines_equal"] == result["lines"] > 20
    assert result["ratio_min"] <= result["ratio_median"] <= result["ratio_max"]


def test_words_of_another_segmenter():
    pytest.importorskip("jieba")
    result = bench_segmenter.main(["--input", str(SAMPLE), "--pairs", "2"])
    assert result["boundaries_compared"] > 1000 and result["boundaries_differing"] == 0


def test_packed_rows_against_padded_ones(vocab_file):
    given = ["--input", str(SAMPLE), "--vocab", str(vocab_file), "--seq-len", "32"]
    result = bench_packing.main([*given, "--batch-size", "8", "--steps", "1", "--pairs", "2"])
    assert result["packed_padding_share"] <= result["padded_padding_share"]
    assert result["packed_tokens_per_second"] > 0


def test_fine_tuning_against_pytorch(micro_model, clue):
    pytest.importorskip("transformers")
    given = ["--model", str(micro_model), "--data-dir", clue, "--task", "tnews"]
    result = bench_finetune.main(
        [*given, "--examples", "64", "--seq-len", "32", "--batch-size", "16", "--pairs", "2"]
    )
    assert result["loss_difference"] < 1e-4 and result["examples"] == 64
    assert result["our_slots_an_epoch"] <= result["peer_slots_an_epoch"]


def test_the_first_update_is_waited_for(shards):
    command = ["python", "-m", "pretraining.run", "--data", str(shards), "--steps", "1000"]
    command += ["--batch-size", "8", "--learning-rate", "1e-3"]
    result = bench_start.main(["--runs", "1", "--", *command])
    assert result["cold_median"] > result["warm_median"] > 0.5
    with pytest.raises(UserError, match="no first update"):
        bench_start.main(["--runs", "1", "--", *command, "--max-predictions", "0"])

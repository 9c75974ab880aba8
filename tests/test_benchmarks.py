"""The benchmarks of predictions and servers run to their end on real texts and tell what they must.

They take minutes; their numbers are not judged here.
"""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import save_kind

from finetune.tasks import TASKS
from tools import bench_export, bench_predict, bench_serve

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

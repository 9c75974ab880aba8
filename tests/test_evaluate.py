"""Evaluation and fill-mask."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import build

from clue_jax import sharding
from clue_jax.convert import model_dir
from clue_jax.errors import UserError
from clue_jax.model import PretrainingModel
from clue_jax.predictor import Predictor
from pretraining import evaluate
from pretraining.examples import Examples
from pretraining.masking import Masking
from tools import predict


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
    mesh = sharding.make_mesh("data=1")
    expected = []
    for i in range(17):
        batch = examples.batch(np.array([i]))
        sums = evaluate.eval_step(loaded.params, batch, model=model, mesh=mesh)
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

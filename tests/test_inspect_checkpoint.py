"""tools.inspect_checkpoint: what a model holds, and whether its files agree."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoints import oversized_checkpoint, recorded_digests

from clue_jax.convert import merge, source
from tools import inspect_checkpoint


@pytest.fixture
def oversized(tmp_path, tokenizer):
    return oversized_checkpoint(tmp_path / "large", tokenizer)


def test_inspection_tells_what_is_there(micro_model, oversized, capsys):
    result = inspect_checkpoint.main([str(micro_model), "--json"])
    assert json.loads(capsys.readouterr().out) == result
    assert result["agrees"] and result["form"] == "hf"
    assert result["heads"]["next_sentence"] == "fresh"
    bias = merge.flatten(source.load(micro_model).params)["masked_lm/bias"]
    tensor = result["tensors"]["cls.predictions.bias"]
    assert tensor["shape"] == [787] and tensor["dtype"] == "float32"
    np.testing.assert_allclose(tensor["norm"], np.linalg.norm(bias), rtol=1e-6)
    result = inspect_checkpoint.main([str(oversized)])
    assert not result["agrees"] and "887 rows" in result["differences"]
    assert (result["embedding_rows"], result["vocabulary_lines"]) == (887, 787)
    assert "bert/pooler/dense/kernel" in capsys.readouterr().out


def test_tensors_are_listed_without_a_config(shared, capsys):
    path = shared / "fixtures/finetune_training/final"
    result = inspect_checkpoint.main([str(path), "--json"])
    assert not result["agrees"] and "--config names it" in result["differences"]
    recorded = recorded_digests(shared, "finetune_training/final")
    assert {n: t["shape"] for n, t in result["tensors"].items()} == {
        n: t["shape"] for n, t in recorded.items()
    }
    assert json.loads(capsys.readouterr().out) == result

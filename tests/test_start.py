"""Continued pretraining with more tokens than the model has."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import SAMPLE, arguments

from clue_jax.convert import merge, model_dir
from clue_jax.errors import UserError
from pretraining import build_shards, run


@pytest.fixture(scope="module")
def more(vocab_file, tmp_path_factory):
    """The vocabulary with three entries more, and shards made with it."""
    folder = tmp_path_factory.mktemp("more")
    vocab = folder / "vocab.txt"
    text = vocab_file.read_text(encoding="utf-8").rstrip("\n")
    vocab.write_text(text + "\n甭\n囧\n槑\n", encoding="utf-8")
    extra = folder / "extra.txt"
    extra.write_text(
        SAMPLE.read_text(encoding="utf-8") + "\n" + "甭囧槑，囧。\n" * 120, encoding="utf-8"
    )
    build_shards.main(
        ["--input", str(extra), "--vocab", str(vocab), "--output", str(folder / "shards")]
        + ["--seq-len", "32", "--workers", "1"]
    )
    return folder


def test_new_entries_are_learned_beside_the_old(more, micro_model, tmp_path):
    vocab = str(more / "vocab.txt")
    # At a learning rate that moves nothing, the start can be seen.
    options = {"vocab": vocab, "steps": 2, "learning_rate": 1e-12, "mesh": "data=1"}
    run.main(arguments(more / "shards", tmp_path / "still", micro_model, **options))
    before = model_dir.load(micro_model)
    after = model_dir.load(tmp_path / "still" / "model")
    old = before.config.vocab_size
    assert after.config.vocab_size == after.tokenizer.vocab_size == old + 3
    assert after.tokenizer.vocabulary[old:] == ["甭", "囧", "槑"]
    first, second = merge.flatten(before.params), merge.flatten(after.params)
    assert first.keys() == second.keys()
    for path, array in first.items():
        np.testing.assert_allclose(second[path][: len(array)], array, atol=1e-9, err_msg=path)
    added = second["bert/embeddings/word_embeddings"][old:]
    assert 0.01 < added.std() < 0.03  # the original's initial deviation is 0.02
    assert np.abs(second["masked_lm/bias"][old:]).max() < 1e-9

    options |= {"steps": 30, "learning_rate": 3e-3}
    run.main(arguments(more / "shards", tmp_path / "moves", micro_model, **options))
    learned = merge.flatten(model_dir.load(tmp_path / "moves" / "model").params)
    assert learned["masked_lm/bias"][old:].min() > 0.005  # they are frequent


def test_other_vocabularies_are_refused(more, micro_model, vocab_file, tmp_path):
    lines = vocab_file.read_text(encoding="utf-8").splitlines()
    other = tmp_path / "vocab.txt"
    lines[-1], lines[-2] = lines[-2], lines[-1]
    other.write_text("\n".join([*lines, "甭"]) + "\n", encoding="utf-8")
    build_shards.main(
        ["--input", str(SAMPLE), "--vocab", str(other), "--output", str(tmp_path / "shards")]
        + ["--seq-len", "32", "--workers", "1"]
    )
    with pytest.raises(UserError, match=f"line {len(lines) - 1}: .* may only follow the old"):
        run.main(arguments(tmp_path / "shards", tmp_path / "out", micro_model, vocab=str(other)))
    assert not (tmp_path / "out").exists()

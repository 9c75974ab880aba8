"""tools.convert where embeddings and vocabulary differ in size."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from checkpoints import oversized_checkpoint

from clue_jax.convert import merge, source, tf_bert
from clue_jax.convert.compare import compare
from clue_jax.errors import UserError
from clue_jax.model import PretrainingModel
from tools import convert


@pytest.fixture
def oversized(tmp_path, tokenizer):
    return oversized_checkpoint(tmp_path / "large", tokenizer)


@pytest.mark.parametrize("form", ["tf", "model"])
def test_dead_rows_are_refused_cut_or_named(oversized, tmp_path, tokenizer, form):
    lines = tokenizer.vocab_size
    target = tmp_path / "out"
    with pytest.raises(UserError, match=f"{lines + 100} rows, .* {lines + 100}, .* {lines} lines"):
        convert.main([str(oversized), str(target), "--to", form])
    assert not target.exists()
    result = convert.main([str(oversized), str(target), "--to", form, "--crop-vocab", "--check"])
    assert result["tensors_equal"] and result["largest_output_difference"] < 1e-6
    assert result["outputs"] == ["masked_lm", "next_sentence", "pooled_output", "sequence_output"]
    loaded = source.load(target)
    assert loaded.config.vocab_size == lines == len(loaded.params["masked_lm"]["bias"])
    # Against the uncut file, read by itself: the first rows are kept, and no output changes.
    uncut = merge.nest(
        merge.flatten(
            tf_bert.load(
                oversized / "bert_model.ckpt", loaded.config.replace(vocab_size=lines + 100)
            )[0]
        )
    )
    kept = loaded.params["bert"]["embeddings"]["word_embeddings"]
    np.testing.assert_array_equal(kept, uncut["bert"]["embeddings"]["word_embeddings"][:lines])
    ids = np.random.default_rng(0).integers(0, lines, (3, 16)).astype(np.int32)
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), ids.shape)
    before, after = (
        PretrainingModel(loaded.config.replace(vocab_size=size).without_dropout()).apply(
            {"params": params}, ids, ids >= 0, ids * 0, positions, method="masked_lm_only"
        )
        for size, params in ((lines + 100, uncut), (lines, loaded.params))
    )
    np.testing.assert_allclose(after, before[..., :lines], atol=1e-6)
    padded = tmp_path / "padded"
    convert.main([str(oversized), str(padded), "--to", form, "--pad-vocab", str(lines + 100)])
    loaded = source.load(padded)
    assert loaded.tokenizer.vocab_size == loaded.config.vocab_size == lines + 100
    assert loaded.tokenizer.vocabulary[:lines] == tokenizer.vocabulary
    assert len(set(loaded.tokenizer.vocabulary)) == lines + 100


def test_a_difference_is_told(micro_model):
    """A cropped, a changed and a broken model, against the one they were made of."""
    before = source.load(micro_model)
    words = before.params["bert"]["embeddings"]["word_embeddings"]
    same = compare(before, before)
    assert same["tensors_equal"] and same["largest_tensor_difference"] == 0
    assert same["largest_output_difference"] == 0
    changed = jax.tree.map(np.array, before.params)
    changed["bert"]["embeddings"]["word_embeddings"] = np.roll(words, 1, axis=0)
    found = compare(before, dataclasses.replace(before, params=changed))
    expected = np.abs(words - np.roll(words, 1, axis=0)).max()
    assert not found["tensors_equal"] and found["largest_tensor_difference"] == expected
    assert found["largest_output_difference"] > 0.1
    changed = jax.tree.map(np.array, before.params)
    changed["bert"]["pooler"]["bias"][3] = np.nan
    found = compare(before, dataclasses.replace(before, params=changed))
    assert not found["tensors_equal"] and found["largest_tensor_difference"] is None
    assert found["largest_output_difference"] is None
    del changed["bert"]["pooler"]
    found = compare(before, dataclasses.replace(before, params=changed))
    assert found["only_in_one"] == ["bert/pooler/bias", "bert/pooler/kernel"]


def test_padded_rows_are_never_predicted(tmp_path, micro_model, tokenizer):
    size = tokenizer.vocab_size + 5
    convert.main([str(micro_model), str(tmp_path / "p"), "--to", "model", "--pad-vocab", str(size)])
    before, after = source.load(micro_model), source.load(tmp_path / "p")
    ids = np.arange(10, 20, dtype=np.int32)[None]
    logits = [
        PretrainingModel(m.config.without_dropout()).apply(
            {"params": m.params}, ids, ids > 0, ids * 0, ids - 10, method="masked_lm_only"
        )
        for m in (before, after)
    ]
    np.testing.assert_allclose(logits[1][..., :-5], logits[0], atol=1e-6)
    assert (logits[1][..., -5:] < -9000).all()
    assert np.isfinite(logits[1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--crop-vocab", "--pad-vocab", "900"), "exclude each other"),
        (("--pad-vocab", "800"), "--pad-vocab 800 is too small"),
        (("--vocab", "missing.txt"), "missing.txt: cannot read"),
    ],
)
def test_wrong_sizes_are_refused(oversized, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert.main([str(oversized), str(tmp_path / "out"), "--to", "model", *options])
    assert not (tmp_path / "out").exists()


def test_a_config_of_another_model_is_refused(shared, tmp_path):
    folder = shared / "fixtures/tf_checkpoint/e_vocab_mismatch"
    wrong = ["--config", str(folder / "bert_config.wrong.json")]
    with pytest.raises(UserError, match=r"40 rows, bert_config.wrong.json says \d+, .*31 lines"):
        convert.main([str(folder), str(tmp_path / "o"), "--to", "model", *wrong])
    values = json.loads((folder / "bert_config.json").read_text()) | {"vocab_size": 99}
    (tmp_path / "other.json").write_text(json.dumps(values))
    wrong[1] = str(tmp_path / "other.json")
    for options in (["--crop-vocab"], ["--pad-vocab", "120"]):  # no number agrees with this one
        with pytest.raises(UserError, match=r"another model: .* 40 rows, other.json says 99, .*31"):
            convert.main([str(folder), str(tmp_path / "o"), "--to", "model", *wrong, *options])

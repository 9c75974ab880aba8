"""The original's files, sentence pairs and SentencePiece, end to end."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SAMPLE, arguments, build, metrics, micro_config, random_params

from clue_jax.convert import model_dir
from clue_jax.errors import UserError
from pretraining import build_vocab, evaluate, run
from pretraining.examples import Examples
from pretraining.masking import Masking


def test_original_records_give_the_batches_of_our_rows(vocab_file, tmp_path):
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


def test_damaged_original_records_are_refused(vocab_file, tmp_path):
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
    with pytest.raises(UserError, match="tokenizer.model: belongs to another vocabulary"):
        build_vocab.main(["--input", str(SAMPLE), "--output", str(vocab)])
    config = micro_config(result["entries"])
    model_dir.save(
        tmp_path / "model", random_params(config), config, tokenizer, heads={},
        source="random", max_seq_length=32,
    )  # fmt: skip
    assert model_dir.load(tmp_path / "model").tokenizer.encode(text) == encoding


def test_a_model_without_the_head_reports_no_next_sentence_numbers(
    vocab_file, micro_model, tmp_path
):
    build(vocab_file, tmp_path / "pairs", "--packing", "pairs", "--dupe-factor", "1")
    loaded = model_dir.load(micro_model)
    params = {name: loaded.params[name] for name in ("bert", "masked_lm")}
    model_dir.save(
        tmp_path / "model", params, loaded.config, loaded.tokenizer,
        heads={"masked_lm": "trained"}, source="x", max_seq_length=32,
    )  # fmt: skip
    data = ["--data", str(tmp_path / "pairs")]
    with_head = evaluate.main(["--model", str(micro_model), *data])
    without = evaluate.main(["--model", str(tmp_path / "model"), *data])
    assert "next_sentence_accuracy" in with_head
    assert without == {k: v for k, v in with_head.items() if not k.startswith("next_sentence")}
    assert model_dir.load(tmp_path / "model").info["heads"]["next_sentence"] == "missing"


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16"])
def test_half_precision_weights_become_float32_when_trained(shards, micro_model, tmp_path, dtype):
    loaded = model_dir.load(micro_model)
    half = jax.tree.map(lambda array: np.asarray(jnp.asarray(array, dtype)), loaded.params)
    model_dir.save(
        tmp_path / "half", half, loaded.config, loaded.tokenizer,
        heads=loaded.info["heads"], source="x", max_seq_length=32,
    )  # fmt: skip
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype
    run.main(arguments(shards, tmp_path / "out", tmp_path / "half", steps=2))
    trained = model_dir.load(tmp_path / "out" / "model")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained.params)} == {"float32"}
    assert trained.config.extra["dtype"] == "float32"

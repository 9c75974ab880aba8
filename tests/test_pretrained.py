"""`clue_jax.load`, `Model`, `Predictor` and tools.extract_features."""

from __future__ import annotations

import json
import lzma

import numpy as np
import pytest
from checkpoints import equal, written
from conftest import micro_config, random_params

import clue_jax
from clue_jax.convert import source
from clue_jax.errors import UserError
from clue_jax.features.sequences import build_row, truncate_pair
from clue_jax.text import WordPieceTokenizer
from tools import extract_features

TEXTS = ["今天的天气很好。", "我们去公园", "", "hello 清晨五点，渔港的灯一盏接一盏地亮了起来。" * 3]


@pytest.fixture(scope="module")
def model(micro_model):
    return clue_jax.load(micro_model)


@pytest.fixture(scope="module")
def reference(micro_model):
    """The same model in transformers, the judge."""
    transformers = pytest.importorskip("transformers")
    return transformers.BertForMaskedLM.from_pretrained(micro_model).eval()


def test_encode_and_masked_lm_equal_transformers(model, micro_model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    random = np.random.default_rng(0)
    ids = random.integers(5, 700, (3, 20))
    mask = (np.arange(20) < [[20], [7], [1]]).astype(np.int64)
    segments = random.integers(0, 2, (3, 20))
    theirs = transformers.BertForPreTraining.from_pretrained(micro_model).eval()
    tensors = [torch.tensor(x) for x in (ids, mask, segments)]
    with torch.no_grad():
        expected = theirs.bert(*tensors, output_hidden_states=True)
        logits = theirs(*tensors).prediction_logits
    output = model.encode(ids, mask, segments, all_layers=True)
    assert output.sequence_output.shape == (3, 20, 32)
    assert output.pooled_output.shape == (3, 32)
    for ours, other in zip(output.all_layers, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(output.pooled_output, expected.pooler_output.numpy(), atol=1e-5)
    np.testing.assert_allclose(
        model.masked_lm(ids, mask, segments), logits.numpy(), rtol=1e-4, atol=1e-4
    )
    some = model.masked_lm(ids, mask, segments, positions=[[3], [2], [0]])
    np.testing.assert_allclose(some[1, 0], logits[1, 2].numpy(), rtol=1e-4, atol=1e-4)
    assert model.encode(ids, mask, segments).all_layers == ()


def test_what_encode_refuses(model):
    for ids, message in (
        ([[1, 787]], "input_ids reach from 1 to 787, the model has 0..786"),
        ([[-1, 5]], "input_ids reach from -1"),
        ([1, 2], r"must be \[B, T\] alike"),
        (np.ones((1, 65), int), "rows of 65 tokens, the model takes 64"),
    ):
        with pytest.raises(UserError, match=message):
            model.encode(ids)
    with pytest.raises(UserError, match=r"segment_ids reach from 0 to 2, the model has 0..1"):
        model.encode([[1, 2]], segment_ids=[[0, 2]])


def test_models_are_saved_in_both_forms(model, tmp_path):
    for form in ("model", "tf"):
        model.save(tmp_path / form, form)
        again = clue_jax.load(tmp_path / form)
        assert equal(source.load(tmp_path / form).params, source.load(model.path).params)
        assert again.tokenizer.vocabulary == model.tokenizer.vocabulary
        assert again.info["heads"] == model.info["heads"]
        with pytest.raises(UserError, match="exists and is not empty"):
            model.save(tmp_path / form, form)


def test_parameters_can_be_replaced(micro_model):
    model = clue_jax.load(micro_model)
    before = np.asarray(model.encode([[5, 6]]).sequence_output)
    words = model.params["bert"]["embeddings"]["word_embeddings"]
    model.params["bert"]["embeddings"]["word_embeddings"] = words + 1
    assert not np.allclose(before, model.encode([[5, 6]]).sequence_output)


def test_a_model_without_a_vocabulary_encodes_ids_alone(tmp_path):
    config = micro_config(50)
    written(tmp_path / "m", config, random_params(config))
    model = clue_jax.load(tmp_path / "m")
    assert model.tokenizer is None and model.encode([[1, 2]]).pooled_output.shape == (1, 32)
    with pytest.raises(UserError, match="has no vocabulary"):
        clue_jax.Predictor(model)


@pytest.mark.parametrize(
    ("pooling", "layers", "expected"),
    [
        ("cls", (-1,), lambda hidden: hidden[2][0]),
        ("mean", (-1,), lambda hidden: hidden[2].mean(0)),
        ("mean", (0, -1), lambda hidden: (hidden[0] + hidden[2]).mean(0) / 2),
        ("last2", (-1,), lambda hidden: (hidden[1] + hidden[2]).mean(0) / 2),
    ],
)
def test_sentence_vectors_equal_transformers(model, reference, pooling, layers, expected):
    import torch

    vectors = clue_jax.Predictor(model).embed(TEXTS, pooling, layers)
    assert vectors.shape == (4, 32) and vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = build_row(model.tokenizer, model.tokenizer.encode(text).ids, None, 64)[0]
        with torch.no_grad():
            hidden = reference.bert(torch.tensor([ids]), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(
            vector, expected([layer[0].numpy() for layer in hidden]), rtol=1e-4, atol=1e-5
        )


def test_a_vector_does_not_depend_on_its_batch(model):
    predictor = clue_jax.Predictor(model)
    texts = TEXTS * 20
    together = predictor.embed(texts)
    for i, text in enumerate(texts[:4]):
        np.testing.assert_allclose(predictor.embed([text])[0], together[i], atol=1e-5)
        np.testing.assert_allclose(together[i], together[i + 76], atol=1e-6)
    assert predictor.embed([]).shape == (0, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "unknown pooling 'max'"),
        ({"layers": (3,)}, r"layers \[3\]: the model has -3..2"),
        ({"layers": ()}, r"layers \[\]"),
        ({"max_length": 1}, "max_length 1 must be at least 2"),
    ],
)
def test_what_embed_refuses(model, options, message):
    with pytest.raises(UserError, match=message):
        clue_jax.Predictor(model).embed(["一"], **options)


def test_fill_mask_gives_the_likeliest_first(model):
    """Against the whole softmax, by hand."""
    tokenizer = model.tokenizer
    ids = [tokenizer.cls_id, *tokenizer.encode("清晨五").ids, tokenizer.mask_id, tokenizer.sep_id]
    logits = np.asarray(model.masked_lm([ids]))[0, -2].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = np.argsort(-shares)[:4]
    (found,) = clue_jax.Predictor(model).fill_mask("清晨五[MASK]", top_k=4)
    assert [f.token for f in found] == [tokenizer.vocabulary[i] for i in best]
    np.testing.assert_allclose([f.probability for f in found], shares[best], rtol=1e-4)


def test_a_head_that_was_never_trained_is_said(micro_model, tmp_path, caplog):
    loaded = clue_jax.load(micro_model)
    loaded.info["heads"]["masked_lm"] = "fresh"
    loaded.path = str(tmp_path)
    clue_jax.Predictor(loaded).fill_mask("清[MASK]")
    assert "its masked-LM head was never trained" in caplog.text


def test_fill_mask_takes_a_loaded_model(model):
    ((first, *_),) = clue_jax.Predictor(model).fill_mask("今天[MASK]气很好", top_k=2)
    assert 0 < first.probability < 1


def test_features_are_those_of_transformers(micro_model, model, reference, tmp_path):
    """The original's format, a pair among the lines, one of them cut."""
    import torch

    lines = [
        "今天的天气很好。",
        "我们去 ||| 公园吧",
        "清晨五点，渔港的灯一盏接一盏地亮了起来。",
        "",
    ]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.jsonl"
    result = extract_features.main(
        ["--model", str(micro_model), "--input", str(tmp_path / "in.txt"), "--output", str(out)]
        + ["--layers", "-1,-2", "--max-seq-length", "16", "--batch-size", "3"]
    )
    assert result["lines"] == 4
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["linex_index"] for record in records] == [0, 1, 2, 3]
    encode = model.tokenizer.encode
    pair = build_row(model.tokenizer, encode("我们去").ids, encode("公园吧").ids, 16)
    assert pair[1] == [0] * 5 + [1] * 4
    for i, line in enumerate(lines):
        ids, segments = pair if i == 1 else build_row(model.tokenizer, encode(line).ids, None, 16)
        with torch.no_grad():
            hidden = reference.bert(
                torch.tensor([ids]), token_type_ids=torch.tensor([segments]),
                output_hidden_states=True,
            ).hidden_states  # fmt: skip
        features = records[i]["features"]
        assert [f["token"] for f in features] == [model.tokenizer.vocabulary[t] for t in ids]
        for t, feature in enumerate(features):
            assert [layer["index"] for layer in feature["layers"]] == [-1, -2]
            for layer in feature["layers"]:
                expected = hidden[layer["index"]][0, t].numpy()
                np.testing.assert_allclose(layer["values"], expected, atol=1e-5)
    assert len(records[2]["features"]) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "-1,x"], "--layers '-1,x': expected numbers"),
        (["--layers", "2"], r"--layers 2: the model has -2..1"),
        (["--max-seq-length", "65"], r"the model has 3..64"),
        (["--max-seq-length", "9", "--input", "/nowhere"], "/nowhere: cannot read"),
    ],
)
def test_what_extract_features_refuses(micro_model, tmp_path, options, message):
    (tmp_path / "in.txt").write_text("一\n")
    base = ["--model", str(micro_model), "--input", str(tmp_path / "in.txt"), "--layers", "-1"]
    with pytest.raises(UserError, match=message):
        extract_features.main([*base, "--output", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_pairs_are_cut_as_the_original_does():
    """By hand: the longer one loses its last; of equals the second does."""
    assert truncate_pair([0] * 5, [0] * 3, 6) == (3, 3)
    assert truncate_pair([0] * 4, [0] * 4, 5) == (3, 2)
    assert truncate_pair([0] * 2, [0] * 9, 5) == (2, 3)
    assert truncate_pair([0] * 2, [0] * 2, 4) == (2, 2)
    assert truncate_pair([0] * 2, [0] * 2, -1) == (0, 0)


@pytest.mark.parametrize("vocabulary", ["google", "clue"])
def test_auto_tokenizer_gives_the_recorded_ids(shared, tmp_path, vocabulary):
    """On every recorded line but those that rust_lines.json lists for it (D), and there it differs;
    ours gives the recorded ids on all of them."""
    transformers = pytest.importorskip("transformers")
    folder = shared / "fixtures/tokenization"
    file = {"google": "vocab_google_zh.txt", "clue": "vocab_clue.txt"}[vocabulary]
    listed = json.loads((folder / "rust_lines.json").read_text())["differences"]
    compared = 0
    for casing in ("lower", "cased"):
        tokenizer = WordPieceTokenizer(shared / "data/vocab" / file, casing == "lower")
        config = micro_config(tokenizer.vocab_size)
        bert = {"bert": random_params(config)["bert"]}
        place = written(tmp_path / casing, config, bert, tokenizer)
        theirs = transformers.AutoTokenizer.from_pretrained(place)
        for kind in ("real", "hard"):
            name = f"{kind}.{casing}.jsonl.xz"
            expected = {
                entry["line"]
                for entry in listed
                if entry["file"] == name and entry["vocab"] == vocabulary
                and "D" in entry["differs_in"]
            }  # fmt: skip
            different = set()
            with lzma.open(folder / name, "rt", encoding="utf-8", newline="\n") as lines:
                for number, line in enumerate(lines, 1):
                    record = json.loads(line)
                    if record["vocab"] != vocabulary:
                        continue
                    compared += 1
                    assert tokenizer.encode(record["text"]).ids == record["ids"]
                    if theirs.encode(record["text"], add_special_tokens=False) != record["ids"]:
                        different.add(number)
            assert different == expected, name
    assert compared > 3387

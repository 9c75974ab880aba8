"""Named entities: tags, rows of characters and scores, equal to recordings of the original."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clue_jax.features.entities import (
    Entity,
    as_mentions,
    baseline_entities,
    constrained,
    entities_of,
    from_mentions,
    labels_for,
    tags_of,
)
from clue_jax.features.tokens import parts, tokenize_characters
from clue_jax.metrics import entities as scores
from clue_jax.text import WordPieceTokenizer

KINDS = (
    "address", "book", "company", "game", "government", "movie", "name", "organization",
    "position", "scene",
)  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


# ---- conlleval and CLUENER -----------------------------------------------------------------------


def same(found, recorded):
    ours = tuple(found[n] for n in ("tokens", "correct_tags", "gold", "predicted", "right"))
    names = ("tokens", "correct_tags", "gold_chunks", "guessed_chunks", "correct_chunks")
    assert ours == tuple(recorded[n] for n in names)
    assert set(found["by_type"]) == set(recorded["by_type"])
    pairs = [(found, recorded["overall"])]
    pairs += [(found["by_type"][kind], recorded["by_type"][kind]) for kind in found["by_type"]]
    for a, b in pairs:
        for name in ("precision", "recall", "f1"):
            assert abs(a[name] - b[name]) < 1e-12


def test_conlleval_s_numbers_are_the_recorded_ones(shared):
    folder = shared / "fixtures/ner/conlleval"
    recorded = lines(folder / "scores.jsonl")
    assert len(recorded) == 15
    for row in recorded:
        sentences = lines(folder / f"{row['name']}.jsonl")
        gold, predicted = ([s[key] for s in sentences] for key in ("gold", "pred"))
        stream = scores.conlleval(gold, predicted, breaks=False)
        same(stream, row["as_run_ner_no_sentence_breaks"])
        same(scores.conlleval(gold, predicted), row["with_sentence_breaks"])
    for row in lines(folder / "hand_cases.jsonl"):
        same(scores.conlleval([row["gold"]], [row["pred"]], breaks=False), row["result"])


def test_cluener_s_scores_are_the_recorded_ones(shared):
    folder = shared / "fixtures/ner/cluener"
    gold = [row["label"] for row in lines(folder / "gold.json")]
    for row in lines(folder / "scores.jsonl"):
        predicted = [r["label"] for r in lines(folder / f"predictions_{row['name']}.json")]
        if len(predicted) < len(gold):  # the official script stops at the shorter file
            with pytest.raises(ValueError, match="shorter"):
                scores.cluener(gold, predicted, KINDS)
            gold = gold[: len(predicted)]
        found = scores.cluener(gold, predicted, KINDS)
        if "official_macro_f1" in row:  # else it divided by zero
            assert abs(found["macro_f1"] - row["official_macro_f1"]) < 1e-12
            for kind, value in row["official_f1_by_label"].items():
                assert abs(found["f1_by_type"][kind] - value) < 1e-12
        spans = scores.exact_spans(*[list(map(from_mentions, side)) for side in (gold, predicted)])
        for name, value in row["span_micro"].items():
            assert abs(spans[name] - value) < 1e-12


def test_the_baseline_s_entities_and_scores_are_the_recorded_ones(shared):
    folder = shared / "fixtures/ner/cluener"
    rows = lines(folder / "tag_entities.jsonl")
    assert len(rows) == 150
    for row in rows:
        for name, singles in (("bio", False), ("bios", True)):
            found = [list(entity) for entity in baseline_entities(row["tags"], singles)]
            assert found == row[name], row["tags"]
    for row in lines(folder / "seq_entity_score.jsonl"):
        sides = [
            [baseline_entities(tags, row["markup"] == "bios") for tags in row[key]]
            for key in ("labels", "predictions")
        ]
        found = scores.exact_spans(*sides)
        for ours, theirs in (("precision", "acc"), ("recall", "recall"), ("f1", "f1")):
            assert abs(found[ours] - row["overall"][theirs]) < 1e-12


def test_tags_of_cluener_s_spans_are_the_recorded_ones(shared):
    folder = shared / "fixtures/ner/cluener"
    gold = lines(folder / "gold.json")
    recorded = lines(folder / "bios.jsonl")
    compared = 0
    for row, told in zip(gold, recorded, strict=False):
        assert told["words"] == row["text"] or told["words"] == list(row["text"])
        entities = from_mentions(row["label"])
        bio = [tag.replace("S-", "B-") for tag in told["labels"]]
        try:
            made = tags_of(entities, len(row["text"]))
        except ValueError:
            continue  # spans that overlap
        assert made == bio
        assert entities_of(made) == entities
        assert from_mentions(as_mentions(row["text"], entities)) == entities
        compared += 1
    assert compared >= 100


# ---- Rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["input_64", "input_128", "edge_64", "edge_128", "input20_64_vocab8021"]
)
def test_msra_rows_are_the_recorded_ones(shared, name):
    folder = shared / "fixtures/ner/msra"
    vocab = "vocab_clue.txt" if "8021" in name else "vocab_google_zh.txt"
    tokenizer = WordPieceTokenizer(shared / "data/vocab" / vocab)
    recorded = np.load(folder / f"{name}.npz")
    length = recorded["input_ids"].shape[1]
    labels = {i: n for n, i in json.loads((folder / "labels.json").read_text())["label2id"].items()}
    told = lines(folder / f"{name.split('_')[0].removesuffix('20')}.examples.jsonl")
    for i in range(len(recorded["input_ids"])):
        units, tags = told[i]["text"].split(" "), told[i]["label"].split(" ")
        pieces = tokenize_characters(tokenizer, units)
        kept = slice(0, length - 2)
        ids = [tokenizer.cls_id, *pieces.ids[kept].tolist(), tokenizer.sep_id]
        n = len(ids)
        assert recorded["input_ids"][i][:n].tolist() == ids
        assert recorded["input_mask"][i].sum() == n
        mask = recorded["label_mask"][i]
        assert mask[1 : n - 1].tolist() == pieces.first[kept].tolist()
        assert not mask[0] and not mask[n - 1 :].any()
        for at in np.flatnonzero(mask):
            assert labels[recorded["label_ids"][i][at]] == tags[pieces.places[at - 1]]


def test_a_long_text_is_cut_without_losing_a_character(tokenizer):
    text = "清晨五点，渔港的灯亮了。" * 1700 + "灯" * 300
    pieces = tokenize_characters(tokenizer, text)
    cut = parts(pieces, text, 126)
    assert [part.start for part in cut[1:]] == [part.stop for part in cut[:-1]]
    assert cut[0].start == 0 and cut[-1].stop == len(pieces) == len(text)
    assert all(0 < part.stop - part.start <= 126 for part in cut)
    assert all(text[part.stop - 1] in "，。" for part in cut[:150])
    assert parts(tokenize_characters(tokenizer, ""), "", 126) == [slice(0, 0)]


def test_characters_without_or_with_several_pieces(shared):
    tokenizer = WordPieceTokenizer(shared / "data/vocab/vocab_google_zh.txt")
    pieces = tokenize_characters(tokenizer, "a 한好")
    assert pieces.places.tolist() == [0, 2, 2, 2, 3] or pieces.places.tolist() == [0, 2, 3]
    assert pieces.first.sum() == 3


# ---- By hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-A I-A O", [("A", 1, 2)]),
        ("I-A I-A I-B O", [("A", 0, 1), ("B", 2, 2)]),
        ("B-A B-A I-A", [("A", 0, 0), ("A", 1, 2)]),
        ("B-A E-A S-B", [("A", 0, 1), ("B", 2, 2)]),
        ("B-A", [("A", 0, 0)]),  # not closed
        ("", []),
    ],
)
def test_entities_by_hand(tags, expected):
    assert entities_of(tags.split()) == [Entity(*entity) for entity in expected]


def test_impossible_entities_are_refused():
    with pytest.raises(ValueError, match=r"A at 3\.\.5 is outside of a text of 5"):
        tags_of([Entity("A", 3, 5)], 5)
    with pytest.raises(ValueError, match=r"B at 2\.\.3 overlaps"):
        tags_of([Entity("A", 1, 2), Entity("B", 2, 3)], 5)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=5, max_size=5), max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_best_allowed_sequence_is_found(rows):
    """Against all sequences there are."""
    labels = labels_for(["A", "B"])
    assert labels == ("B-A", "I-A", "B-B", "I-B", "O")
    values = np.array(rows).reshape(-1, 5)

    def is_allowed(path):
        before = (None, *path)
        return all(
            labels[here][0] != "I"
            or (
                there is not None
                and labels[there][0] in "BI"
                and labels[there][2:] == labels[here][2:]
            )
            for there, here in zip(before, path, strict=False)
        )

    paths = [p for p in itertools.product(range(5), repeat=len(values)) if is_allowed(p)]
    found = constrained(values, labels)
    assert is_allowed(tuple(found))
    total = sum(values[i, label] for i, label in enumerate(found))
    best = max(sum(values[i, label] for i, label in enumerate(path)) for path in paths)
    np.testing.assert_allclose(total, best, atol=1e-9)

"""Multiple choice and idioms: rows and decoding, equal to recordings of the original."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clue_jax.features import choices
from clue_jax.text import WordPieceTokenizer


@pytest.fixture(scope="module")
def tokenizers(shared):
    folder = shared / "data/vocab"
    return {
        "google": WordPieceTokenizer(folder / "vocab_google_zh.txt", max_word_length=100),
        "clue": WordPieceTokenizer(folder / "vocab_clue.txt", max_word_length=100),
    }


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def padded(rows, length):
    ids, mask = np.zeros((len(rows), length), int), np.zeros((len(rows), length), int)
    segments = np.zeros((len(rows), length), int)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)], mask[i, : len(row.ids)] = row.ids, 1
        segments[i, : len(row.segments)] = row.segments
    return ids, mask, segments


@pytest.mark.parametrize(
    "name",
    ["train_512", "train_64", "dev_512", "dev_64", "test_512", "test_64", "dev10_64_vocab8021"],
)
def test_c3_rows_are_the_recorded_ones(shared, tokenizers, name):
    folder = shared / "fixtures/mrc_c3"
    recorded = np.load(folder / f"{name}.npz")
    length = recorded["input_ids"].shape[2]
    tokenizer = tokenizers["clue" if "8021" in name else "google"]
    split = name.split("_")[0].replace("dev10", "dev")
    told = [row for row in lines(folder / "examples.jsonl") if row["split"] == split]
    assert len(recorded["labels"]) == (10 if "dev10" in name else len(told))
    for i, row in enumerate(told[: len(recorded["labels"])]):
        passage, question = (tokenizer.encode(row[key]).ids for key in ("passage", "question"))
        made = [
            choices.question_row(tokenizer, passage, question, tokenizer.encode(choice).ids, length)
            for choice in row["choices_padded"]
        ]
        for array, key in zip(
            padded(made, length), ("input_ids", "input_mask", "segment_ids"), strict=True
        ):
            np.testing.assert_array_equal(array, recorded[key][i])


IDIOMS = [
    (name, suffix)
    for name in ("official_dummy_train", "fewclue_as_official", "grouped", "edge")
    for suffix in ("64", "128")
] + [("fewclue_as_official", "64_vocab8021")]


@pytest.mark.parametrize(("name", "suffix"), IDIOMS)
def test_chid_rows_are_the_recorded_ones(shared, tokenizers, name, suffix):
    folder = shared / "fixtures/mrc_chid"
    recorded = np.load(folder / f"{name}_{suffix}.npz")
    length = recorded["input_ids"].shape[2]
    tokenizer = tokenizers["clue" if "8021" in suffix else "google"]
    told = iter(lines(folder / f"{name}.doc_tokens.jsonl"))
    answers = json.loads((folder / f"{name}_answer.json").read_text())
    at = 0
    for number, group in enumerate(lines(folder / f"{name}.json")):
        ids = [tokenizer.encode(choice).ids for choice in group["candidates"]]
        for text in group["content"]:
            words = choices.cut_blanks(text)
            tags = [word for word in words if choices.BLANK.fullmatch(word)]
            assert not tags or words == next(told)["doc_tokens"]
            passage = choices.tokenize_blanked(words, tokenizer)
            for tag in tags:
                rows = choices.blank_rows(tokenizer, passage, tag, ids, length, original=True)
                made = padded(rows, length)
                count = len(rows)
                np.testing.assert_array_equal(made[0], recorded["input_ids"][at][:count])
                np.testing.assert_array_equal(made[1], recorded["input_mask"][at][:count])
                assert not made[2].any()
                assert recorded["choice_mask"][at].sum() == count
                assert recorded["example_id"][at] == number
                assert recorded["labels"][at] == answers[tag]
                at += 1
    assert at == len(recorded["labels"])


def test_idioms_are_assigned_as_recorded(shared):
    """Twenty sets of scores, ties and more blanks than choices among them."""
    folder = shared / "fixtures/mrc_chid"
    logits = np.load(folder / "decode_logits.npz")
    files = {"dummy": "official_dummy_train", "fewclue": "fewclue_as_official"}
    recorded = lines(folder / "decode.jsonl")
    assert len(recorded) == 20
    for row in recorded:
        scores = logits[f"{row['set']}__{row['mode']}"]
        answers, at = {}, 0
        for group in lines(folder / f"{files.get(row['set'], row['set'])}.json"):
            tags = [
                word
                for text in group["content"]
                for word in choices.cut_blanks(text)
                if choices.BLANK.fullmatch(word)
            ]
            chosen = choices.assign(scores[at : at + len(tags)])
            answers |= {t: c for t, c in zip(tags, chosen, strict=True) if c is not None}
            at += len(tags)
        assert list(answers.items()) == [(tag, row["global"][tag]) for tag in row["global_order"]]


# ---- By hand -------------------------------------------------------------------------------------


def test_three_are_truncated_by_hand():
    """Ties lose from the passage first, then from the choice."""
    assert choices.truncate_three([1] * 5, [1] * 2, [1] * 3, 7) == (2, 2, 3)
    assert choices.truncate_three([1] * 3, [1] * 3, [1] * 3, 8) == (2, 3, 3)
    assert choices.truncate_three([1] * 2, [1] * 3, [1] * 3, 7) == (2, 3, 2)
    assert choices.truncate_three([1], [1], [1], 0) == (0, 0, 0)


def test_three_texts_are_cut_one_token_after_the_other():
    """Against the original's own loop."""
    random = np.random.default_rng(0)
    for _ in range(2000):
        lengths = random.integers(0, 12, 3).tolist()
        room = int(random.integers(-2, 36))
        kept = {"passage": lengths[0], "choice": lengths[2], "question": lengths[1]}
        while sum(kept.values()) > max(0, room):
            kept[max(kept, key=lambda name: kept[name])] -= 1
        found = choices.truncate_three(*([1] * n for n in lengths), room)
        assert found == (kept["passage"], kept["question"], kept["choice"]), (lengths, room)


def test_what_stands_around_a_blank():
    tokens = list(range(10))
    assert choices.around(tokens, 5, 4) == ([3, 4], [6, 7])
    assert choices.around(tokens, 1, 4) == ([0], [2, 3, 4])
    assert choices.around(tokens, 8, 4) == ([5, 6, 7], [9])
    # Shorter than the room, with the blank in the second half: the original loses the left side.
    assert choices.around(tokens, 8, 14) == ([0, 1, 2, 3, 4, 5, 6, 7], [9])
    assert choices.around(tokens, 8, 14, original=True) == ([5, 6, 7], [9])


def test_blanks_of_any_number_are_found():
    words = choices.cut_blanks("他#idiom#了“好”—#idiom1234567#。")
    assert words == ["他", "#idiom#", "了", '"', "好", '"', "-", "#idiom1234567#", "。"]


def test_rows_of_a_blank_by_hand(tokenizer):
    passage = choices.tokenize_blanked(choices.cut_blanks("清#idiom1#晨#idiom2#点"), tokenizer)
    assert passage.blanks == {"#idiom1#": 1, "#idiom2#": 3}
    ids = tokenizer.encode("清晨点").ids
    cls, sep, mask = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
    unused = tokenizer.token_id("[unused1]") or tokenizer.unk_id
    (row,) = choices.blank_rows(tokenizer, passage, "#idiom1#", [[7] * 4], 24)
    # The other blank is four masks, cut so that the context is no longer than the three tokens.
    expected = [cls, 7, 7, 7, 7, sep, ids[0], unused, ids[1], mask, mask, sep]
    assert row.ids == expected and row.segments == [0] * 12


def test_a_long_choice_stays_within_the_row(tokenizer):
    passage = choices.tokenize_blanked(
        choices.cut_blanks("清晨" * 40 + "#idiom1#" + "灯" * 80), tokenizer
    )
    (row,) = choices.blank_rows(tokenizer, passage, "#idiom1#", [[7] * 9], 32)
    assert len(row.ids) == 32 and row.ids[-1] == tokenizer.sep_id
    assert row.ids[1:5] == [7] * 4 and row.ids[5] == tokenizer.sep_id


def test_no_idiom_is_used_twice():
    scores = np.array([[9.0, 8.0, 0.0], [7.0, 6.0, 0.0], [5.0, 1.0, 4.0]])
    assert choices.assign(scores) == [0, 1, 2]
    assert choices.assign(np.zeros((3, 2))) == [0, 1, None]

from __future__ import annotations

import json
import lzma
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clue_jax.errors import UserError
from clue_jax.text import WordPieceTokenizer
from clue_jax.text.basic import is_cjk, is_punctuation

ENTRIES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "中",
    "国",
    "，",
    "。",
    "a",
    "b",
    "e",
    "##b",
    "##e",
    "he",
    "##llo",
    "1",
    "##2",
    "α",
    "σ",
    "ς",
    "##σ",
    "##ς",
    "ᄀ",
    "##ᅡ",
    "[",
    "]",
    "mask",
    "##s",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "vocab.txt"
    path.write_text("".join(f"{entry}\n" for entry in ENTRIES), encoding="utf-8")
    return WordPieceTokenizer(path)


def test_hand_computed(small):
    text = "中国 Héllo12，\u0000b\u200bb"
    encoding = small.encode(text)
    assert encoding.tokens == ["中", "国", "[UNK]", "，", "b", "##b"]
    assert encoding.offsets == [(0, 1), (1, 2), (3, 10), (10, 11), (12, 13), (14, 15)]
    assert encoding.word_starts == [True, True, True, True, True, False]
    assert small.tokenize("HELLO he") == ["he", "##llo", "he"]


def test_special_tokens_in_the_text_are_split(small):
    assert small.tokenize("[MASK]") == ["[", "mask", "]"]


def test_neighbours_matter(small):
    assert small.tokenize("ΑΣ") == ["α", "##ς"]  # a capital sigma ends the word as another letter
    assert small.tokenize("Σ") == ["σ"]
    assert small.tokenize("가") == ["ᄀ", "##ᅡ"]
    assert small.encode("가").offsets == [(0, 1), (0, 1)]


@pytest.mark.parametrize("name", ["real.lower", "hard.lower", "real.cased", "hard.cased"])
def test_equals_every_recorded_line(shared, name, agree):
    files = {"google": "vocab_google_zh.txt", "clue": "vocab_clue.txt"}
    tokenizers = {
        vocab: WordPieceTokenizer(shared / "data/vocab" / file, name.endswith("lower"))
        for vocab, file in files.items()
    }
    with lzma.open(shared / f"fixtures/tokenization/{name}.jsonl.xz") as file:
        lines = [json.loads(line) for line in file.read().decode().split("\n") if line]
    for vocab, tokenizer in tokenizers.items():
        own = [line for line in lines if line["vocab"] == vocab]
        batch = tokenizer.encode_batch(line["text"] for line in own)
        for i, line in enumerate(own):
            ids = batch.ids[batch.row_splits[i] : batch.row_splits[i + 1]].tolist()
            assert ids == line["ids"], line["text"]
            assert tokenizer.tokenize(line["text"]) == line["tokens"]
        recorded = [i for line in own for i in line["ids"]]
        agree("token ids of the recorded lines", batch.ids[: batch.row_splits[-1]], recorded)
    assert len(lines) > 700


def test_code_point_classes(shared):
    flags = np.load(shared / "fixtures/tokenization/codepoint_classes.npz")["flags"]
    import unicodedata

    if unicodedata.unidata_version != "14.0.0":
        pytest.skip("recorded with the Unicode 14 tables of Python 3.11")
    for code in range(0x110000):
        assert bool(flags[code] & 4) == is_punctuation(chr(code)), hex(code)
        assert bool(flags[code] & 8) == is_cjk(chr(code)), hex(code)


characters = st.one_of(
    st.characters(exclude_categories=()),  # surrogates included
    st.sampled_from(
        "中国，。aAbB12ΣσΑαé가각\u0301\u0327\u200b\u00a0\u3000\t\n\r\0\ufffd\ue000\ud800"
    ),
)
texts = st.lists(characters, max_size=40).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(texts, max_size=4), st.booleans())
def test_any_text_equals_the_plain_form(vocab_file, lines, lower_case):
    tokenizer = WordPieceTokenizer(vocab_file, lower_case)
    batch = tokenizer.encode_batch(lines)
    assert len(batch.row_splits) == len(lines) + 1
    for i, line in enumerate(lines):
        part = slice(batch.row_splits[i], batch.row_splits[i + 1])
        ids, offsets, word_starts = tokenizer._encode_plain(line)
        assert batch.ids[part].tolist() == ids
        assert [tuple(pair) for pair in batch.offsets[part].tolist()] == offsets
        assert batch.word_starts[part].tolist() == word_starts
        assert all(0 <= start < end <= len(line) for start, end in offsets)


@pytest.mark.slow  # it measures time, which other work on the cores stretches
@pytest.mark.parametrize("unit", ["中", "a", "ab ", "각", "Σ", "\u0301", "，", "1", "\ud800", "\0"])
def test_time_is_linear(vocab_file, unit):
    """A line of 1 MB takes about eight times as long as one of 1/8 MB: far from quadratic."""
    tokenizer = WordPieceTokenizer(vocab_file)
    tokenizer.encode(unit * 100)

    def seconds(length: int) -> float:
        started = time.perf_counter()
        tokenizer.encode_batch([unit * (length // len(unit))])
        return time.perf_counter() - started

    short, long = seconds(1 << 17), seconds(1 << 20)
    assert long < 0.2 + 30 * short
    assert len(tokenizer.encode(unit * (1 << 17)).ids) <= len(unit) << 17


def test_long_words_are_unknown(small):
    assert small.tokenize("b" * 200) == ["b"] + ["##b"] * 199
    assert small.tokenize("b" * 201) == ["[UNK]"]


def test_empty_input(small):
    batch = small.encode_batch([])
    assert batch.ids.shape == (0,)
    assert batch.offsets.shape == (0, 2)
    assert batch.row_splits.tolist() == [0]
    assert small.encode("").ids == []
    assert small.encode_batch(["", "中", ""]).row_splits.tolist() == [0, 0, 1, 1]


def test_groups_join_seamlessly(small, monkeypatch):
    lines = ["中国", "ab", "", "가中", "b"] * 7
    whole = small.encode_batch(lines)
    monkeypatch.setattr("clue_jax.text.wordpiece._BUFFER_CHARACTERS", 5)
    parts = small.encode_batch(lines)
    for name in ("ids", "offsets", "word_starts", "row_splits"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_vocabulary_without_mask_is_refused(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    with pytest.raises(UserError, match=r"vocab.txt: no entry \[MASK\]"):
        WordPieceTokenizer(path)


def test_entries_end_at_line_feeds_only(tmp_path):
    """Google's file holds U+2028 as an entry; other line ends must not shift the ids after it."""
    path = tmp_path / "vocab.txt"
    path.write_bytes("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n\u2028\n##\u2028\n中\n".encode())
    assert WordPieceTokenizer(path).encode("中").ids == [7]

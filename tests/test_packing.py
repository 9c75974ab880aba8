from __future__ import annotations

import gzip
import hashlib
import itertools
import json

import numpy as np
import pytest
from conftest import SAMPLE, build
from hypothesis import given, settings
from hypothesis import strategies as st

from clue_jax.data import records
from clue_jax.errors import UserError
from clue_jax.text import WordPieceTokenizer, words
from clue_jax.text.normalize import traditional_to_simplified
from pretraining import build_shards, corpus, packing
from pretraining.corpus import Piece, cut_pieces, read_documents, split_sentences

CLS, SEP = 2, 3

documents_strategy = st.lists(
    st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=30), min_size=1, max_size=6),
    max_size=8,
)


def as_documents(lists):
    return [
        [(np.array(s, np.int32), np.arange(len(s)) % 3 == 0) for s in document]
        for document in lists
    ]


@settings(max_examples=200, deadline=None)
@given(documents_strategy, st.integers(8, 24), st.booleans())
def test_lossless_packing_loses_nothing(lists, seq_len, share_rows):
    numbers = itertools.count(10)  # every token is another one, so its place is known
    lists = [[[next(numbers) for _ in sentence] for sentence in document] for document in lists]
    rows = list(packing.pack_lossless(as_documents(lists), seq_len, CLS, SEP, share_rows))
    parts = []
    for row in rows:
        ids, starts = list(row.token_ids), list(row.word_starts)
        assert len(ids) == len(starts) <= seq_len
        assert row.document_starts[0] == 0
        assert share_rows or len(row.document_starts) == 1
        for start, stop in itertools.pairwise([*row.document_starts, len(ids)]):
            assert ids[start] == CLS
            assert ids[stop - 1] == SEP
            parts.append(list(zip(ids, starts, strict=True))[start + 1 : stop - 1])
    pieces = [
        [list(zip(s[i : i + seq_len - 2], range(i, len(s)), strict=False)) for s in document
         for i in range(0, len(s), seq_len - 2)]
        for document in lists
    ]  # fmt: skip
    expected = []
    for document in pieces:  # by hand: pieces together while they fit
        part = []
        for piece in document:
            if len(part) + len(piece) > seq_len - 2:
                expected.append(part)
                part = []
            part = part + [(token, i % 3 == 0) for token, i in piece]
        expected += [part] if part else []
    assert sorted(parts) == sorted(expected)
    if share_rows:  # no two rows would have fit into one
        for one, other in itertools.combinations(rows, 2):
            assert len(one.token_ids) + len(other.token_ids) > seq_len


def test_lossless_packing_by_hand():
    def packed(lists, seq_len=8):
        return list(packing.pack_lossless(as_documents(lists), seq_len, 2, 3))

    rows = packed([[[11] * 3, [12] * 9], [[13] * 2]])
    assert [row.token_ids.tolist() for row in rows] == [
        [2, 12, 12, 12, 12, 12, 12, 3],
        [2, 11, 11, 11, 3],
        [2, 12, 12, 12, 3],
        [2, 13, 13, 3],
    ]
    (shared_row,) = packed([[[11] * 2], [[13]]])
    assert shared_row.token_ids.tolist() == [2, 11, 11, 3, 2, 13, 3]
    assert shared_row.document_starts == [0, 4]
    # Into the row that it leaves the least room in, not the first that has enough.
    rows = packed([[[11] * 3], [[12] * 4], [[13] * 2]], 10)
    assert [row.token_ids.tolist() for row in rows] == [
        [2, 12, 12, 12, 12, 3, 2, 13, 13, 3],
        [2, 11, 11, 11, 3],
    ]


def recorded_documents(shared, vocab):
    tokenizer = WordPieceTokenizer(shared / f"data/vocab/{vocab}")
    text = shared / "fixtures/pretraining_pairs/text.txt"
    documents = []
    for document in read_documents(Piece(str(text), 0, text.stat().st_size), paragraphs=False):
        batch = tokenizer.encode_batch(document)
        sentences = [
            (batch.ids[a:b], batch.word_starts[a:b])
            for a, b in zip(batch.row_splits, batch.row_splits[1:], strict=False)
            if b > a
        ]
        if sentences:
            documents.append(sentences)
    return tokenizer, documents


def test_documents_are_parsed_as_the_original_does(shared):
    _, documents = recorded_documents(shared, "vocab_clue.txt")
    path = shared / "fixtures/pretraining_pairs/documents.clue.t2s_False.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(documents) == len(lines)
    for document, line in zip(documents, lines, strict=True):
        ids = [sentence.tolist() for sentence, _ in document]
        assert [len(sentence) for sentence in ids] == line["tokens_per_sentence"]
        compact = json.dumps(ids, separators=(",", ":"))
        assert hashlib.sha256(compact.encode()).hexdigest() == line["sha256_of_ids"]


def test_simplified_text_agrees_where_opencc_does(shared):
    """A document without a character on which OpenCC and the original's tables are known to differ
    has the recorded ids; the recorded lines and documents that are equal are counted."""
    with gzip.open(shared / "fixtures/pretraining_pairs/t2s_lines.jsonl.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    equal = [traditional_to_simplified(line["text"]) == line["converted"] for line in lines]
    assert (sum(equal), len(equal)) == (946, 1000)

    path = shared / "fixtures/t2s/single_characters_that_differ.jsonl"
    differing = {json.loads(line)["char"] for line in path.read_text().splitlines()}
    path = shared / "fixtures/pretraining_pairs/documents.clue.t2s_True.jsonl"
    expected = [json.loads(line)["sha256_of_ids"] for line in path.read_text().splitlines()]
    tokenizer = WordPieceTokenizer(shared / "data/vocab/vocab_clue.txt")
    text = shared / "fixtures/pretraining_pairs/text.txt"
    found = []
    for document in read_documents(Piece(str(text), 0, text.stat().st_size), False):
        ids = [tokenizer.encode(traditional_to_simplified(line)).ids for line in document]
        if any(ids):
            compact = json.dumps([sentence for sentence in ids if sentence], separators=(",", ":"))
            digest = hashlib.sha256(compact.encode()).hexdigest()
            found.append((digest, bool(differing & set("".join(document)))))
    assert len(found) == len(expected) == 118
    results = [
        (digest == wanted, may_differ)
        for (digest, may_differ), wanted in zip(found, expected, strict=True)
    ]
    assert all(is_equal for is_equal, may_differ in results if not may_differ)
    assert sum(not may_differ for _, may_differ in results) == 93
    assert sum(is_equal for is_equal, _ in results) == 96


@pytest.mark.parametrize("seq_len", [128, 256])
def test_original_packing_equals_the_recording(shared, tmp_path, seq_len, agree):
    """Through the command's own functions, <eop> marks removed as the original does."""
    tokenizer = WordPieceTokenizer(shared / "data/vocab/vocab_google_zh.txt")
    text = shared / "fixtures/pretraining_pairs/text.txt"
    settings_ = build_shards.Settings(
        input=(str(text),), vocab=tokenizer.vocab_file, output="", packing="original",
        seq_len=seq_len,
    )  # fmt: skip
    from collections import Counter

    documents = list(read_documents(Piece(str(text), 0, text.stat().st_size), False, "<eop>"))
    tokenized = list(build_shards._tokenize(documents, settings_, tokenizer, Counter()))
    path = shared / "fixtures/pretraining_roberta/documents.google.jsonl"
    lengths = [json.loads(line)["tokens_per_sentence"] for line in path.read_text().splitlines()]
    assert [[len(ids) for ids, _ in document] for document in tokenized] == lengths
    rows = list(packing.pack_original(tokenized, seq_len, tokenizer.cls_id, tokenizer.sep_id))
    with gzip.open(
        shared / f"fixtures/pretraining_roberta/packed.{seq_len}.jsonl.gz", "rt"
    ) as file:
        recorded = [json.loads(line) for line in file]
    ours = [row.token_ids[1:-1] for row in rows]
    assert ours == [line["ids"] for line in recorded]
    assert len(rows) > 200
    recorded = [i for line in recorded for i in line["ids"]]
    agree("tokens of packed sentences", [i for ids in ours for i in ids], recorded)


def test_pairs_equal_the_recorded_examples(shared, tmp_path, agree):
    """Every example of the original's TFRecord, in order: pairs, masks and labels."""
    tf = pytest.importorskip("tensorflow")
    build_shards.main(
        ["--input", str(shared / "fixtures/pretraining_pairs/text.txt")]
        + ["--vocab", str(shared / "data/vocab/vocab_clue.txt"), "--output", str(tmp_path)]
        + ["--packing", "pairs", "--masking", "token", "--format", "original"]
        + ["--dupe-factor", "2", "--seed", "12345"]
    )
    ours = [str(path) for path in tmp_path.glob("*.tfrecord")]
    recorded = str(shared / "fixtures/pretraining_pairs/clue.t2s_False.tfrecord.gz")
    ours, recorded = (
        [tf.train.Example.FromString(record.numpy()) for record in dataset]
        for dataset in (tf.data.TFRecordDataset(ours), tf.data.TFRecordDataset(recorded, "GZIP"))
    )
    assert len(recorded) == 1557
    assert ours == recorded

    def numbers(examples):
        features = [e.features.feature for e in examples]
        return [i for f in features for name in sorted(f) for i in f[name].int64_list.value]

    agree("numbers of pairs with masks", numbers(ours), numbers(recorded))


def test_sentences_end_after_their_marks():
    assert split_sentences("他说：“好。”然后走了。真的！？是；不是") == [
        "他说：“好。”",
        "然后走了。",
        "真的！？",
        "是；",
        "不是",
    ]
    assert split_sentences("没有标点") == ["没有标点"]


def test_pieces_cover_the_file_at_document_borders(tmp_path):
    text = "".join(f"第{i}句话。\n" + ("\n" if i % 7 == 6 else "") for i in range(500))
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    whole = list(read_documents(cut_pieces([path])[0], False))
    pieces = cut_pieces([path], 700)
    assert len(pieces) > 5
    assert [d for piece in pieces for d in read_documents(piece, False)] == whole
    assert len(whole) == 72


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeff一\u2028二\u0085三\r\n\u3000\n四".encode())
    assert list(read_documents(cut_pieces([path])[0], False)) == [["一\u2028二\u0085三"], ["四"]]


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("一\n二\n".encode() + "三".encode("gbk") + b"\n")
    with pytest.raises(UserError, match=r"text.txt, line 3: not UTF-8"):
        list(read_documents(cut_pieces([path])[0], False))


def test_segmenter_finds_the_recorded_words(shared):
    path = shared / "fixtures/segmentation/lines.jsonl"
    for line in path.read_text().splitlines():
        record = json.loads(line)
        lengths = [len(word) for word in record.get("rjieba", record["jieba"])]
        starts = np.zeros(len(record["text"]), bool)
        starts[np.cumsum([0, *lengths[:-1]])] = True
        np.testing.assert_array_equal(words.word_boundaries([record["text"]]), starts)


def test_no_word_reaches_over_the_end_of_a_text():
    texts = ["我们在图", "书馆看书\r", "", "\n", "hello", "world图书", "馆"]
    alone = [words.word_boundaries([text]) for text in texts]
    np.testing.assert_array_equal(words.word_boundaries(texts), np.concatenate(alone))
    assert all(starts[0] for starts in alone if len(starts))


def test_padded_packing_gives_every_document_a_row(vocab_file, tmp_path):
    packed, padded = (
        build(vocab_file, tmp_path / name, "--packing", name) for name in ("lossless", "padded")
    )
    assert padded["rows"] > packed["rows"] and padded["padding_share"] > packed["padding_share"]
    assert padded["dropped_tokens"] == packed["dropped_tokens"] == 0
    rows = records.RowShards(tmp_path / "padded")
    starts = rows.read(np.arange(len(rows)))["document_starts"]
    assert (starts.sum(axis=1) == 1).all()


def test_word_starts_join_characters_of_a_word(tokenizer):
    texts = ["我们在图书馆看书。", "", "hello图书馆"]
    batch = tokenizer.encode_batch(texts)
    starts = words.segmented_word_starts(texts, batch)
    first = starts[: batch.row_splits[1]]
    assert first.tolist() == [True, False, True, True, False, False, True, False, True]
    latin = starts[batch.row_splits[2] :]
    assert latin[0]
    assert latin.sum() == 2


def test_held_out_documents_are_chosen_by_their_text():
    documents = list(read_documents(cut_pieces([SAMPLE])[0], False))
    chosen = [corpus.is_held_out(document, 0.2) for document in documents]
    assert 0 < sum(chosen) < len(documents)
    assert not any(corpus.is_held_out(document, 0) for document in documents)

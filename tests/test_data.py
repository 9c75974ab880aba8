"""Shards, order, masks and batches."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clue_jax.data import batches, order, records
from clue_jax.errors import UserError
from pretraining.examples import Examples
from pretraining.masking import Masking, Vocabulary, draw_masks


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 1025])
def test_shuffle_is_a_permutation(size):
    first = order.shuffled(np.arange(size), size, 1, 0)
    assert sorted(first) == list(range(size))
    if size >= 64:
        assert (first != order.shuffled(np.arange(size), size, 1, 1)).mean() > 0.9
        assert (first != order.shuffled(np.arange(size), size, 2, 0)).mean() > 0.9
        assert abs(np.corrcoef(np.arange(size), first)[0, 1]) < 0.3


def test_every_epoch_visits_every_row_once():
    rows, batch_size = 37, 5
    seen = {}
    for step in range(37 * 3 // 5 + 1):
        for row, epoch in zip(*order.rows_of_step(step, batch_size, rows, 9), strict=True):
            seen.setdefault(int(epoch), []).append(int(row))
    for epoch in range(3):
        assert sorted(seen[epoch]) == list(range(rows))
    assert seen[0] != seen[1]


def test_hash_looks_uniform():
    values = order.uniform(order.mix(3, np.arange(100_000)))
    counts, _ = np.histogram(values, bins=100, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 150  # chi squared, 99 degrees of freedom


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("masks", [0, 5])
def test_rows_come_back(pairs, masks):
    rng = np.random.default_rng(0)
    layout = records.RowLayout(33, pairs, masks)
    columns = {
        "token_ids": rng.integers(0, 1 << 16, (6, 33)),
        "length": rng.integers(1, 34, 6),
        "word_starts": rng.random((6, 33)) < 0.5,
        "document_starts": rng.random((6, 33)) < 0.1,
        "segment_ids": rng.integers(0, 2, (6, 33)),
        "next_sentence_label": rng.integers(0, 2, 6),
        "masked": rng.random((6, 33)) < 0.1,
        "masked_lm_ids": rng.integers(0, 1 << 16, (6, max(1, masks))),
    }
    back = records.unpack_rows(layout, records.pack_rows(layout, columns))
    for name, column in back.items():
        np.testing.assert_array_equal(column, columns[name], err_msg=name)
    assert ("masked" in back) == bool(masks)
    assert ("segment_ids" in back) == pairs


def test_a_slot_takes_at_most_two_and_a_half_bytes():
    for seq_len in (128, 256, 512):
        assert records.RowLayout(seq_len).dtype.itemsize <= 2.5 * seq_len
        assert records.RowLayout(seq_len, pairs=True).dtype.itemsize <= 2.5 * seq_len


def test_stock_tf_data_reads_the_rows(shards):
    tf = pytest.importorskip("tensorflow")
    folder = records.RowShards(shards)
    paths = [str(shards / shard["name"]) for shard in folder.manifest["shards"]]
    size = folder.layout.dtype.itemsize
    dataset = tf.data.FixedLengthRecordDataset(paths, size)
    ids = [
        tf.io.decode_raw(tf.strings.substr(record, 0, 2 * folder.seq_len), tf.uint16).numpy()
        for record in dataset
    ]
    np.testing.assert_array_equal(ids, folder.read(np.arange(len(folder)))["token_ids"])


def naive_masks(row, length, word_starts, special, budget, scores, longer=None):
    """The original's rule, slot by slot; with `longer`, for runs of words."""
    words = []
    for slot in range(length):
        if row[slot] in special:
            continue
        if words and not word_starts[slot] and words[-1][-1] == slot - 1:
            words[-1].append(slot)
        else:
            words.append([slot])
    chosen = []
    for word in sorted(words, key=lambda word: scores[word[0]]):
        if longer is not None:
            number, following = words.index(word), 0
            for share in (0.6, 0.3, 0.1):
                follows = words[number + following + 1 : number + following + 2]
                if longer[word[0]] < share and follows and follows[0][0] == word[-1] + 1:
                    word, following = word + follows[0], following + 1
            word = [slot for slot in word if slot not in chosen]
        if len(chosen) + len(word) <= budget:
            chosen += word
    return sorted(chosen)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.floats(0.05, 0.6), st.booleans())
def test_masks_follow_the_rule(seed, max_predictions, share, in_runs):
    rng = np.random.default_rng(seed)
    b, t = 5, 40
    lengths = rng.integers(3, t + 1, b)
    ids = rng.integers(5, 60, (b, t)).astype(np.int32)
    ids[:, 0] = 2
    ids[np.arange(b), lengths - 1] = 3
    ids[rng.random((b, t)) < 0.05] = 3
    starts = rng.random((b, t)) < 0.6
    vocabulary = Vocabulary(4, np.arange(5), np.arange(5, 60, dtype=np.int32))
    masking = Masking("ngram" if in_runs else "whole-word", share, max_predictions)
    frame = (ids == 2) | (ids == 3)
    rows = rng.integers(0, 1000, b)
    drawn = draw_masks(ids, lengths, starts, frame, masking, vocabulary, seed, 3, rows)
    noise = order.mix(seed, 3, rows[:, None], np.arange(t))
    scores, longer = order.uniform(noise), order.uniform(order.mix(noise, 3))
    for i in range(b):
        budget = min(max_predictions, max(1, round(int(lengths[i]) * share)))
        expected = naive_masks(
            ids[i], lengths[i], starts[i], (2, 3), budget, scores[i],
            longer[i] if in_runs else None,
        )  # fmt: skip
        used = drawn["masked_lm_weights"][i] > 0
        assert drawn["masked_lm_positions"][i][used].tolist() == expected
        assert drawn["masked_lm_ids"][i][used].tolist() == ids[i][expected].tolist()
        untouched = np.setdiff1d(np.arange(t), expected)
        np.testing.assert_array_equal(drawn["input_ids"][i][untouched], ids[i][untouched])


def test_mask_fates_and_independence_of_the_batch(tokenizer):
    vocabulary = Vocabulary.of(tokenizer)
    b, t = 400, 64
    rng = np.random.default_rng(0)
    ids = rng.choice(vocabulary.ordinary_ids, (b, t))
    arguments = (np.full(b, t), np.ones((b, t), bool), np.zeros((b, t), bool))
    masking = Masking("token", 0.25, 16)

    def draw(rows, epochs=0):
        return draw_masks(
            ids[rows], *(a[rows] for a in arguments), masking, vocabulary, 7, epochs, rows
        )

    drawn = draw(np.arange(b))
    assert (drawn["masked_lm_weights"].sum(1) == 16).all()
    shown = np.take_along_axis(drawn["input_ids"], drawn["masked_lm_positions"], 1)
    n = shown.size
    is_mask = (shown == vocabulary.mask_id).mean()
    is_kept = (shown == drawn["masked_lm_ids"]).mean()
    assert is_mask == pytest.approx(0.8, abs=4 * (0.16 / n) ** 0.5)
    assert is_kept == pytest.approx(0.1, abs=4 * (0.09 / n) ** 0.5 + 0.001)
    replaced = shown[(shown != vocabulary.mask_id) & (shown != drawn["masked_lm_ids"])]
    assert not np.isin(replaced, vocabulary.special_ids).any()
    assert len(np.unique(replaced)) > 200
    # The same row is masked alike in any batch, and otherwise in another epoch.
    alone = draw(np.array([17]))
    np.testing.assert_array_equal(alone["input_ids"][0], drawn["input_ids"][17])
    assert (draw(np.arange(b), 1)["input_ids"] != drawn["input_ids"]).any(axis=1).all()
    # Every slot has the same chance.
    slots = np.bincount(drawn["masked_lm_positions"].ravel(), minlength=t)
    assert ((slots - 100) ** 2 / 100).sum() < 120


def masked_slots(kind: str, word: int, share: float, b: int, t: int) -> np.ndarray:
    """bool [B, T], masks of rows of words of `word` tokens each."""
    starts = np.broadcast_to(np.arange(t) % word == 0, (b, t))
    vocabulary = Vocabulary(4, np.arange(5), np.arange(5, 60, dtype=np.int32))
    rows = np.arange(b)
    drawn = draw_masks(
        np.full((b, t), 9, np.int32), np.full(b, t), starts, np.zeros((b, t), bool),
        Masking(kind, share), vocabulary, 0, 0, rows,
    )  # fmt: skip
    masked = np.zeros((b, t), bool)
    used = drawn["masked_lm_weights"] > 0
    masked[np.nonzero(used)[0], drawn["masked_lm_positions"][used]] = True
    return masked


def test_runs_have_macberts_lengths():
    """So few that they hardly meet: a run is what is masked together."""
    masked = masked_slots("ngram", word=1, share=0.02, b=300, t=2000)
    lengths = Counter()
    for row in masked:
        text = "".join("x" if m else " " for m in row)
        lengths.update(map(len, text.split()))
    shares = np.array([lengths[n] for n in (1, 2, 3, 4)]) / lengths.total()
    # At the end of its 40 tokens a row has room for short ones only.
    np.testing.assert_allclose(shares, [0.4, 0.3, 0.2, 0.1], atol=0.05)


def test_mixes_have_their_shares():
    """Of two-token words, whole-word masks whole ones; single tokens hardly ever do that."""
    masked = masked_slots("whole-word=0.3,token=0.7", word=2, share=0.15, b=2000, t=240)
    in_words = (masked[:, ::2] == masked[:, 1::2]).all(axis=1)
    assert in_words.mean() == pytest.approx(0.3, abs=4 * (0.21 / 2000) ** 0.5)
    assert (masked.sum(axis=1) == 36).all()


def test_bad_masking_is_refused():
    for kind in ("words", "token=0.5", "token=0.5,ngram=0.6", "token=x", "token=1.5,ngram=-0.5"):
        with pytest.raises(UserError, match="expected whole-word"):
            Masking(kind)
    for arguments in (("none",), ("token", 0.0), ("token", 1.0), ("token", 0.15, 0)):
        with pytest.raises(UserError):
            Masking(*arguments)


def test_examples_are_a_function_of_the_step(shards):
    masking = Masking("whole-word", 0.15, 5)
    examples, again = (Examples(shards, None, masking, 3) for _ in range(2))
    for step in (0, 7, 500):
        a, b = examples.step(step, 4, 3), again.step(step, 4, 3)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    batch = examples.step(0, 4, 3)
    assert batch["input_ids"].shape == (4, 32)
    assert batch["masked_lm_positions"].shape == (4, 5)
    used = batch["masked_lm_weights"] > 0
    slots = np.take_along_axis(batch["document_ids"], batch["masked_lm_positions"], 1)
    assert (slots[used] > 0).all()


def test_documents_and_positions_of_a_packed_row():
    starts = np.zeros((1, 8), bool)
    starts[0, [0, 3]] = True
    columns = batches.document_columns(starts, np.array([6]))
    assert columns["document_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 0, 0]]
    assert columns["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 0]]


def test_both_streams_give_the_same_batches(shards):
    pytest.importorskip("tensorflow")
    examples = Examples(shards, None, Masking("whole-word", 0.15, 5), 0)

    def make(step):
        return examples.step(step, 3, 0)

    threads = list(batches._stream_threads(make, 2, 9))
    tf_data = list(batches._stream_tf_data(make, 2, 9))
    assert len(threads) == len(tf_data) == 7
    for i, (a, b) in enumerate(zip(threads, tf_data, strict=True)):
        expected = make(i + 2)
        assert a.keys() == b.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(a[name], expected[name])
            np.testing.assert_array_equal(b[name], expected[name])
            assert b[name].dtype == expected[name].dtype


@pytest.mark.parametrize("form", ["_stream_threads", "_stream_tf_data"])
def test_a_fault_in_the_data_keeps_its_message(form):
    if form == "_stream_tf_data":
        pytest.importorskip("tensorflow")

    def make(step):
        if step == 2:
            raise UserError("shard 7 is damaged")
        return {"x": np.zeros(1)}

    stream = getattr(batches, form)
    with pytest.raises(UserError, match="shard 7 is damaged"):
        list(stream(make, 0, 5))
    assert list(stream(make, 3, 3)) == []


def test_damage_is_found_before_use(shards, tmp_path):
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(shards, folder)
    path = next(folder.glob("*.rows"))
    data = path.read_bytes()
    rng = random.Random(0)
    for _ in range(30):
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        opened = records.RowShards(folder)
        with pytest.raises(UserError, match=f"{path.name}: row .* is damaged"):
            opened.read(np.arange(len(opened)))
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"{path.name}: .* bytes, the manifest says"):
        records.RowShards(folder)
    path.unlink()
    with pytest.raises(UserError, match="missing shard"):
        records.RowShards(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="no manifest.json"):
        records.RowShards(folder)


def test_ids_beyond_the_vocabulary_are_refused(shards, tmp_path, vocab_file):
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(shards, folder)
    opened = records.RowShards(folder)
    columns = opened.read(np.arange(len(opened)))
    columns["token_ids"][0, 3] = 60_000
    path = next(folder.glob("*.rows"))
    records.write_shard(path, records.pack_rows(opened.layout, columns))
    examples = Examples(folder, None, Masking(), 0)
    with pytest.raises(UserError, match="holds 60000, but the vocabulary has"):
        examples.batch(np.arange(len(examples)))

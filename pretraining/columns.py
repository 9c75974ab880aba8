"""Packed rows as arrays, masks fixed in them, and the same in the original's schema."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from clue_jax.text import Tokenizer
from pretraining.masking import Masking, Vocabulary, draw_masks, masked_columns
from pretraining.packing import Row

Columns = dict[str, np.ndarray]

_BLOCK = 4096  # rows held as Python lists at a time


def rows_to_columns(
    rows: Iterable[Row], seq_len: int, pad_id: int, max_predictions: int
) -> Columns:
    """Rows as the arrays that `clue_jax.data.records.pack_rows` takes.

    Args:
      rows: of one packing.
      seq_len: T.
      pad_id: fills unused slots.
      max_predictions: M, for rows that bring their masks.
    """
    rows = iter(rows)
    blocks = []
    while block := list(itertools.islice(rows, _BLOCK)):
        blocks.append(_block_columns(block, seq_len, pad_id, max_predictions))
    if not blocks:
        blocks = [_block_columns([], seq_len, pad_id, max_predictions)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _block_columns(rows: Sequence[Row], seq_len: int, pad_id: int, max_predictions: int) -> Columns:
    shape = len(rows), seq_len
    token_ids = np.full(shape, pad_id, np.int32)
    word_starts = np.zeros(shape, bool)
    document_starts = np.zeros(shape, bool)
    segment_ids = np.zeros(shape, np.int32)
    masked = np.zeros(shape, bool)
    targets = np.zeros(shape, np.int32)
    for i, row in enumerate(rows):
        token_ids[i, : len(row.token_ids)] = row.token_ids
        word_starts[i, : len(row.token_ids)] = row.word_starts
        document_starts[i, row.document_starts] = True
        if row.segment_ids is not None:
            segment_ids[i, : len(row.token_ids)] = row.segment_ids
        if row.masked:
            masked[i, list(row.masked)] = True
            targets[i, list(row.masked)] = list(row.masked.values())
    return {
        "token_ids": token_ids,
        "length": np.array([len(row.token_ids) for row in rows], np.int32),
        "word_starts": word_starts,
        "document_starts": document_starts,
        "segment_ids": segment_ids,
        "next_sentence_label": np.array([row.is_random_next for row in rows], np.uint8),
        "masked": masked,
        "masked_lm_ids": masked_columns(masked, targets, max_predictions)["masked_lm_ids"],
    }


def fix_masks(
    columns: Columns,
    masking: Masking,
    tokenizer: Tokenizer,
    seed: int,
    copies: int,
    shard: int,
) -> Columns:
    """Repeats the rows, copy by copy, with masks drawn for (seed, copy, shard and row)."""
    count = len(columns["length"])
    columns = {name: np.concatenate([column] * copies) for name, column in columns.items()}
    ids = columns["token_ids"]
    drawn = draw_masks(
        ids,
        columns["length"],
        columns["word_starts"],
        (ids == tokenizer.cls_id) | (ids == tokenizer.sep_id),
        masking,
        Vocabulary.of(tokenizer),
        seed,
        np.repeat(np.arange(copies), count),
        (shard << 40) + np.tile(np.arange(count), copies),
    )
    masked = np.zeros(ids.shape, bool)
    rows, places = np.nonzero(drawn["masked_lm_weights"])
    masked[rows, drawn["masked_lm_positions"][rows, places]] = True
    return columns | {
        "token_ids": drawn["input_ids"],
        "masked": masked,
        "masked_lm_ids": drawn["masked_lm_ids"],
    }


def original_columns(columns: Columns, max_predictions: int) -> Columns:
    """Rows with fixed masks in the original's schema (see `tfrecords.write_tfrecords`)."""
    masks = masked_columns(columns["masked"], columns["token_ids"], max_predictions)
    seq_len = columns["token_ids"].shape[1]
    return {
        "input_ids": columns["token_ids"],
        "input_mask": (np.arange(seq_len) < columns["length"][:, None]).astype(np.int32),
        "segment_ids": columns["segment_ids"],
        "masked_lm_positions": masks["masked_lm_positions"],
        "masked_lm_ids": columns["masked_lm_ids"],
        "masked_lm_weights": masks["masked_lm_weights"],
        "next_sentence_labels": columns["next_sentence_label"],
    }

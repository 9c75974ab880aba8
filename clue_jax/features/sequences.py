"""Single texts and pairs as rows: special tokens, segments, truncation, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clue_jax.text import Tokenizer


class Rows(NamedTuple):
    """A padded batch of rows, each int32 [B, T]: ids, 1 for real tokens, segments."""

    input_ids: np.ndarray
    input_mask: np.ndarray
    segment_ids: np.ndarray


def truncate_pair(a: Sequence[int], b: Sequence[int], room: int) -> tuple[int, int]:
    """How many tokens of each are kept: the longer one loses its last, of equals the second.

    Source: `_truncate_seq_pair` of google-research/bert, `run_classifier.py`.
    """
    kept_a, kept_b = len(a), len(b)
    while kept_a + kept_b > max(0, room):
        if kept_a > kept_b:
            kept_a -= 1
        else:
            kept_b -= 1
    return kept_a, kept_b


def build_row(
    tokenizer: Tokenizer, a: Sequence[int], b: Sequence[int] | None, max_length: int
) -> tuple[list[int], list[int]]:
    """`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, cut to `max_length`.

    Args:
      tokenizer: gives the special tokens.
      a: token ids.
      b: token ids of the second text, segment 1; None or nothing for a single text, as in the
        original's scripts.
      max_length: T at most, special tokens included.

    Returns:
      Token ids and segment ids.
    """
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    if not b:
        ids = [cls, *a[: max_length - 2], sep]
        return ids, [0] * len(ids)
    kept_a, kept_b = truncate_pair(a, b, max_length - 3)
    ids = [cls, *a[:kept_a], sep, *b[:kept_b], sep]
    return ids, [0] * (kept_a + 2) + [1] * (kept_b + 1)


def pad_rows(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], length: int, pad_id: int, count: int
) -> Rows:
    """Rows as arrays [count, length]; those that are lacking or empty have one real token, so that
    no attention is over nothing."""
    ids = np.full((count, length), pad_id, np.int32)
    mask = np.zeros((count, length), np.int32)
    segments = np.zeros((count, length), np.int32)
    mask[len(rows) :, 0] = 1
    for i, (row, row_segments) in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : max(1, len(row))] = 1
        segments[i, : len(row)] = row_segments
    return Rows(ids, mask, segments)


def bucket(length: int, longest: int, step: int = 32) -> int:
    """A length rounded up, so that few programs are compiled: to 16, or a multiple of `step`."""
    return min(longest, 16 if length <= 16 else -(-length // step) * step)

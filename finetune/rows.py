"""Rows of tokens, and batches of them: buckets of length, the order of training, padding."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clue_jax.data.batches import Batch
from clue_jax.features.sequences import pad_rows

SHORTEST = 32  # the smallest bucket, in slots
_WINDOW = 50  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class Rows:
    """Tokenized examples. A unit is what is trained on at once: a text, a window of a passage, a
    part of a long text, a question with a row for each of its choices.

    Attributes:
      ids, segments: of each row, special tokens included; [] in the place of a missing choice.
      labels: of each unit: int [n]; int [n, 2] for spans; float [n] for scores; float [n, C] for
        several labels; for tags a list of [n] lists, -1 where a token carries none. Zeros without
        labels.
      width: rows of a unit.
      sources: what the units were made of, as their form wants it for decoding.
    """

    ids: list[list[int]]
    segments: list[list[int]]
    labels: np.ndarray | list[list[int]]
    width: int = 1
    sources: Any = None

    def __len__(self) -> int:
        return len(self.ids) // self.width

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int [n], the longest row of each unit."""
        lengths = np.array([len(row) for row in self.ids], np.int64)
        return lengths.reshape(-1, self.width).max(axis=1)


def buckets(max_length: int) -> tuple[int, ...]:
    """The lengths that programs are compiled for: powers of two from 32, and the longest."""
    lengths = [SHORTEST]
    while lengths[-1] * 2 < max_length:
        lengths.append(lengths[-1] * 2)
    return (*(length for length in lengths if length < max_length), max_length)


def train_order(
    rows: Rows, batch_size: int, seed: int, epoch: int, by_length: bool, together: int = 1
) -> list[np.ndarray]:
    """The batches of an epoch as numbers of units: a pure function of its arguments.

    A permutation of all units, in which neighbouring batches are sorted by length so that each pads
    little; which batch comes when is random again. One batch may be smaller. With `together` the
    batches of a call are neighbours in length, in random order, and the calls as well; batches that
    fill no call, from any place, come last.

    Args:
      rows: the training set.
      batch_size: B.
      seed, epoch: of the permutation.
      by_length: False keeps the plain permutation.
      together: batches of a call.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(rows))
    if by_length:
        lengths = rows.lengths
        window = -(-_WINDOW // together) * together * batch_size
        parts = [order[i : i + window] for i in range(0, len(order), window)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if together == 1:
        return [batches[i] for i in random.permutation(len(batches))]
    count, rest = divmod(len(batches), together)
    at = int(random.integers(count + 1)) * together
    last, others = batches[at : at + rest], batches[:at] + batches[at + rest :]
    calls = [others[i * together : (i + 1) * together] for i in random.permutation(count)]
    return [call[i] for call in [*calls, last] for i in random.permutation(len(call))]


def batch_of(
    rows: Rows, chosen: np.ndarray, batch_size: int, lengths: Sequence[int], pad_id: int
) -> Batch:
    """Units as arrays.

    Args:
      rows: all of them.
      chosen: the numbers of the units.
      batch_size: B, at least as many.
      lengths: T is the first of these that holds all.
      pad_id: fills up.

    Returns:
      "input_ids", "input_mask", "segment_ids" int32 [B, T], for choices [B, C, T]; "labels" as in
      `Rows`, for tags int [B, T]; "weights" float32 [B], for tags [B, T], 0 for what fills up.
    """
    longest = max(rows.lengths[i] for i in chosen)
    length = next(length for length in lengths if length >= longest)
    numbers = [i * rows.width + j for i in chosen for j in range(rows.width)]
    picked = [(rows.ids[i], rows.segments[i]) for i in numbers]
    padded = pad_rows(picked, length, pad_id, batch_size * rows.width)._asdict()
    if rows.width > 1:
        padded = {k: v.reshape(batch_size, rows.width, length) for k, v in padded.items()}
    if isinstance(rows.labels, list):
        labels = np.full((batch_size, length), -1, np.int32)
        for row, i in enumerate(chosen):
            labels[row, : len(rows.labels[i])] = rows.labels[i]
        weights = (labels >= 0).astype(np.float32)
        labels = np.maximum(labels, 0)
    else:
        labels = np.zeros((batch_size, *rows.labels.shape[1:]), rows.labels.dtype)
        labels[: len(chosen)] = rows.labels[chosen]
        weights = (np.arange(batch_size) < len(chosen)).astype(np.float32)
    return {**padded, "labels": labels, "weights": weights}


def eval_batches(
    rows: Rows, batch_size: int, lengths: Sequence[int], pad_id: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every unit once, neighbours in length together: their numbers, and the batch."""
    order = np.argsort(rows.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, batch_of(rows, chosen, batch_size, lengths, pad_id)

"""A function of rows, compiled for a few shapes, and the batches that cost least with these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from clue_jax.features.sequences import pad_rows

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SIZES = (1, 4, 16, 64)  # rows of a batch
_MOST = 1024  # slots of a batch, if it has more than one row; more is slower on a CPU
_CALL = 64  # what a call costs beside its slots, in slots
MASKS = 8  # M, places of a row at which the vocabulary is scored


class Row(NamedTuple):
    """Token ids, special tokens included, not padded, their segments, and places of [MASK]."""

    ids: Sequence[int]
    segments: Sequence[int]
    masks: Sequence[int] = ()


class Batch(NamedTuple):
    """Which rows share a call, and its shape."""

    rows: list[int]
    size: int
    length: int


# (params, input_ids [B, T], input_mask [B, T], segment_ids [B, T], masks [B, M]) -> [B, ..]
Function = Callable[[Any, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def shapes(longest: int) -> list[tuple[int, int]]:
    """B and T of all programs of a model that takes rows of `longest` tokens."""
    lengths = [length for length in LENGTHS if length < longest] + [longest]
    return [(b, t) for t in lengths for b in SIZES if b == 1 or b * t <= _MOST]


def plan(lengths: Sequence[int], longest: int) -> list[Batch]:
    """Rows in batches whose padded slots, and calls, are fewest in sum.

    Neighbours in length share a batch. The cheapest way for the shortest n rows is known for every
    n: a last batch of some size, and the cheapest way for the rows before it.

    Args:
      lengths: of the rows, none above `longest`.
      longest: see `shapes`.
    """
    order = np.argsort(np.asarray(lengths, np.int64), kind="stable")
    sizes_of: dict[int, list[int]] = {}
    for size, length in shapes(longest):
        sizes_of.setdefault(length, []).append(size)
    fitting = np.array(sorted(sizes_of))
    at = np.searchsorted(fitting, np.asarray(lengths, np.int64)[order])
    costs, choices = [0], [(0, 0)]
    for count in range(1, len(order) + 1):
        length = int(fitting[at[count - 1]])
        ways = (
            (costs[max(0, count - size)] + size * length + _CALL, size, length)
            for size in sizes_of[length]
        )
        cost, size, length = min(ways)
        costs.append(cost)
        choices.append((size, length))
    batches = []
    count = len(order)
    while count:
        size, length = choices[count]
        first = max(0, count - size)
        batches.append(Batch(order[first:count].tolist(), size, length))
        count = first
    return batches


class Programs:
    """A function compiled for the shapes of `shapes`, each when it is first called.

    Args:
      function: see `Function`.
      params: its first argument, on the device.
      longest: tokens of a row at most.
      pad_id: fills up.
    """

    def __init__(self, function: Function, params: Any, longest: int, pad_id: int):
        self._function = jax.jit(function)
        self._params = params
        self._longest = longest
        self._pad_id = pad_id

    def compile(self) -> Iterator[tuple[int, int]]:
        """Compiles everything; yields B and T of each when it is ready."""
        for size, length in shapes(self._longest):
            self._call([Row([self._pad_id], [0])], size, length)
            yield size, length

    def __call__(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """What the function gives for each row, in order; what is as long as the row is not cut."""
        outputs: list[Any] = [None] * len(rows)
        for batch in plan([len(row.ids) for row in rows], self._longest):
            found = self._call([rows[i] for i in batch.rows], batch.size, batch.length)
            for i, output in zip(batch.rows, found, strict=False):
                outputs[i] = output
        return outputs

    def _call(self, rows: Sequence[Row], size: int, length: int) -> np.ndarray:
        padded = pad_rows([(row.ids, row.segments) for row in rows], length, self._pad_id, size)
        masks = np.zeros((size, MASKS), np.int32)
        for i, row in enumerate(rows):
            masks[i, : len(row.masks)] = row.masks
        return np.asarray(self._function(self._params, *padded, masks))

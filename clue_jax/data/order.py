"""Order and chance as pure functions of numbers, so that any step can be made again on its own."""

from __future__ import annotations

import numpy as np

_ROUNDS = 4


def mix(*numbers: np.ndarray | int) -> np.ndarray:
    """Hashes integers into uint64 values that pass for random ones; arrays broadcast.

    The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), applied once per number.
    """
    value = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for number in numbers:
            value = value ^ np.asarray(number).astype(np.uint64)
            value = value * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03)
            value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            value = value ^ (value >> np.uint64(31))
    return value


def uniform(values: np.ndarray) -> np.ndarray:
    """float64 numbers in [0, 1) from uint64 ones."""
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(index: np.ndarray, size: int, seed: int, epoch: np.ndarray | int) -> np.ndarray:
    """Where a random permutation of `size` items sends each index; nothing is stored.

    A Feistel network on the next even number of bits; results outside the range walk on along
    their cycle until they fall inside (Black and Rogaway, 2002).

    Args:
      index: int64 array of numbers in 0..size-1.
      size: how many items are permuted.
      seed, epoch: choose the permutation; `epoch` may be an array like `index`.
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    value = np.asarray(index).astype(np.uint64)
    epoch = np.broadcast_to(np.asarray(epoch), value.shape)
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = value[outside] >> np.uint64(half), value[outside] & mask
        for round_ in range(_ROUNDS):
            left, right = right, left ^ (mix(seed, epoch[outside], round_, right) & mask)
        value[outside] = left << np.uint64(half) | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)


def rows_of_step(step: int, batch_size: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The row numbers and epochs of a step's batch, int64 [B] each.

    Every epoch visits every row once, in its own order; a batch may span two epochs.
    """
    position = np.int64(step) * batch_size + np.arange(batch_size, dtype=np.int64)
    epoch = position // rows
    return shuffled(position % rows, rows, seed, epoch), epoch

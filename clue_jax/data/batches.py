"""What a batch is, and how batches reach the loop ahead of time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from clue_jax.data.tf import is_usable, tensorflow

Batch = dict[str, np.ndarray]

# The arrays of a pretraining batch: dimensions and type.
PRETRAINING_BATCH = {
    "input_ids": ("BT", np.int32),  # masks applied
    "document_ids": ("BT", np.int32),  # 1, 2, ... by document in the row, 0 for padding
    "position_ids": ("BT", np.int32),  # counted from each document's start
    "segment_ids": ("BT", np.int32),
    "masked_lm_positions": ("BM", np.int32),
    "masked_lm_ids": ("BM", np.int32),
    "masked_lm_weights": ("BM", np.float32),  # 0 for unused slots and padded rows
    "next_sentence_labels": ("B", np.int32),
    "next_sentence_weights": ("B", np.float32),  # 0 where there is no pair and for padded rows
}

_AHEAD = 8
_THREADS = min(4, os.cpu_count() or 1)  # a thread makes some 4 million slots a second


def document_columns(document_starts: np.ndarray, lengths: np.ndarray) -> Batch:
    """Documents and positions of packed rows.

    Args:
      document_starts: bool [B, T], True where a document begins; slot 0 always begins one.
      lengths: int [B], slots in use.

    Returns:
      "document_ids" and "position_ids", int32 [B, T].
    """
    slots = np.arange(document_starts.shape[1], dtype=np.int32)
    used = slots < lengths[:, None]
    starts = np.maximum.accumulate(np.where(document_starts, slots, 0), axis=1)
    documents = np.cumsum(document_starts, axis=1, dtype=np.int32)
    return {
        "document_ids": np.where(used, documents, 0).astype(np.int32),
        "position_ids": np.where(used, slots - starts, 0).astype(np.int32),
    }


def stream(make_batch: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Makes the batches of steps start..stop-1 in order, some steps ahead, in background threads.

    Both forms give the same batches: tf.data where tensorflow can be imported, threads elsewhere.

    Args:
      make_batch: step -> batch, a pure function.
      start: the first step.
      stop: one past the last step.
    """
    form = _stream_tf_data if is_usable() else _stream_threads
    return form(make_batch, start, stop)


def _stream_threads(make_batch: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    with ThreadPoolExecutor(_THREADS) as pool:
        pending = deque(pool.submit(make_batch, step) for step in range(start, stop)[:_AHEAD])
        for step in range(start, stop):
            batch = pending.popleft().result()
            if step + _AHEAD < stop:
                pending.append(pool.submit(make_batch, step + _AHEAD))
            yield batch


def _stream_tf_data(make_batch: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    tf = tensorflow("tf.data")
    if start >= stop:
        return
    failures: list[Exception] = []
    example = make_batch(start)
    names = list(example)
    types = [tf.as_dtype(example[name].dtype) for name in names]

    def values(step: np.int64) -> list[np.ndarray]:
        try:
            batch = make_batch(int(step))
        except Exception as error:  # tf.data would bury its type and message
            failures.append(error)
            raise
        return [batch[name] for name in names]

    def element(step: Any) -> dict[str, Any]:
        arrays = tf.numpy_function(values, [step], types, stateful=False)
        for name, array in zip(names, arrays, strict=True):
            array.set_shape([None] * example[name].ndim)  # batches may differ in length
        return dict(zip(names, arrays, strict=True))

    with tf.device("cpu"):
        dataset = tf.data.Dataset.range(start, stop).map(
            element, num_parallel_calls=_THREADS, deterministic=True
        )
        dataset = dataset.prefetch(_AHEAD)
    try:
        yield from dataset.as_numpy_iterator()
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise

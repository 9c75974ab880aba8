"""Vocabulary, config and weights must agree on V; cutting and padding make them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Rows of these are vocabulary entries. What a row added to them says is never predicted.
_BY_ENTRY = {
    "bert/embeddings/word_embeddings": 0.0,
    "masked_lm/decoder": 0.0,
    "masked_lm/bias": -10000.0,
}


_MOST_ENTRIES = 1_000_000


def agreement(
    rows: int, config_size: int, lines: int | None, config_name: str, crop: bool, pad: int | None
) -> tuple[int, list[str]]:
    """How many vocabulary entries a model shall have.

    Args:
      rows: of the word embedding.
      config_size: `vocab_size` of the config file.
      lines: of the vocabulary file; None if there is none.
      config_name: the config's file name, for messages.
      crop: cut the rows to the lines.
      pad: bring all of them to this number.

    Returns:
      The number of entries, and what does not agree, in words (empty if nothing).
    """
    counts = (
        f"the word embedding has {rows} rows, {config_name} says {config_size}, "
        f"the vocabulary has {'no file' if lines is None else f'{lines} lines'}"
    )
    if crop and lines is None:
        return rows, [f"--crop-vocab needs a vocabulary (--vocab FILE); {counts}"]
    known = {rows} if lines is None else {rows, lines}
    if (crop or pad is not None) and config_size not in known:
        return rows, [f"the config is of another model: {counts}"]
    if crop:
        return (lines, []) if lines <= rows else (rows, [f"--crop-vocab cannot add rows: {counts}"])
    if pad is not None:
        if pad > _MOST_ENTRIES:
            return rows, [f"--pad-vocab {pad} is more than {_MOST_ENTRIES}"]
        if pad < max(known):
            return rows, [f"--pad-vocab {pad} is too small: {counts}"]
        return pad, []
    if known == {config_size}:
        return rows, []
    remedy = []
    if lines is not None and config_size in known:
        remedy = [f"--crop-vocab cuts the weights to {lines}"] if lines < rows else []
        remedy.append(f"--pad-vocab {max(known)} pads to {max(known)}")
    return rows, [f"{counts}{'; ' if remedy else ''}{', '.join(remedy)}"]


def resize(flat: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """The parameters, by path, with `size` vocabulary entries: cut, or padded with dead rows."""
    resized = dict(flat)
    for path, value in _BY_ENTRY.items():
        if path not in flat:
            continue
        array = flat[path]
        if len(array) < size:
            added = np.full((size - len(array), *array.shape[1:]), value, array.dtype)
            array = np.concatenate([array, added])
        resized[path] = array[:size]
    return resized

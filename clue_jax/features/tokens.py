"""Texts as rows of characters, for tags: every piece knows its character, none is lost or doubled.

Source of the rules: `convert_single_example` of the original's `run_ner.py`, which tokenizes each
character by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clue_jax.text import Tokenizer

_BREAKS = frozenset("。！？；\n.!?;，,")  # where a long text is best cut


@dataclass(frozen=True)
class Characters:
    """A text in pieces.

    Attributes:
      ids: int [n] token ids.
      places: int [n], the character each belongs to; some have none, some several.
      first: bool [n], whether it is the first of its character; only these carry a tag.
    """

    ids: np.ndarray
    places: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def tokenize_characters(tokenizer: Tokenizer, text: str | Sequence[str]) -> Characters:
    """Tokenizes each character, or each unit of a text that is already cut, by itself."""
    units = list(text)
    encoded = tokenizer.encode_batch(units)
    counts = np.diff(encoded.row_splits)
    places = np.repeat(np.arange(len(units)), counts)
    first = np.ones(len(places), bool)
    first[1:] = places[1:] != places[:-1]
    return Characters(np.asarray(encoded.ids), places, first)


def parts(pieces: Characters, units: Sequence[str], room: int) -> list[slice]:
    """Consecutive parts of a text, each of at most `room` pieces, cut behind a sign in the second
    half of a part where there is one, and within a character only if it has more pieces than that;
    a single part for a text without pieces."""
    cuts = [0]
    while len(pieces) - cuts[-1] > room:
        end = cuts[-1] + room
        while end > cuts[-1] and not pieces.first[end]:  # not within a character
            end -= 1
        if end == cuts[-1]:  # a unit longer than a part; its first piece carries the tag
            end += room
        signs = (
            i + 1
            for i in range(end - 1, cuts[-1] + room // 2, -1)
            if units[pieces.places[i]] in _BREAKS
        )
        cuts.append(next(signs, end))
    return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], len(pieces)], strict=True)]

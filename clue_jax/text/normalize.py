"""Optional normalisation of text before tokenization."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from clue_jax.errors import UserError

NORMALIZATIONS = ("none", "t2s")
_SURROGATES = re.compile("([\ud800-\udfff]+)")


def normalizer(name: str) -> Callable[[str], str]:
    """The function behind a `--normalization` choice.

    Args:
      name: "none", or "t2s" for traditional to simplified Chinese characters (OpenCC). CLUEVocab
        has no traditional characters, so without it they become [UNK].

    Raises:
      UserError: for any other name.
    """
    if name not in NORMALIZATIONS:
        raise UserError(f"unknown normalization {name!r}; known: {', '.join(NORMALIZATIONS)}")
    return traditional_to_simplified if name == "t2s" else str


def traditional_to_simplified(text: str) -> str:
    """Converts traditional characters to simplified ones; everything else stays."""
    parts = _SURROGATES.split(text)  # OpenCC takes UTF-8, which has no lone surrogates
    return "".join(part if i % 2 else _opencc().convert(part) for i, part in enumerate(parts))


def aligned(text: str, normalize: Callable[[str], str]) -> str:
    """A text normalized so that it keeps its length, and places in it stay what they are."""
    shown = normalize(text)
    if len(shown) == len(text):
        return shown
    one_by_one = [normalize(character) for character in text]
    return "".join(new if len(new) == 1 else old for new, old in zip(one_by_one, text, strict=True))


@functools.cache
def _opencc() -> Any:
    import opencc

    return opencc.OpenCC("t2s")

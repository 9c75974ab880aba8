"""BERT's basic tokenization, character by character: clean, cut, lower-case, strip accents.

Every character carries its place in the text. Source of the rules: google-research/bert,
`tokenization.py`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

Character = tuple[str, int]  # and its place in the text


def is_cjk(character: str) -> bool:
    """Whether BERT counts the character as a Chinese one, to be split from its neighbours."""
    code = ord(character)
    return any(low <= code <= high for low, high in _CJK_RANGES)


# The blocks named in the original's `_is_chinese_char`.
_CJK_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def is_punctuation(character: str) -> bool:
    """Whether BERT splits at the character: all ASCII symbols and the Unicode P categories."""
    code = ord(character)
    ascii_symbol = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_symbol or unicodedata.category(character).startswith("P")


def is_dropped(character: str) -> bool:
    """Whether cleaning deletes the character: control and format characters, NUL, U+FFFD."""
    if character in "\t\n\r":
        return False
    return character in "\0\ufffd" or unicodedata.category(character) in ("Cc", "Cf")


def is_space(character: str) -> bool:
    """Whether the character separates words."""
    return character.isspace() or unicodedata.category(character) == "Zs"


def chunks(text: str) -> Iterable[list[Character]]:
    """Cleans and cuts at white space and around CJK characters: lists of (character, place)."""
    chunk: list[Character] = []
    for place, character in enumerate(text):
        if is_dropped(character):
            continue
        alone = is_cjk(character)
        if alone or is_space(character):
            if chunk:
                yield chunk
            chunk = []
            if alone:
                yield [(character, place)]
        else:
            chunk.append((character, place))
    if chunk:
        yield chunk


def normalize(chunk: list[Character]) -> list[Character]:
    """Lower case, canonical decomposition (NFD), then without non-spacing marks (Mn)."""
    # Lower-casing sees the whole chunk, since a capital sigma at its end becomes another letter.
    lowered = "".join(c for c, _ in chunk).lower()
    decomposed: list[Character] = []
    at = 0
    for character, place in chunk:
        width = len(character.lower())
        for c in lowered[at : at + width]:
            decomposed += [(part, place) for part in unicodedata.normalize("NFD", c)]
        at += width
    # Canonical ordering: runs of combining characters, stably by combining class.
    ordered: list[Character] = []
    marks: list[Character] = []
    for item in decomposed:
        if unicodedata.combining(item[0]):
            marks.append(item)
            continue
        ordered += sorted(marks, key=lambda mark: unicodedata.combining(mark[0]))
        marks = []
        ordered.append(item)
    ordered += sorted(marks, key=lambda mark: unicodedata.combining(mark[0]))
    return [item for item in ordered if unicodedata.category(item[0]) != "Mn"]


def split_words(chunk: list[Character]) -> Iterable[list[Character]]:
    """Cuts before and after punctuation, and at white space that decomposition brought."""
    word: list[Character] = []
    for item in chunk:
        alone = is_punctuation(item[0])
        if alone or item[0].isspace():
            if word:
                yield word
            word = []
            if alone:
                yield [item]
        else:
            word.append(item)
    if word:
        yield word


def normalize_text(text: str, lower_case: bool = True) -> str:
    """The characters of a text that can become tokens: cleaned, accents and capitals removed."""
    kept = (normalize(chunk) if lower_case else chunk for chunk in chunks(text))
    return "".join(c for chunk in kept for c, _ in chunk if not c.isspace())

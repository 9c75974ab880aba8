"""Passages of reading comprehension: their words, and where answers stand among them.

A word is a Chinese character, a sign, or a run of anything else between blanks. Source of the
rules: `cmrc2018_preprocess.py` and `DRCD_preprocess.py` of the original's reading comprehension.
"""

from __future__ import annotations

from dataclasses import dataclass

from clue_jax.text.basic import is_cjk

_SIGNS = frozenset('。，！？；、：（）－~「《》,」"“”$『』—;()-～‘’')
_MORE_SIGNS = frozenset("─:")  # in DRCD
_BLANKS = frozenset(" \t\r\n\u202f▁")
_MARKER = "▁"  # the original's own separator, which it does not count as a character of the text
_SKIPPED = frozenset("。，：:.,")  # an answer does not begin with one of these


@dataclass(frozen=True)
class Passage:
    """A text cut into words.

    Attributes:
      text: as given; answers are slices of it.
      shown: as the model sees it, of the same length (simplified characters, say).
      words: of `shown`.
      spans: start and end of each word, in code points.
      word_of: the word of each code point, as the original counts: a blank belongs to the word
        before it (-1 at the start), and a "▁" in the text is not counted, so that places behind it
        are one too small.
    """

    text: str
    shown: str
    words: list[str]
    spans: list[tuple[int, int]]
    word_of: list[int]


def cut(text: str, shown: str | None = None, more_signs: bool = False) -> Passage:
    """Cuts a passage into words.

    Args:
      text: the passage.
      shown: what the model sees in its place; as long as the text. None for the text itself.
      more_signs: DRCD's two more signs are words of their own.

    Raises:
      ValueError: if the two differ in length.
    """
    shown = text if shown is None else shown
    if len(shown) != len(text):
        raise ValueError(f"a text of {len(text)} characters became one of {len(shown)}")
    signs = _SIGNS | _MORE_SIGNS if more_signs else _SIGNS
    spans: list[tuple[int, int]] = []
    word_of: list[int] = []
    in_run = False
    for place, character in enumerate(shown):
        if character in signs or is_cjk(character):
            spans.append((place, place + 1))
            in_run = False
        elif character in _BLANKS:
            in_run = False
        elif in_run:
            spans[-1] = (spans[-1][0], place + 1)
        else:
            spans.append((place, place + 1))
            in_run = True
        if character != _MARKER:
            word_of.append(len(spans) - 1)
    return Passage(text, shown, [shown[a:b] for a, b in spans], spans, word_of)


@dataclass(frozen=True)
class Place:
    """Where an answer stands.

    Attributes:
      start, end: its first and last character, after repair.
      first, last: its first and last word.
      text: those words joined.
      shift: how far the start given was moved.
    """

    start: int
    end: int
    first: int
    last: int
    text: str
    shift: int


def locate(passage: Passage, answer: str, start: int, repair: int) -> Place | None:
    """The words of an answer, as the original finds them.

    A start that is too large is moved left by up to `repair` characters, and stays moved where the
    answer is not found; blanks and a sign at the start are passed over.

    Args:
      passage: as cut.
      answer: as the model sees it.
      start: its place, in code points.
      repair: 3 for CMRC 2018, 0 for DRCD.

    Returns:
      None where the original would fail: the place is outside of the passage, or the answer empty.
    """
    if not answer or start < 0:
        return None
    shift, end = 0, start + len(answer) - 1
    while passage.shown[start : end + 1] != answer and shift < repair:
        start, end, shift = start - 1, end - 1, shift + 1
    if not 0 <= start < len(passage.shown) or end >= len(passage.word_of):
        return None
    while start < len(passage.shown) and passage.shown[start] in " \t\r\n":
        start += 1
    if start >= len(passage.word_of):
        return None
    first, last = passage.word_of[start], passage.word_of[end]
    if first >= 0 and passage.words[first] in _SKIPPED:
        first += 1
    if not 0 <= first < len(passage.words) or last < 0:
        return None
    return Place(start, end, first, last, "".join(passage.words[first : last + 1]), shift)


def find(passage: Passage, answer: str, start: int) -> int | None:
    """The place of an answer nearest to the one given; None if the passage does not hold it."""
    places = []
    at = passage.shown.find(answer)
    while at >= 0 and answer:
        places.append(at)
        at = passage.shown.find(answer, at + 1)
    return min(places, key=lambda place: abs(place - start), default=None)

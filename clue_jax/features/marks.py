"""Marks round the two spans of a CLUEWSC example."""

from __future__ import annotations


def mark_spans(text: str, noun: str, noun_start: int, pronoun: str, pronoun_start: int) -> str:
    """The text with `_` round the noun and `[` `]` round the pronoun.

    Source: `WSCProcessor` of the original, `classifier_utils.py`; the positions are those of the
    given text, and the marks of the earlier span shift the later one by two.

    Args:
      text: the sentence.
      noun, noun_start: the first span and its position, in code points.
      pronoun, pronoun_start: the second.

    Raises:
      ValueError: if a span does not stand at its position.
    """
    for span, start in ((noun, noun_start), (pronoun, pronoun_start)):
        if start < 0 or not text.startswith(span, start):
            raise ValueError(f"{span!r} does not stand at position {start}")
    noun_marks = [(noun_start, "_"), (noun_start + len(noun) + 1, "_")]
    pronoun_marks = [(pronoun_start, "["), (pronoun_start + len(pronoun) + 1, "]")]
    first, second = noun_marks, pronoun_marks
    if pronoun_start <= noun_start:
        first, second = pronoun_marks, noun_marks
    for position, mark in first + [(position + 2, mark) for position, mark in second]:
        text = text[:position] + mark + text[position:]
    return text

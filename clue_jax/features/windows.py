"""Questions with windows of a passage: the rows of reading comprehension.

`[CLS] question [SEP] part of the passage [SEP]`; a passage that is too long gives several rows
which overlap. Source of the rules: `json2features` of the original's reading comprehension, after
google-research/bert, `run_squad.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clue_jax.features.passages import Passage, Place
from clue_jax.text import Tokenizer

MAX_QUESTION = 64  # tokens of a question, as in the original


@dataclass(frozen=True)
class TokenizedPassage:
    """A passage in tokens.

    Attributes:
      ids: int [n] token ids, word after word.
      words: int [n], the word that each token belongs to.
      spans: int [n, 2], start and end of each token in the passage, in code points.
      first_tokens: int [words + 1], the first token of each word.
    """

    ids: np.ndarray
    words: np.ndarray
    spans: np.ndarray
    first_tokens: np.ndarray


@dataclass(frozen=True)
class Window:
    """A row.

    Attributes:
      ids: token ids, special tokens included, not padded.
      segments: 0 up to and including the first [SEP], then 1.
      offset: where the passage begins in the row.
      first: the passage's token that stands there.
      length: how many of its tokens follow.
      is_max_context: bool [length], whether no other window has more context round the token.
      start, end: the answer's first and last token in the row; (0, 0) if it is not in the window.
    """

    ids: list[int]
    segments: list[int]
    offset: int
    first: int
    length: int
    is_max_context: np.ndarray
    start: int
    end: int


def tokenize_passage(passage: Passage, tokenizer: Tokenizer) -> TokenizedPassage:
    """Tokenizes a passage word by word, as the original."""
    encoded = tokenizer.encode_batch(passage.words)
    splits = np.asarray(encoded.row_splits)
    words = np.repeat(np.arange(len(passage.words)), np.diff(splits))
    starts = np.array([start for start, _ in passage.spans], np.int64)
    spans = encoded.offsets + starts[words][:, None]
    return TokenizedPassage(np.asarray(encoded.ids), words, spans, splits)


def answer_tokens(
    passage: TokenizedPassage, place: Place, answer_ids: Sequence[int]
) -> tuple[int, int]:
    """First and last token of an answer: those of its words, narrowed to the answer's own tokens if
    these stand among them (the year in "1895-1943").

    Args:
      passage: in tokens.
      place: of the answer.
      answer_ids: the answer's tokens.
    """
    first = int(passage.first_tokens[place.first])
    last = int(passage.first_tokens[place.last + 1]) - 1
    wanted = list(answer_ids)
    for start in range(first, last + 1):
        for end in range(last, start - 1, -1):
            if passage.ids[start : end + 1].tolist() == wanted:
                return start, end
    return first, last


def window_starts(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Start and length of each window over so many tokens; none for an empty passage."""
    windows, start = [], 0
    while start < tokens:
        length = min(tokens - start, room)
        windows.append((start, length))
        if start + length == tokens:
            break
        start += min(length, stride)
    return windows


def max_context(windows: Sequence[tuple[int, int]], tokens: int) -> np.ndarray:
    """The window in which each token has the most context: int [tokens], the earliest of equals.

    The context is the smaller of what stands left and right of it; longer windows have a little
    more.
    """
    best = np.full(tokens, -np.inf)
    chosen = np.zeros(tokens, np.int64)
    for number, (start, length) in enumerate(windows):
        left = np.arange(length)
        score = np.minimum(left, length - 1 - left) + 0.01 * length
        part = slice(start, start + length)
        better = score > best[part]
        best[part] = np.where(better, score, best[part])
        chosen[part] = np.where(better, number, chosen[part])
    return chosen


def make_windows(
    tokenizer: Tokenizer,
    question_ids: Sequence[int],
    passage: TokenizedPassage,
    answer: tuple[int, int] | None,
    max_length: int,
    stride: int = 128,
    max_question: int = MAX_QUESTION,
) -> list[Window]:
    """The rows of a question.

    Args:
      tokenizer: gives the special tokens.
      question_ids: its tokens, of which the first `max_question` are used.
      passage: in tokens.
      answer: first and last token of the answer in the passage; None if there is none.
      max_length: T at most.
      stride: by how many tokens each window starts later than the one before.
      max_question: tokens of the question at most.

    Returns:
      In order; none for a passage without tokens.

    Raises:
      ValueError: if question and special tokens leave no room for the passage.
    """
    question = list(question_ids)[:max_question]
    room = max_length - len(question) - 3
    if room < 1:
        raise ValueError(f"a question of {len(question)} tokens leaves no room in {max_length}")
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    offset = len(question) + 2
    spans = window_starts(len(passage.ids), room, stride)
    chosen = max_context(spans, len(passage.ids))
    windows = []
    for number, (first, length) in enumerate(spans):
        ids = [cls, *question, sep, *passage.ids[first : first + length].tolist(), sep]
        start = end = 0
        if answer and first <= answer[0] and answer[1] < first + length:
            start, end = (token - first + offset for token in answer)
        segments = [0] * offset + [1] * (length + 1)
        is_max = chosen[first : first + length] == number
        windows.append(Window(ids, segments, offset, first, length, is_max, start, end))
    return windows

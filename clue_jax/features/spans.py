"""From scores of starts and ends to answers: the n best spans over all windows of a question.

Source of the rules: `write_predictions` and `get_final_text` of the original's reading
comprehension, after google-research/bert, `run_squad.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clue_jax.features.passages import Passage
from clue_jax.features.windows import TokenizedPassage, Window
from clue_jax.text.basic import chunks, normalize, split_words

NOTHING = "empty"  # what the original answers when no window has a candidate


class Candidate(NamedTuple):
    """An answer.

    Attributes:
      text: as it stands in the passage.
      probability: among the candidates of its question.
      start_logit, end_logit: its scores.
      first, last: its tokens in the passage; -1 for no answer.
    """

    text: str
    probability: float
    start_logit: float
    end_logit: float
    first: int
    last: int


@dataclass(frozen=True)
class _Span:
    """A candidate before its text is known: tokens of the passage, and its scores."""

    first: int
    last: int
    start_logit: float
    end_logit: float


_NONE = _Span(-1, -1, 0.0, 0.0)


def n_best(
    windows: Sequence[Window],
    logits: Sequence[np.ndarray],
    text_of: Callable[[int, int], str],
    n: int = 20,
    max_tokens: int = 50,
    null_threshold: float | None = None,
) -> tuple[str, list[Candidate]]:
    """The answer to a question, and the candidates for it, the best first.

    Args:
      windows: of the question.
      logits: of each window float [2, T or more], starts and ends; at least as long as the row.
      text_of: first and last token of the passage -> the text of the answer.
      n: candidates at most, and so many starts and ends are looked at in each window.
      max_tokens: of an answer.
      null_threshold: for questions that may have no answer: "" is the answer if its score is above
        that of the best candidate by more than this. None: there always is one.

    Returns:
      "empty", as the original says, if no window has a candidate.
    """
    spans = [
        span
        for window, scores in zip(windows, logits, strict=True)
        for span in _spans(window, np.asarray(scores, np.float64), n, max_tokens)
    ]
    null = None
    if null_threshold is not None:
        null = min(((float(s[0][0]), float(s[1][0])) for s in logits), key=sum)
        spans.append(_Span(-1, -1, *null))
    spans.sort(key=lambda span: span.start_logit + span.end_logit, reverse=True)
    found: list[tuple[str, _Span]] = []
    seen: set[str] = set()
    for span in spans:
        if len(found) >= n:
            break
        text = "" if span.first < 0 else text_of(span.first, span.last)
        if text in seen and span.first >= 0:
            continue
        seen.add(text)
        found.append((text, span))
    if null is not None:
        if "" not in seen:
            found.append(("", _Span(-1, -1, *null)))
        if len(found) == 1:
            found.insert(0, (NOTHING, _NONE))
    if not found:
        found.append((NOTHING, _NONE))
    scores = np.array([span.start_logit + span.end_logit for _, span in found])
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    candidates = [
        Candidate(text, float(share), span.start_logit, span.end_logit, span.first, span.last)
        for (text, span), share in zip(found, shares, strict=True)
    ]
    if null is None or null_threshold is None:
        return candidates[0].text, candidates
    best = next(c for c in candidates if c.text)
    is_null = sum(null) - best.start_logit - best.end_logit > null_threshold
    return "" if is_null else best.text, candidates


def _spans(window: Window, scores: np.ndarray, n: int, max_tokens: int) -> list[_Span]:
    """The spans of a window that may be answers: by start, then by end, best first."""
    best_starts, best_ends = (np.argsort(-row, kind="stable")[:n].tolist() for row in scores)
    begin, stop = window.offset, window.offset + window.length
    spans = []
    for start in best_starts:
        if not (begin <= start < stop and window.is_max_context[start - begin]):
            continue
        for end in best_ends:
            if start <= end < min(stop, start + max_tokens):
                tokens = (window.first + start - begin, window.first + end - begin)
                spans.append(_Span(*tokens, float(scores[0][start]), float(scores[1][end])))
    return spans


def slice_of(passage: Passage, tokenized: TokenizedPassage, first: int, last: int) -> str:
    """The text of some tokens, as it stands in the passage."""
    start, end = tokenized.spans[first][0], tokenized.spans[last][1]
    return passage.text[start:end].strip()


def original_text(
    passage: Passage, tokenized: TokenizedPassage, pieces: Sequence[str], first: int, last: int
) -> str:
    """The text that the original's code gives: the words joined without blanks, narrowed to the
    tokens where these are found in them.

    Args:
      passage, tokenized: of the question.
      pieces: the tokens first..last as strings.
      first, last: tokens of the passage.
    """
    a, b = tokenized.words[first], tokenized.words[last]
    words = "".join(passage.text[start:end] for start, end in passage.spans[a : b + 1])
    return project("".join(pieces).replace("##", "").strip(), words)


def project(answer: str, words: str) -> str:
    """The part of the words that gave the tokens of an answer; all of them if it is not found.

    Args:
      answer: lower-cased and without accents, as tokens are.
      words: as written.
    """
    found = [
        c for chunk in chunks(words) for word in split_words(normalize(chunk)) for c, _ in word
    ]
    at = "".join(found).find(answer)
    places = [i for i, c in enumerate(words) if c != " "]
    if at < 0 or not answer or len(places) != len(found):
        return words
    return words[places[at] : places[at + len(answer) - 1] + 1]

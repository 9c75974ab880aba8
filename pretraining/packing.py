"""From tokenized documents to rows of T slots, in three ways.

A document is a list of sentences, a sentence a pair (token ids int32 [n], word starts bool [n]).
"""

from __future__ import annotations

import bisect
import itertools
import operator
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Sentence = tuple[np.ndarray, np.ndarray]
Document = list[Sentence]


@dataclass
class Row:
    """One row before it is packed into bytes.

    Attributes:
      token_ids, word_starts: lists or arrays of the slots in use, special tokens included.
      document_starts: slots at which a document begins.
      segment_ids: list like `token_ids`, for sentence pairs.
      is_random_next: for sentence pairs.
      masked: slot -> token to predict, for masks drawn here and applied to `token_ids`.
    """

    token_ids: Sequence[int] | np.ndarray
    word_starts: Sequence[bool] | np.ndarray
    document_starts: list[int]
    segment_ids: list[int] | None = None
    is_random_next: bool = False
    masked: dict[int, int] | None = None


def pack_lossless(
    documents: Iterable[Document],
    seq_len: int,
    cls_id: int,
    sep_id: int,
    share_rows: bool = True,
) -> Iterator[Row]:
    """Whole sentences in order, nothing dropped; short documents share a row.

    A document is cut into parts of whole sentences that fit a row; a sentence that fits none is
    split. Every part, framed by [CLS] and [SEP], goes where it fits best: into the open row that it
    leaves the least room in, or else into a new one.

    Args:
      documents: in order.
      seq_len: T.
      cls_id, sep_id: ids of [CLS] and [SEP].
      share_rows: whether a row may hold several parts.
    """
    cls, sep = np.array([cls_id], np.int32), np.array([sep_id], np.int32)
    rows: list[_Filling] = []  # open ones, the fullest first
    for part in itertools.chain.from_iterable(_parts(d, seq_len - 2) for d in documents):
        needed = sum(len(ids) for ids, _ in part) + 2
        best = bisect.bisect_left(rows, needed, key=_room)
        row = rows.pop(best) if best < len(rows) else _Filling(seq_len)
        row.add([(cls, _START), *part, (sep, _START)], needed)
        if not share_rows or row.room < _LEAST:
            yield row.row()
            continue
        bisect.insort(rows, row, key=_room)
        if len(rows) > _OPEN:
            yield rows.pop(0).row()
    for row in rows:
        yield row.row()


_OPEN = 64  # Rows that wait for parts to fill them; bounds the memory.
_LEAST = 3  # Slots of the shortest part: one token in its frame.
_START = np.array([True])


class _Filling:
    """A row that parts are put into."""

    def __init__(self, seq_len: int):
        self.room = seq_len
        self._length = seq_len
        self._pieces: list[Sentence] = []
        self._document_starts: list[int] = []

    def add(self, pieces: Sequence[Sentence], size: int) -> None:
        self._document_starts.append(self._length - self.room)
        self._pieces.extend(pieces)
        self.room -= size

    def row(self) -> Row:
        ids, starts = zip(*self._pieces, strict=True)
        return Row(np.concatenate(ids), np.concatenate(starts), self._document_starts)


_room = operator.attrgetter("room")


def _parts(document: Document, size: int) -> Iterator[list[Sentence]]:
    """Whole sentences together while they fit into so many slots; longer ones in pieces."""
    part: list[Sentence] = []
    used = 0
    for ids, starts in document:
        for at in range(0, len(ids), size):
            piece = ids[at : at + size]
            if used + len(piece) > size:
                yield part
                part, used = [], 0
            part.append((piece, starts[at : at + size]))
            used += len(piece)
    if part:
        yield part


def pack_original(
    documents: Iterable[Document], seq_len: int, cls_id: int, sep_id: int
) -> Iterator[Row]:
    """The original's DOC-SENTENCES packing, with its losses.

    Sentences of T - 2 tokens and more are dropped; so is the last piece of a document, unless it
    is longer than half a row. Source: CLUEPretrainedModels,
    baselines/models/roberta/create_pretraining_data.py.

    Args:
      documents, seq_len, cls_id, sep_id: see `pack_lossless`.
    """
    room = seq_len - 2
    for document in documents:
        ids: list[int] = []
        starts: list[bool] = []
        for sentence_ids, sentence_starts in document:
            if len(sentence_ids) >= room:
                continue
            if len(ids) + len(sentence_ids) > room:
                yield _framed(ids, starts, cls_id, sep_id)
                ids, starts = [], []
            ids = ids + sentence_ids.tolist()
            starts = starts + sentence_starts.tolist()
        if len(ids) > room / 2:
            yield _framed(ids, starts, cls_id, sep_id)


def _framed(ids: list[int], starts: list[bool], cls_id: int, sep_id: int) -> Row:
    # The original marks every such row as a random pair; nothing reads it.
    return Row([cls_id, *ids, sep_id], [True, *starts, True], [0], is_random_next=True)


@dataclass(frozen=True)
class PairSettings:
    """Settings of `pack_pairs`; the defaults are the original's.

    Attributes:
      seq_len: T.
      dupe_factor: how often every document is gone through.
      seed: of Python's `random.Random`, drawn from in the original's order.
      cls_id, sep_id: special ids.
      short_seq_prob: share of pairs aimed at a random shorter length.
      masking: "none", "token" or "whole-word" (words by their starts).
      masked_lm_prob, max_predictions: as in `pretraining.masking`.
      mask_id, vocab_size: for masks; random tokens come from the whole vocabulary.
    """

    seq_len: int
    dupe_factor: int
    seed: int
    cls_id: int
    sep_id: int
    masking: str = "none"
    masked_lm_prob: float = 0.15
    max_predictions: int = 20
    mask_id: int = -1
    vocab_size: int = 0
    short_seq_prob: float = 0.1


def pack_pairs(documents: Sequence[Document], settings: PairSettings) -> list[Row]:
    """Sentence pairs A/B, half of the B from another document, masks as the original draws them.

    With the same seed the rows equal the original's, in order. A chunk of a single sentence always
    gets a random B, so random pairs are more than half. Source: CLUEPretrainedModels,
    create_pretraining_data.py.
    """
    rng = random.Random(settings.seed)
    documents = list(documents)
    rng.shuffle(documents)
    rows: list[Row] = []
    for _ in range(settings.dupe_factor):
        for index in range(len(documents)):
            rows.extend(_document_pairs(documents, index, settings, rng))
    rng.shuffle(rows)
    return rows


def _document_pairs(
    documents: list[Document], index: int, settings: PairSettings, rng: random.Random
) -> Iterator[Row]:
    document = documents[index]
    room = settings.seq_len - 3
    target = room
    if rng.random() < settings.short_seq_prob:
        target = rng.randint(2, room)
    chunk: list[Sentence] = []
    length = 0
    i = 0
    while i < len(document):
        chunk.append(document[i])
        length += len(document[i][0])
        if i == len(document) - 1 or length >= target:
            a_end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
            a = _tokens(chunk[:a_end])
            is_random = len(chunk) == 1 or rng.random() < 0.5
            if is_random:
                b = _random_tokens(documents, index, target - len(a), rng)
                i -= len(chunk) - a_end  # the sentences that B did not take are used again
            else:
                b = _tokens(chunk[a_end:])
            _truncate(a, b, room, rng)
            yield _pair(a, b, is_random, settings, rng)
            chunk, length = [], 0
        i += 1


def _tokens(sentences: Sequence[Sentence]) -> list[tuple[int, bool]]:
    return [
        token
        for ids, starts in sentences
        for token in zip(ids.tolist(), starts.tolist(), strict=True)
    ]


def _random_tokens(
    documents: list[Document], index: int, length: int, rng: random.Random
) -> list[tuple[int, bool]]:
    for _ in range(10):
        other = rng.randint(0, len(documents) - 1)
        if other != index:
            break
    document = documents[other]
    tokens: list[tuple[int, bool]] = []
    for sentence in document[rng.randint(0, len(document) - 1) :]:
        tokens.extend(_tokens([sentence]))
        if len(tokens) >= length:
            break
    return tokens


def _truncate(a: list, b: list, room: int, rng: random.Random) -> None:
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()


def _pair(
    a: list[tuple[int, bool]],
    b: list[tuple[int, bool]],
    is_random: bool,
    settings: PairSettings,
    rng: random.Random,
) -> Row:
    cls, sep = (settings.cls_id, True), (settings.sep_id, True)
    tokens = [cls, *a, sep, *b, sep]
    row = Row(
        [token for token, _ in tokens],
        [start for _, start in tokens],
        [0],
        [0] * (len(a) + 2) + [1] * (len(b) + 1),
        is_random,
    )
    if settings.masking != "none":
        _mask(row, {0, len(a) + 1, len(tokens) - 1}, settings, rng)
    return row


def _mask(row: Row, frame: set[int], settings: PairSettings, rng: random.Random) -> None:
    words: list[list[int]] = []
    for slot in range(len(row.token_ids)):
        if slot in frame:
            continue
        joins = settings.masking == "whole-word" and words and not row.word_starts[slot]
        if joins:
            words[-1].append(slot)
        else:
            words.append([slot])
    rng.shuffle(words)
    length = len(row.token_ids)
    budget = min(settings.max_predictions, max(1, round(length * settings.masked_lm_prob)))
    row.masked = {}
    for word in words:
        if len(row.masked) >= budget:
            break
        if len(row.masked) + len(word) > budget:
            continue
        for slot in word:
            row.masked[slot] = row.token_ids[slot]
            if rng.random() < 0.8:
                row.token_ids[slot] = settings.mask_id
            elif rng.random() >= 0.5:
                row.token_ids[slot] = rng.randint(0, settings.vocab_size - 1)

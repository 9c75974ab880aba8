"""BERT tokenization (clean, split, WordPiece), exact and vectorised over code points.

In Chinese text nearly every character is a token of its own, so a table from code point to token
does most of a buffer at memory speed. Runs of Latin letters and digits need WordPiece; they repeat,
so they are cached. The few characters whose treatment depends on their neighbours (capital sigma,
Hangul, marks that reorder) send their whole text through the plain form, `_encode_plain`, which
follows the steps of the original's FullTokenizer (google-research/bert, `tokenization.py`) one by
one. Both give the same tokens; tests compare them on any string.
"""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from etils import epath

from clue_jax.errors import UserError
from clue_jax.files import read_text
from clue_jax.text.basic import (
    chunks,
    is_cjk,
    is_dropped,
    is_punctuation,
    is_space,
    normalize,
    split_words,
)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD_LENGTH = 200
_CACHE_SIZE = 400_000  # distinct Latin words remembered before starting afresh
_BUFFER_CHARACTERS = 1 << 18  # texts are joined up to this size: the temporaries stay in cache

# What a code point does. UNSEEN ones are classified when they first occur, so that no table over
# all of Unicode has to be built.
UNSEEN, DROP, SPACE, SINGLE, WORD, HARD = range(6)
_CODE_POINTS = 0x110000


class Encoding(NamedTuple):
    """One text in tokens. No special tokens are added.

    Attributes:
      ids: list of token ids.
      tokens: list of token strings.
      offsets: list of (start, end) code points of the given string.
      word_starts: list of bool, False for a `##` continuation of the word before.
    """

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    word_starts: list[bool]


@dataclass(frozen=True)
class BatchEncoding:
    """Many texts in flat arrays; text i owns the slice row_splits[i]:row_splits[i + 1].

    Attributes:
      ids: int32 [n] token ids.
      offsets: int32 [n, 2] start and end, in code points of the own text.
      word_starts: bool [n].
      row_splits: int64 [texts + 1].
    """

    ids: np.ndarray
    offsets: np.ndarray
    word_starts: np.ndarray
    row_splits: np.ndarray


class WordPieceTokenizer:
    """BERT's tokenizer: ids identical to the original's, with offsets and word starts.

    Args:
      vocab_file: `vocab.txt`, one token a line; the id is the line number from 0.
      lower_case: lower-case and strip accents first. The vocabularies of CLUE and Google have no
        capitals, so without it every capital is [UNK].
      size: pads the vocabulary with `[unusedN]`, which no text reaches, up to so many entries.
      max_word_length: longer words are [UNK]; 200 in the original but for its reading comprehension
        and Hugging Face, which have 100.

    Attributes:
      files: name -> content, what a copy of the vocabulary consists of.

    Raises:
      UserError: for a vocabulary that is missing, not UTF-8 or without a special token.
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike,
        lower_case: bool = True,
        size: int | None = None,
        max_word_length: int = MAX_WORD_LENGTH,
    ):
        self.vocab_file = str(vocab_file)
        self.max_word_length = max_word_length
        self.lower_case = lower_case
        self.vocabulary = read_vocabulary(vocab_file)
        self.files = {"vocab.txt": epath.Path(vocab_file).read_bytes()}
        if size is not None:
            self._pad(size)
        self._token_ids = {token: i for i, token in enumerate(self.vocabulary)}
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            self._token_ids[token] for token in SPECIAL_TOKENS
        )
        self.special_ids = special_ids(self.vocabulary)
        self._longest = max(len(token) for token in self.vocabulary)
        self._classes = np.zeros(_CODE_POINTS, np.uint8)
        self._single_ids = np.zeros(_CODE_POINTS, np.int32)
        self._normalized = np.arange(_CODE_POINTS, dtype=np.uint32)
        self._words: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    @property
    def vocab_size(self) -> int:
        """V, the number of lines of the vocabulary."""
        return len(self.vocabulary)

    def _pad(self, size: int) -> None:
        known = set(self.vocabulary)
        names = (f"[unused{i}]" for i in itertools.count(1))
        fresh = (name for name in names if name not in known)
        added = list(itertools.islice(fresh, max(0, size - len(self.vocabulary))))
        self.vocabulary += added
        text = self.files["vocab.txt"]
        text += b"" if text.endswith(b"\n") else b"\n"
        self.files["vocab.txt"] = text + "".join(f"{name}\n" for name in added).encode()

    def token_id(self, token: str) -> int | None:
        """The id of a token, or None."""
        return self._token_ids.get(token)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text. Special tokens written in it are split like any other text."""
        return self.encode(text).tokens

    def encode(self, text: str) -> Encoding:
        """Encodes one text, without special tokens."""
        batch = self.encode_batch([text])
        ids = batch.ids.tolist()
        return Encoding(
            ids,
            [self.vocabulary[i] for i in ids],
            [(start, end) for start, end in batch.offsets.tolist()],
            batch.word_starts.tolist(),
        )

    def encode_batch(self, texts: Iterable[str]) -> BatchEncoding:
        """Encodes many texts at once, without special tokens."""
        parts: list[BatchEncoding] = []
        for group in _groups(texts):
            parts.append(self._encode_group(group))
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return self._encode_group([])
        sizes = [part.row_splits[-1] for part in parts]
        shifts = np.concatenate([[0], np.cumsum(sizes)])
        return BatchEncoding(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.word_starts for part in parts]),
            np.concatenate(
                [np.zeros(1, np.int64)]
                + [part.row_splits[1:] + shift for part, shift in zip(parts, shifts, strict=False)]
            ),
        )

    def _encode_group(self, texts: Sequence[str]) -> BatchEncoding:
        """Encodes texts joined into one buffer of code points (a line break between them)."""
        joined = "\n".join(texts)
        buffer = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        text_starts = np.concatenate([[0], np.cumsum(lengths + 1)])
        classes = self._classify(buffer)

        hard_rows = np.unique(
            np.searchsorted(text_starts, np.flatnonzero(classes == HARD), side="right") - 1
        )
        for row in hard_rows:  # they are encoded apart, below
            classes[text_starts[row] : text_starts[row] + lengths[row]] = SPACE

        kept = np.flatnonzero(classes != DROP)
        classes, characters = classes[kept], buffer[kept]
        in_word = np.concatenate([[False], classes == WORD, [False]])
        # A unit is a word or a single-token character: indices into `kept`, end exclusive.
        opens = in_word[1:-1] & ~in_word[:-2]
        starts = np.flatnonzero(opens | (classes == SINGLE))
        is_word = classes[starts] == WORD
        ends = starts + 1
        ends[is_word] = np.flatnonzero(in_word[1:-1] & ~in_word[2:]) + 1

        long = np.flatnonzero(ends - starts > 1)
        counts = np.ones(len(starts), np.int64)
        text = self._normalized[characters].tobytes().decode("utf-32-le", "surrogatepass")
        pieces = [
            self._word_pieces(text[a:b])
            for a, b in zip(starts[long].tolist(), ends[long].tolist(), strict=True)
        ]
        counts[long] = [len(ids) for ids, _ in pieces]
        first = np.cumsum(counts) - counts
        total = int(counts.sum())

        ids = np.empty(total, np.int32)
        ids[first] = self._single_ids[characters[starts]]
        token_starts = np.repeat(starts, counts)
        token_ends = np.repeat(ends, counts)
        word_starts = np.zeros(total, bool)
        word_starts[first] = True
        if len(long):
            is_long = np.zeros(len(starts), bool)
            is_long[long] = True
            where = np.flatnonzero(np.repeat(is_long, counts))
            ids[where] = np.concatenate([ids for ids, _ in pieces])
            cuts = np.concatenate([cuts for _, cuts in pieces])
            token_ends[where] = token_starts[where] + cuts
            within = where[~word_starts[where]]
            token_starts[within] = token_ends[within - 1]

        offset_starts, offset_ends = kept[token_starts], kept[token_ends - 1] + 1
        splits = np.searchsorted(offset_starts, text_starts)
        row_starts = np.repeat(text_starts[:-1], np.diff(splits)) if len(texts) else 0
        offsets = np.stack([offset_starts - row_starts, offset_ends - row_starts], axis=1)
        batch = BatchEncoding(ids, offsets.astype(np.int32), word_starts, splits)
        return self._with_plain_rows(batch, texts, hard_rows) if len(hard_rows) else batch

    def _with_plain_rows(
        self, batch: BatchEncoding, texts: Sequence[str], rows: np.ndarray
    ) -> BatchEncoding:
        """Puts the encodings of the hard rows, still empty, in their places."""
        plain = [self._encode_plain(texts[row]) for row in rows]
        sizes = [len(ids) for ids, _, _ in plain]
        at = np.repeat(batch.row_splits[rows], sizes)
        added = np.zeros(len(texts), np.int64)
        added[rows] = sizes
        splits = batch.row_splits + np.concatenate([[0], np.cumsum(added)])
        return BatchEncoding(
            np.insert(batch.ids, at, np.concatenate([np.array(p[0], np.int32) for p in plain])),
            np.insert(
                batch.offsets,
                at,
                np.concatenate([np.array(p[1], np.int32).reshape(-1, 2) for p in plain]),
                axis=0,
            ),
            np.insert(batch.word_starts, at, np.concatenate([np.array(p[2], bool) for p in plain])),
            splits,
        )

    def _classify(self, buffer: np.ndarray) -> np.ndarray:
        """The class of every code point of the buffer (uint8, a fresh array)."""
        classes = self._classes[buffer]
        unseen = np.unique(buffer[classes == UNSEEN])
        if len(unseen):
            for code_point in unseen.tolist():
                self._learn(code_point)
            classes = self._classes[buffer]
        return classes

    def _learn(self, code_point: int) -> None:
        character = chr(code_point)
        if is_dropped(character):
            self._classes[code_point] = DROP
            return
        if is_space(character):
            self._classes[code_point] = SPACE
            return
        normal = [c for c, _ in normalize([(character, 0)])] if self.lower_case else [character]
        reorders = any(unicodedata.combining(c) for c in normal)
        if len(normal) > 1 or reorders or character == "Σ":
            self._classes[code_point] = HARD
        elif not normal:
            self._classes[code_point] = HARD if is_cjk(character) else DROP
        elif normal[0].isspace():
            self._classes[code_point] = SPACE
        else:
            alone = is_cjk(character) or is_punctuation(normal[0])
            self._classes[code_point] = SINGLE if alone else WORD
            self._single_ids[code_point] = self._token_ids.get(normal[0], self.unk_id)
            self._normalized[code_point] = ord(normal[0])

    def _word_pieces(self, word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Greedy longest-match pieces of a word: their ids and their ends within it."""
        known = self._words.get(word)
        if known is not None:
            return known
        result = self._match(word)
        if len(self._words) >= _CACHE_SIZE:
            self._words.clear()
        self._words[word] = result
        return result

    def _match(self, word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        unknown = (self.unk_id,), (len(word),)
        if len(word) > self.max_word_length:
            return unknown
        ids: list[int] = []
        ends: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = self._token_ids.get(prefix + word[start:end])
                if piece is not None:
                    break
            else:
                return unknown
            ids.append(piece)
            ends.append(end)
            start = end
        return tuple(ids), tuple(ends)

    def _encode_plain(self, text: str) -> tuple[list[int], list[tuple[int, int]], list[bool]]:
        """The original's steps one by one; every character carries its place in the text."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        word_starts: list[bool] = []
        for chunk in chunks(text):
            normal = normalize(chunk) if self.lower_case else chunk
            for word in split_words(normal):
                piece_ids, ends = self._match("".join(c for c, _ in word))
                start = 0
                for piece_id, end in zip(piece_ids, ends, strict=True):
                    places = [place for _, place in word[start:end]]
                    ids.append(piece_id)
                    offsets.append((min(places), max(places) + 1))
                    word_starts.append(start == 0)
                    start = end
        return ids, offsets, word_starts


def read_vocabulary(vocab_file: str | os.PathLike) -> list[str]:
    """Reads `vocab.txt`: lines end with a line feed only, and are stripped as the original does.

    Raises:
      UserError: if the file is missing, not UTF-8, or lacks a special token.
    """
    lines = read_text(vocab_file).removeprefix("\ufeff").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    vocabulary = [line.strip() for line in lines]
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise UserError(
            f"{vocab_file}: no entry {' or '.join(missing)}; a BERT vocabulary needs "
            f"{', '.join(SPECIAL_TOKENS)} (pretraining.build_vocab makes one)"
        )
    return vocabulary


def special_ids(vocabulary: Sequence[str]) -> np.ndarray:
    """Ids that stand for no text: the special tokens and the `[unused..]` places."""
    return np.array(
        [
            i
            for i, token in enumerate(vocabulary)
            if token in SPECIAL_TOKENS or token.startswith("[unused")
        ],
        np.int32,
    )


def _groups(texts: Iterable[str]) -> Iterable[list[str]]:
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= _BUFFER_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group

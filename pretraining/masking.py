"""Masks for masked language modelling, drawn for many rows at once from (seed, epoch, row).

The rule is the original's: `round(length * masked_lm_prob)` tokens, at least 1 and at most M, in
whole words taken in random order, a word that no longer fits being passed over. Of the chosen
tokens 80 % become [MASK], 10 % a random token and 10 % stay. What differs: a random token is an
ordinary one, never a special or `[unused..]` entry; and words come from word starts stored with the
row, so they work for any segmenter, any word length and vocabularies without `##` Chinese entries.

Beside single tokens and whole words there are runs of one to four words ("ngram", drawn as in
MacBERT, Cui et al. 2020), and mixes, in which each row is masked in one of these ways.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clue_jax.data.order import mix, uniform
from clue_jax.errors import UserError
from clue_jax.text import Tokenizer

MASKINGS = ("none", "whole-word", "token", "ngram")
# MacBERT's: 40 % of the runs have one word, 30 % two, 20 % three, 10 % four.
_LONGER = (0.6, 0.3, 0.1)  # how many have at least two, three, four words


@dataclass(frozen=True)
class Masking:
    """How masks are drawn.

    Attributes:
      kind: "whole-word", "token" or "ngram", or some of them with their shares of the rows, such
        as "whole-word=0.6,ngram=0.4".
      masked_lm_prob: share of a row's tokens, special tokens counted.
      max_predictions: M, masked slots a row; None for as many as that share of T needs.
    """

    kind: str = "whole-word"
    masked_lm_prob: float = 0.15
    max_predictions: int | None = None

    def __post_init__(self):
        _ = self.shares
        if not 0 < self.masked_lm_prob < 1:
            raise UserError(f"--masked-lm-prob {self.masked_lm_prob} must lie between 0 and 1")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise UserError(f"--max-predictions {self.max_predictions} must be at least 1")

    @functools.cached_property
    def shares(self) -> dict[str, float]:
        """Share of the rows by kind."""
        shares: dict[str, float] = {}
        for part in self.kind.split(","):
            name, _, share = part.strip().partition("=")
            try:
                shares[name] = float(share) if share else 1.0
            except ValueError:
                shares[name] = -1.0
        is_whole = abs(sum(shares.values()) - 1) < 1e-9 and min(shares.values()) >= 0
        if not set(shares) <= set(MASKINGS[1:]) or not is_whole:
            raise UserError(
                f"--masking {self.kind!r}: expected {', '.join(MASKINGS[1:])}, or shares of them "
                "that add up to 1, such as whole-word=0.6,ngram=0.4"
            )
        return shares

    def slots(self, seq_len: int) -> int:
        """M for rows of T slots."""
        return self.max_predictions or math.ceil(seq_len * self.masked_lm_prob)


@dataclass(frozen=True)
class Vocabulary:
    """The ids that masking needs: [MASK], and those a random replacement may take."""

    mask_id: int
    special_ids: np.ndarray
    ordinary_ids: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Of a tokenizer."""
        special = tokenizer.special_ids
        ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), special).astype(np.int32)
        if not len(ordinary):
            raise UserError(f"{tokenizer.vocab_file}: holds only special tokens")
        return cls(tokenizer.mask_id, special, ordinary)


def draw_masks(
    token_ids: np.ndarray,
    lengths: np.ndarray,
    word_starts: np.ndarray,
    frame: np.ndarray,
    masking: Masking,
    vocabulary: Vocabulary,
    seed: int,
    epochs: np.ndarray | int,
    row_numbers: np.ndarray,
) -> dict[str, np.ndarray]:
    """Masks rows; the same seed, epoch and row number always give the same masks.

    Args:
      token_ids: int32 [B, T].
      lengths: int [B], slots in use.
      word_starts: bool [B, T].
      frame: bool [B, T], the [CLS] and [SEP] slots, which are never masked and end words.
      masking: the settings.
      vocabulary: the ids.
      seed, epochs, row_numbers: what the masks are a function of; the last two int [B].

    Returns:
      "input_ids" [B, T], "masked_lm_positions", "masked_lm_ids" int32 [B, M] and
      "masked_lm_weights" float32 [B, M], the masked slots in order from the left.
    """
    b, t = token_ids.shape
    m = masking.slots(t)
    slots = np.arange(t)
    candidate = (slots < lengths[:, None]) & ~frame
    after_gap = np.concatenate([np.ones((b, 1), bool), ~candidate[:, :-1]], axis=1)
    kinds = _kinds(masking.shares, seed, epochs, row_numbers)
    starts = candidate & (word_starts | after_gap | (kinds == "token")[:, None])
    noise = mix(seed, np.asarray(epochs)[..., None], row_numbers[:, None], slots)

    # Words in random order: their start slots sorted by noise, other slots last.
    order = np.argsort(np.where(starts, uniform(noise), 2.0), axis=1, kind="stable")
    words = starts.sum(axis=1)
    start_of = np.maximum.accumulate(np.where(starts, slots, 0), axis=1)
    rows = np.arange(b)[:, None]
    word_length = np.zeros((b, t), np.int64)
    np.add.at(word_length, (np.broadcast_to(rows, (b, t))[candidate], start_of[candidate]), 1)
    budget = np.clip(np.rint(lengths * masking.masked_lm_prob).astype(np.int64), 1, m)

    taken = np.zeros((b, t), bool)
    used = np.zeros(b, np.int64)
    for rank in range(int(words.max(initial=0))):
        start = order[:, rank]
        length = word_length[rows[:, 0], start]
        take = (rank < words) & (used + length <= budget)
        taken[rows[:, 0], start] |= take
        used += length * take
        if ((used >= budget) | (rank + 1 >= words)).all():
            break
    masked = taken[rows, start_of] & candidate
    runs = np.flatnonzero(kinds == "ngram")
    if len(runs):
        longer = uniform(mix(noise[runs], 3))
        masked[runs] = _take_runs(order[runs], words[runs], word_length[runs], longer, budget[runs])

    fate = uniform(mix(noise, 1))
    random_ids = vocabulary.ordinary_ids[
        (mix(noise, 2) % np.uint64(len(vocabulary.ordinary_ids))).astype(np.int64)
    ]
    shown = np.where(fate < 0.8, vocabulary.mask_id, np.where(fate < 0.9, random_ids, token_ids))
    return {
        "input_ids": np.where(masked, shown, token_ids).astype(np.int32),
        **masked_columns(masked, token_ids, m),
    }


def _kinds(
    shares: Mapping[str, float], seed: int, epochs: np.ndarray | int, row_numbers: np.ndarray
) -> np.ndarray:
    """How each row is masked, a name for each."""
    names = np.array(list(shares))
    if len(names) == 1:
        return np.broadcast_to(names, row_numbers.shape)
    draw = uniform(mix(seed, epochs, row_numbers, 1 << 32))  # no slot has this number
    return names[np.searchsorted(np.cumsum(list(shares.values()))[:-1], draw, side="right")]


def _take_runs(
    order: np.ndarray,
    words: np.ndarray,
    word_length: np.ndarray,
    longer: np.ndarray,
    budget: np.ndarray,
) -> np.ndarray:
    """Masks runs of words, in random order, each as far as it is not masked yet; a run that no
    longer fits is passed over.

    Args:
      order: [B, T], start slots in random order, `words` [B] of them.
      word_length: [B, T], tokens of the word that starts at a slot, else 0.
      longer: [B, T], numbers in [0, 1) that decide how many words a run has.
      budget: [B], tokens to mask.

    Returns:
      bool [B, T].
    """
    b, t = order.shape
    slots, rows = np.arange(t), np.arange(b)
    padded = np.concatenate([word_length, np.zeros((b, 1), np.int64)], axis=1)
    ends = slots + word_length
    for share in _LONGER:
        ends = ends + padded[rows[:, None], ends] * (longer < share)
    masked = np.zeros((b, t), bool)
    used = np.zeros(b, np.int64)
    for rank in range(int(words.max(initial=0))):
        start = order[:, rank]
        run = (slots >= start[:, None]) & (slots < ends[rows, start][:, None]) & ~masked
        size = run.sum(axis=1)
        take = (rank < words) & (used + size <= budget)
        masked |= run & take[:, None]
        used += size * take
        if ((used >= budget) | (rank + 1 >= words)).all():
            break
    return masked


def masked_columns(
    masked: np.ndarray, token_ids: np.ndarray, max_predictions: int
) -> dict[str, np.ndarray]:
    """Gathers masked slots from the left into M places: positions, ids, weights [B, M].

    Args:
      masked: bool [B, T], at most M True a row.
      token_ids: int32 [B, T], the tokens to predict.
      max_predictions: M.
    """
    rows, slots = np.nonzero(masked)
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    positions = np.zeros((len(masked), max_predictions), np.int32)
    ids = np.zeros((len(masked), max_predictions), np.int32)
    weights = np.zeros((len(masked), max_predictions), np.float32)
    positions[rows, place] = slots
    ids[rows, place] = token_ids[rows, slots]
    weights[rows, place] = 1
    return {
        "masked_lm_positions": positions,
        "masked_lm_ids": ids,
        "masked_lm_weights": weights,
    }

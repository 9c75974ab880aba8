"""Multiple choice: a row for each choice of a question (C3), or of a blank (CHID).

Sources of the rules: `run_c3.py` and `CHID_preprocess.py` of the original's reading comprehension.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clue_jax.features import passages
from clue_jax.text import Tokenizer

NO_CHOICE = "无效答案"  # what the original puts in the place of choices that a question lacks
BLANK = re.compile(r"#idiom\d*#")
_UNUSED = "[unused1]"  # stands for the blank itself
_MASKED_LENGTH = 4  # tokens in the place of another blank
_REPLACED = (
    ("“", '"'), ("”", '"'), ("——", "--"), ("—", "-"), ("―", "-"), ("…", "..."),
    ("‘", "'"), ("’", "'"),
)  # fmt: skip


class Row(NamedTuple):
    """Token ids, special tokens included, not padded, and their segments."""

    ids: list[int]
    segments: list[int]


# ---- C3 ------------------------------------------------------------------------------------------


def truncate_three(
    passage: Sequence[int], question: Sequence[int], choice: Sequence[int], room: int
) -> tuple[int, int, int]:
    """How many tokens of each are kept: the longest loses its last; of equals the passage, then the
    choice, then the question."""
    kept = [len(passage), len(choice), len(question)]
    excess = sum(kept) - max(0, room)
    while excess > 0:
        longest = max(kept)
        next_longest = max((n for n in kept if n < longest), default=0)
        equals = [i for i in range(3) if kept[i] == longest]
        # As many rounds, in which each of the equals loses one, as leave them the longest.
        rounds = min(excess // len(equals), longest - next_longest)
        for i in equals if rounds else equals[:excess]:
            kept[i] -= rounds or 1
            excess -= rounds or 1
    return kept[0], kept[2], kept[1]


def question_row(
    tokenizer: Tokenizer,
    passage: Sequence[int],
    question: Sequence[int],
    choice: Sequence[int],
    max_length: int,
) -> Row:
    """`[CLS] passage [SEP] question [SEP] choice [SEP]`, segment 1 after the first [SEP].

    Args:
      tokenizer: gives the special tokens.
      passage, question, choice: token ids.
      max_length: T at most.
    """
    a, b, c = truncate_three(passage, question, choice, max_length - 4)
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    ids = [cls, *passage[:a], sep, *question[:b], sep, *choice[:c], sep]
    return Row(ids, [0] * (a + 2) + [1] * (b + c + 2))


# ---- CHID ----------------------------------------------------------------------------------------


def cut_blanks(text: str) -> list[str]:
    """The words of a passage, each blank one of them; quotes, dashes and ellipses are made ASCII,
    as the original does."""
    for sign, ascii_form in _REPLACED:
        text = text.replace(sign, ascii_form)
    words: list[str] = []
    end = 0
    for blank in BLANK.finditer(text):
        words += passages.cut(text[end : blank.start()]).words
        words.append(blank[0])
        end = blank.end()
    return words + passages.cut(text[end:]).words


class Blanked(NamedTuple):
    """A passage with blanks in tokens.

    Attributes:
      ids: token ids; -1 for a blank.
      blanks: tag -> its place in `ids`, the first if it stands there twice.
    """

    ids: list[int]
    blanks: dict[str, int]


def tokenize_blanked(words: Sequence[str], tokenizer: Tokenizer) -> Blanked:
    """Tokenizes a passage word by word, as the original."""
    encoded = tokenizer.encode_batch(["" if BLANK.fullmatch(word) else word for word in words])
    ids: list[int] = []
    blanks: dict[str, int] = {}
    for i, word in enumerate(words):
        if BLANK.fullmatch(word):
            blanks.setdefault(word, len(ids))
            ids.append(-1)
        else:
            ids += encoded.ids[encoded.row_splits[i] : encoded.row_splits[i + 1]].tolist()
    return Blanked(ids, blanks)


def around(
    ids: Sequence[int], place: int, room: int, original: bool = False
) -> tuple[list[int], list[int]]:
    """The tokens left and right of a blank: `room` in all, half on each side where there are so
    many.

    Args:
      ids: of the passage.
      place: of the blank.
      room: tokens at most.
      original: as the original cuts: a passage shorter than the room whose blank stands in its
        second half loses what is left of the blank, in whole or in part.
    """
    left = room // 2
    right = room - left
    after = len(ids) - 1 - place
    if place >= left and after >= right:
        return list(ids[place - left : place]), list(ids[place + 1 : place + 1 + right])
    if place <= left:
        return list(ids[:place]), list(ids[place + 1 : place + 1 + room - place])
    begin = place - (room - after)
    return list(ids[begin if original else max(0, begin) : place]), list(ids[place + 1 :])


def blank_rows(
    tokenizer: Tokenizer,
    passage: Blanked,
    tag: str,
    choices: Sequence[Sequence[int]],
    max_length: int,
    original: bool = False,
) -> list[Row]:
    """A row `[CLS] choice [SEP] left [unused1] right [SEP]` for each choice; all segments are 0.

    Other blanks are four [MASK] each; the context is cut to what fits beside the blank.

    Args:
      tokenizer: gives the special tokens; a vocabulary without [unused1] has [UNK] in its place.
      passage: in tokens.
      tag: of the blank.
      choices: token ids of each.
      max_length: T at most; a choice of more than four tokens may lose some.
      original: see `around`.
    """
    left, right = around(passage.ids, passage.blanks[tag], max_length - 8, original)
    left_ids, right_ids = (_masked(part, tokenizer.mask_id) for part in (left, right))
    left_ids = left_ids[len(left_ids) - len(left) :]
    right_ids = right_ids[: len(right)]
    unused = tokenizer.token_id(_UNUSED)
    blank = tokenizer.unk_id if unused is None else unused
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    rows = []
    for choice in choices:
        room = max_length - len(left_ids) - len(right_ids) - 4
        ids = [cls, *choice[:room], sep, *left_ids, blank, *right_ids, sep]
        rows.append(Row(ids, [0] * len(ids)))
    return rows


def _masked(ids: Sequence[int], mask_id: int) -> list[int]:
    out: list[int] = []
    for token in ids:
        out += [mask_id] * _MASKED_LENGTH if token < 0 else [token]
    return out


def assign(scores: np.ndarray) -> list[int | None]:
    """The choice for each blank of a group, no choice twice: the largest score first, and so on.

    Greedy, as the original decodes; of equal scores the earlier choice, then the earlier blank.

    Args:
      scores: float [blanks, choices].

    Returns:
      None for the blanks that are left over when all choices are used.
    """
    answers: list[int | None] = [None] * len(scores)
    used: set[int] = set()
    by_choice = np.asarray(scores).T
    for flat in np.argsort(-by_choice, axis=None, kind="stable").tolist():
        choice, blank = divmod(flat, by_choice.shape[1])
        if answers[blank] is None and choice not in used:
            answers[blank] = choice
            used.add(choice)
    return answers

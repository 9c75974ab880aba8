"""Questions with choices out of plain text: which phrase answers, and which statement agrees.

From them a model learns to weigh a choice by what the passage says, which guessing masked words
does not ask for; afterwards it needs fewer questions that people wrote.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_directory, write_json
from pretraining.build_questions import question
from pretraining.passages import CLAUSE, cut_passages, sample

_CHOICES = 4
_NEAR = 0.5  # of the wrong choices resemble the passage, which alone would not give them away
_KEPT = 0.8  # of the words of a statement
_DENIAL = re.compile("[不没无未非莫勿别否]")  # without it a statement says the contrary
_WHICH = ("请选出与试题内容一致的一项。", "根据这段话，可以知道：", "下列哪一项是对的？")


@dataclass(frozen=True)
class Settings:
    """Makes questions with choices out of text; the folder is data for `finetune.run --task c3`."""

    input: tuple[str, ...]
    """Text files, a paragraph a line, documents apart by blank lines."""
    output: str
    """Folder to write: d-train.json, d-dev.json (which phrase answers the question), m-train.json
    and m-dev.json (which statement agrees with the passage), in the form of C3."""
    count: int = 20_000
    """Questions, each of another passage; half of them of either kind."""
    held_out: int = 500
    """How many of them make the dev set."""
    passage_length: int = 100
    """Characters of a passage, at most; whole sentences."""
    shortest_passage: int = 30
    """Every passage has a limit of its own, drawn evenly from this to --passage-length, and fills
    at least half of it."""
    seed: int = 0
    """Of all choices."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    settings = tyro.cli(Settings, args=argv)
    if not 2 <= settings.held_out <= settings.count - 2:
        raise UserError("--held-out must be at least 2, and at least 2 less than --count")
    if not 20 <= settings.shortest_passage <= settings.passage_length:
        raise UserError("--shortest-passage must lie between 20 and --passage-length")
    output = Path(settings.output)
    if output.exists():
        raise UserError(f"{output}: is there already; choose another --output or remove it")
    chance = random.Random(settings.seed)
    limits = settings.shortest_passage, settings.passage_length
    # Some passages give no question.
    passages = sample(cut_passages(settings.input, *limits, chance), settings.count * 2, chance)
    half = settings.count // 2
    made = {
        "d": phrases(passages[::2], half, chance),
        "m": statements(passages[1::2], settings.count - half, chance),
    }
    held = {"d": settings.held_out // 2, "m": settings.held_out - settings.held_out // 2}
    for kind, documents in made.items():
        if len(documents) <= held[kind]:
            raise UserError(
                f"{', '.join(settings.input)}: enough for {len(documents)} questions of "
                f"{kind}-train and {kind}-dev only"
            )
    with atomic_directory(output) as folder:
        for kind, documents in made.items():
            write_json(folder / f"{kind}-dev.json", documents[: held[kind]])
            write_json(folder / f"{kind}-train.json", documents[held[kind] :])
    every = [*made["d"], *made["m"]]
    summary = {
        "output": settings.output,
        "train": len(every) - settings.held_out,
        "dev": settings.held_out,
        "mean_passage": round(float(np.mean([len(lines[0]) for lines, *_ in every])), 1),
    }
    print(json.dumps(summary))
    return summary


def phrases(passages: Sequence[str], count: int, chance: random.Random) -> list[list[Any]]:
    """Which phrase answers a question? At most `count` documents in the form of C3.

    Wrong choices are other phrases of the passage, and answers of other passages.
    """
    found = []
    for passage in passages:
        if len(found) == count:
            break
        if one := question(passage, chance):
            others = [other[1] for _ in range(6) if (other := question(passage, chance))]
            found.append((passage, *one[:2], others))
    far = [answer for _, _, answer, _ in found]
    documents = []
    for passage, asked, answer, near in found:
        wrong = _wrong(answer, [text for text in near if text not in asked], far, passage, chance)
        if len(wrong) == _CHOICES - 1:
            documents.append(
                _document("phrase", len(documents), passage, asked, answer, wrong, chance)
            )
    return documents


def statements(passages: Sequence[str], count: int, chance: random.Random) -> list[list[Any]]:
    """Which statement agrees with the passage? At most `count` documents in the form of C3.

    The right one is a clause without some of its words, but never without a 不 or 没. Wrong ones
    are clauses of other passages, and beginnings of clauses of this passage with ends of others.
    """
    import rjieba  # it loads a dictionary of some megabytes

    told = []
    for passage in passages:
        clauses = [found[0] for found in CLAUSE.finditer(passage) if 8 <= len(found[0]) <= 30]
        words = [rjieba.cut(clause) for clause in clauses]
        words = [clause for clause in words if len(clause) >= 4]
        if words:
            told.append((passage, words))
        if len(told) == count:
            break
    if len(told) < 2:
        return []
    documents = []
    for number, (passage, clauses) in enumerate(told):
        right = _shortened(chance.choice(clauses), chance)
        far, near = [], []
        for _ in range(2 * _CHOICES):
            elsewhere = (number + chance.randrange(1, len(told))) % len(told)
            other = chance.choice(told[elsewhere][1])
            far.append(_shortened(other, chance))
            own = chance.choice(clauses)
            end = _shortened(other[len(other) // 2 :], chance)
            if len(end) > 1 and end not in passage:
                near.append(_shortened(own[: len(own) // 2], chance) + end)
        wrong = _wrong(right, near, far, passage, chance)
        if len(wrong) == _CHOICES - 1:
            which = chance.choice(_WHICH)
            documents.append(
                _document("state", len(documents), passage, which, right, wrong, chance)
            )
    return documents


def _shortened(words: Sequence[str], chance: random.Random) -> str:
    """Some of the words, one at least, and all that deny."""
    kept = [word for word in words if _DENIAL.search(word) or chance.random() < _KEPT]
    return "".join(kept or words[:1])


def _wrong(
    right: str, near: Sequence[str], far: Sequence[str], passage: str, chance: random.Random
) -> list[str]:
    """Three wrong choices, all different; the far ones do not stand in the passage. Fewer where
    text is scarce."""
    wrong: list[str] = []
    for _ in range(8 * _CHOICES):
        is_near = bool(near) and chance.random() < _NEAR
        text = chance.choice(near if is_near else far)
        is_other = text not in right and right not in text and text not in wrong
        if is_other and (is_near or text not in passage):
            wrong.append(text)
        if len(wrong) == _CHOICES - 1:
            break
    return wrong


def _document(
    kind: str, number: int, passage: str, asked: str, right: str, wrong: list[str],
    chance: random.Random,
) -> list[Any]:  # fmt: skip
    choices = [right, *wrong]
    chance.shuffle(choices)
    return [
        [passage],
        [{"question": asked, "choice": choices, "answer": right}],
        f"{kind}-{number}",
    ]


if __name__ == "__main__":
    run_command(main)

"""Questions for reading comprehension out of plain text: a clause of a passage, in which a phrase
gives way to a question word.

From them a model learns to find what a question speaks of, which guessing masked words hardly
teaches; afterwards it needs fewer questions that people wrote. The idea is that of Lewis, Denoyer
and Riedel, "Unsupervised Question Answering by Cloze Translation" (2019).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_directory, write_json
from clue_jax.text.words import word_boundaries
from pretraining.corpus import cut_pieces, read_documents

_CLAUSE = re.compile("[^。！？；，：,]+")
_PHRASE = re.compile("[\u4e00-\u9fff0-9A-Za-z.%·]{2,10}")  # what can be an answer
_QUESTION_WORDS = ("什么", "什么", "哪", "谁", "多少")
_KEPT = 0.8  # of the other words, so that a question is no copy of its clause
_TURNED = 0.3  # of the questions end with their question word
_SHORTEST, _LONGEST = 4, 30  # characters of a question beside its question word


@dataclass(frozen=True)
class Settings:
    """Makes questions out of text; the folder is data for `finetune.run --task cmrc2018`."""

    input: tuple[str, ...]
    """Text files, a paragraph a line, documents apart by blank lines."""
    output: str
    """Folder to write: train.json and dev.json, in the form of SQuAD."""
    count: int = 50_000
    """Questions, each of another passage."""
    held_out: int = 500
    """How many of them make the dev set."""
    passage_length: int = 44
    """Characters of a passage, at most; whole sentences."""
    seed: int = 0
    """Of all choices."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    settings = tyro.cli(Settings, args=argv)
    if not 0 < settings.held_out < settings.count or settings.passage_length < 20:
        raise UserError(
            "--held-out must lie between 0 and --count, and --passage-length be at least 20"
        )
    output = Path(settings.output)
    if output.exists():
        raise UserError(f"{output}: is there already; choose another --output or remove it")
    chance = random.Random(settings.seed)
    # Some passages give no question.
    passages = sample(
        _passages(settings.input, settings.passage_length), settings.count * 2, chance
    )
    made = []
    for passage in passages:
        found = question(passage, chance)
        if found:
            made.append((passage, *found))
        if len(made) == settings.count:
            break
    if len(made) <= settings.held_out:
        raise UserError(f"{', '.join(settings.input)}: enough for {len(made)} questions only")
    with atomic_directory(output) as folder:
        write_json(folder / "dev.json", _squad(made[: settings.held_out], 0))
        write_json(folder / "train.json", _squad(made[settings.held_out :], settings.held_out))
    summary = {
        "output": settings.output,
        "train": len(made) - settings.held_out,
        "dev": settings.held_out,
        "mean_passage": round(float(np.mean([len(passage) for passage, *_ in made])), 1),
        "mean_question": round(float(np.mean([len(asked) for _, asked, *_ in made])), 1),
    }
    print(json.dumps(summary))
    return summary


def _passages(paths: Sequence[str], length: int) -> Iterator[str]:
    """Neighbouring sentences of a document, together at most `length` characters and at least half
    of that."""
    for piece in cut_pieces(paths):
        for document in read_documents(piece, paragraphs=True):
            passage = ""
            for sentence in [*document, " " * length]:
                if len(passage) + len(sentence) > length:
                    if length <= 2 * len(passage) <= 2 * length:
                        yield passage
                    passage = ""
                passage += sentence


def sample(passages: Iterator[str], count: int, chance: random.Random) -> list[str]:
    """So many of them in random order, all equally likely; memory does not grow with the text."""
    chosen: list[str] = []
    for number, passage in enumerate(passages):
        if number < count:
            chosen.append(passage)
        elif (place := chance.randrange(number + 1)) < count:
            chosen[place] = passage
    chance.shuffle(chosen)
    return chosen


def question(passage: str, chance: random.Random) -> tuple[str, str, int] | None:
    """A question about a passage, its answer, and the place of that.

    The answer is one to three words that stand in the passage once.
    """
    clauses = [m for m in _CLAUSE.finditer(passage) if 8 <= len(m[0]) <= 40]
    chance.shuffle(clauses)
    for clause in clauses[:3]:
        cuts = np.flatnonzero(word_boundaries([clause[0]])).tolist()
        words = [clause[0][a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)]
        for _ in range(6):
            first = chance.randrange(len(words))
            last = min(len(words), first + chance.choice((1, 1, 1, 2, 2, 3)))
            answer = "".join(words[first:last])
            if not _PHRASE.fullmatch(answer) or passage.count(answer) != 1:
                continue
            before = "".join(word for word in words[:first] if chance.random() < _KEPT)
            behind = "".join(word for word in words[last:] if chance.random() < _KEPT)
            if not _SHORTEST <= len(before) + len(behind) <= _LONGEST:
                continue
            asked = "多少" if answer[0].isdigit() else chance.choice(_QUESTION_WORDS)
            is_turned = chance.random() < _TURNED
            text = behind + before + asked if is_turned else before + asked + behind
            return text + "?", answer, passage.index(answer)
    return None


def _squad(made: Sequence[tuple[str, str, str, int]], start: int) -> dict[str, Any]:
    paragraphs = []
    for number, (passage, asked, answer, place) in enumerate(made, start):
        entry = {"id": f"question-{number}", "question": asked}
        entry["answers"] = [{"text": answer, "answer_start": place}]
        paragraphs.append({"context": passage, "qas": [entry]})
    return {"version": "made of plain text", "data": [{"paragraphs": paragraphs}]}


if __name__ == "__main__":
    run_command(main)

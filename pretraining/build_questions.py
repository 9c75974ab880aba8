"""Questions for reading comprehension out of plain text: a clause of a passage, in which a phrase,
or all from some word on, gives way to a question word.

From them a model learns to find what a question speaks of, which guessing masked words hardly
teaches; afterwards it needs fewer questions that people wrote. The idea is that of Lewis, Denoyer
and Riedel, "Unsupervised Question Answering by Cloze Translation" (2019).
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_directory, write_json
from pretraining.passages import CLAUSE, cut_passages, sample

_PHRASE = re.compile("[\u4e00-\u9fff0-9A-Za-z.%·]{2,10}")  # what can be an answer
_REST = re.compile("[\u4e00-\u9fff0-9A-Za-z.%·《》“”、（）—-]{5,30}")  # so can the end of a clause
_COMMA = re.compile(r"\d,\d")
# 1998年, 三月五日: but no 三年, which lasts, and no 一年级.
_TIME = re.compile("([0-9〇零一二三四五六七八九]{4}年|[0-9〇一二三四五六七八九十]+(月|日|世纪))$")
# What people ask for ends in a noun, a number, a time or a place by the segmenter's tags, and does
# not begin with a word that joins others (as 的, 和, 在).
_LAST = ("n", "m", "q", "t", "s", "vn", "eng")
_JOINING = ("u", "c", "p", "y", "f")
_RESTS = 0.4  # of the questions ask for the end of their clause, as people ask for whole clauses
# The question words of an answer by the segmenter's tag of its last word: persons, places, times,
# numbers; all else by _OTHERS, and the end of a clause by _REST_WORDS.
_PERSON, _PLACE, _WHEN = ("谁", "哪位"), ("哪里", "哪个地方"), ("什么时候", "哪一年")
_BY_TAG = {
    "nr": _PERSON, "nrt": _PERSON, "nrfg": _PERSON, "ns": _PLACE, "s": _PLACE,
    "t": _WHEN[:1], "m": ("多少",),
}  # fmt: skip
_OTHERS = ("什么", "什么", "什么", "哪个")
_REST_WORDS = ("什么", "什么", "怎样", "如何")
_KEPT = (0.5, 1.0)  # of the other words, between these, so that a question is no copy of its clause
_ABOUT = 0.5  # of the questions begin with what their passage is about, as people's do
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
    shortest_passage: int | None = None
    """Give every passage a limit of its own, drawn evenly from this to --passage-length (default:
    one limit for all). A passage fills at least half of its limit."""
    seed: int = 0
    """Of all choices."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    settings = tyro.cli(Settings, args=argv)
    if not 0 < settings.held_out < settings.count or settings.passage_length < 20:
        raise UserError(
            "--held-out must lie between 0 and --count, and --passage-length be at least 20"
        )
    longest = settings.passage_length
    shortest = longest if settings.shortest_passage is None else settings.shortest_passage
    if not 20 <= shortest <= longest:
        raise UserError("--shortest-passage must lie between 20 and --passage-length")
    output = Path(settings.output)
    if output.exists():
        raise UserError(f"{output}: is there already; choose another --output or remove it")
    chance = random.Random(settings.seed)
    # Some passages give no question.
    passages = sample(
        cut_passages(settings.input, shortest, longest, random.Random(settings.seed)),
        settings.count * 2,
        chance,
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


def question(passage: str, chance: random.Random) -> tuple[str, str, int] | None:
    """A question about a passage, its answer, and the place of that.

    The answer is one to three words, or all words of a clause from one behind its first on, and
    stands in the passage once.
    """
    import rjieba  # it loads a dictionary of some megabytes

    clauses = [m for m in CLAUSE.finditer(passage) if 8 <= len(m[0]) <= 40]
    chance.shuffle(clauses)
    is_rest = chance.random() < _RESTS
    topic = _topic(passage) if chance.random() < _ABOUT else ""
    kept = chance.uniform(*_KEPT)
    for clause in clauses[:3]:
        words, tags = zip(*rjieba.tag(clause[0]), strict=True)
        for _ in range(10):
            first = chance.randrange(len(words))
            last = len(words)
            if not is_rest:
                last = min(last, first + chance.choice((1, 1, 1, 2, 2, 3)))
            answer = "".join(words[first:last])
            form = _REST if is_rest else _PHRASE
            if not form.fullmatch(answer) or passage.count(answer) != 1:
                continue
            place = passage.index(answer)
            stop = place + len(answer)
            if _COMMA.fullmatch(passage[place - 2 : place + 1]) or _COMMA.fullmatch(
                passage[stop - 1 : stop + 2]
            ):
                continue  # half a number
            if tags[first].startswith(_JOINING):
                continue
            if not is_rest and not tags[last - 1].startswith(_LAST):
                continue
            before = "".join(word for word in words[:first] if chance.random() < kept)
            behind = "".join(word for word in words[last:] if chance.random() < kept)
            if not _SHORTEST <= len(before) + len(behind) <= _LONGEST:
                continue
            if is_rest:
                asked = chance.choice(_REST_WORDS)
            elif _TIME.search(answer):
                asked = chance.choice(_WHEN if answer.endswith("年") else _WHEN[:1])
            else:
                asked = chance.choice(_BY_TAG.get(tags[last - 1], _OTHERS))
            is_turned = chance.random() < _TURNED
            text = behind + before + asked if is_turned else before + asked + behind
            if topic not in clause[0]:
                text = topic + text
            return text + "?", answer, place
    return None


def _topic(passage: str) -> str:
    """The noun that a passage has most often, at least twice; nothing if none comes back."""
    import rjieba

    nouns = Counter(
        word for word, tag in rjieba.tag(passage) if tag.startswith("n") and len(word) > 1
    )
    word, count = nouns.most_common(1)[0] if nouns else ("", 0)
    return word if count > 1 else ""


def _squad(made: Sequence[tuple[str, str, str, int]], start: int) -> dict[str, Any]:
    paragraphs = []
    for number, (passage, asked, answer, place) in enumerate(made, start):
        entry = {"id": f"question-{number}", "question": asked}
        entry["answers"] = [{"text": answer, "answer_start": place}]
        paragraphs.append({"context": passage, "qas": [entry]})
    return {"version": "made of plain text", "data": [{"paragraphs": paragraphs}]}


if __name__ == "__main__":
    run_command(main)

"""Text that says everything twice: passages, each with a retelling of itself.

A retelling has the clauses of its passage in another order, without some of their words. Most
masked words of such a text stand elsewhere in the row, so that guessing them teaches a model to
look words up by what stands around them: what reading comprehension needs, and what a small model
learns late from plain text, where a word seldom comes back.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_file
from pretraining.passages import CLAUSE, cut_passages, sample

_KEPT = 0.8  # of the words


@dataclass(frozen=True)
class Settings:
    """Makes text for `pretraining.build_shards`: a document for each passage."""

    input: tuple[str, ...]
    """Text files, a paragraph a line, documents apart by blank lines."""
    output: str
    """Text file to write."""
    count: int = 50_000
    """Passages."""
    passage_length: int = 60
    """Characters of a passage, at most; whole sentences. Its row is twice as long."""
    seed: int = 0
    """Of all choices."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    settings = tyro.cli(Settings, args=argv)
    if settings.count < 1 or settings.passage_length < 20:
        raise UserError("--count must be at least 1, and --passage-length at least 20")
    output = Path(settings.output)
    if output.exists():
        raise UserError(f"{output}: is there already; choose another --output or remove it")
    chance = random.Random(settings.seed)
    length = settings.passage_length
    chosen = sample(cut_passages(settings.input, length, length, chance), settings.count, chance)
    if not chosen:
        raise UserError(f"{', '.join(settings.input)}: no passage of {length // 2} to {length}")
    with atomic_file(output) as file:
        for passage in chosen:
            # Either may come first, as a question stands before its passage.
            both = [passage, retelling(passage, chance)]
            chance.shuffle(both)
            file.write(("\n".join(both) + "\n\n").encode())
    summary = {"output": settings.output, "passages": len(chosen)}
    print(json.dumps(summary))
    return summary


def retelling(passage: str, chance: random.Random) -> str:
    """The clauses of a passage in random order, each without some of its words."""
    import rjieba  # it loads a dictionary of some megabytes

    clauses = CLAUSE.findall(passage)
    chance.shuffle(clauses)
    told = (
        "".join(word for word in rjieba.cut(clause) if chance.random() < _KEPT)
        for clause in clauses
    )
    return "，".join(filter(None, told)) + "。"


if __name__ == "__main__":
    run_command(main)

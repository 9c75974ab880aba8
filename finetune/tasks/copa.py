"""COPA: which of two sentences is the cause, or the effect, of the premise?

Each question is two pairs, one for each choice; the answer is the choice whose pair is the more
likely one, and the first of equals.
"""

from collections.abc import Mapping
from typing import Any

from finetune.task import Label, Task, Texts


def _expand(record: Mapping[str, Any], labelled: bool) -> list[tuple[Texts, Label]]:
    question = record["question"]
    if question not in ("cause", "effect"):
        raise ValueError(f"question {question!r}, expected cause or effect")
    answer = record["label"] if labelled else None
    if labelled and str(answer) not in ("0", "1"):
        raise ValueError(f"label {answer!r} is not one of copa's: 0, 1")
    pairs: list[tuple[Texts, Label]] = []
    for number in (0, 1):
        choice, premise = record[f"choice{number}"], record["premise"]
        texts = (choice, premise) if question == "cause" else (premise, choice)
        pairs.append((texts, None if answer is None else str(int(int(answer) == number))))
    return pairs


TASK = Task(
    name="copa",
    labels=("0", "1"),
    texts=lambda record: (record["premise"], None),
    archive="copa_public.zip",
    expand=_expand,
    group=2,
)

"""CHID: which idiom belongs into a blank. The official form, and that of FewCLUE.

Officially the blanks of a group of passages share ten idioms, each used at most once; in FewCLUE a
passage has one blank and seven idioms of its own.
"""

from __future__ import annotations

from typing import Any

from clue_jax.errors import UserError
from clue_jax.features.choices import BLANK, cut_blanks
from finetune.forms.choices import Blank, check_choices
from finetune.records import json_document, json_lines
from finetune.task import Content, Task


def _read(task: Task, content: Content, labelled: bool, answers: Content | None) -> list[Blank]:
    """The blanks of a file of JSON lines."""
    data, source = content
    known = json_document(*answers) if answers else {}
    blanks: list[Blank] = []
    for line, record in json_lines(data, source):
        place = f"{source}, line {line}"
        if "candidates" not in record or "content" not in record:
            raise UserError(f'{place}: needs "candidates" and "content"')
        choices = check_choices(task, record["candidates"], place)
        is_few = isinstance(record["content"], str)
        passages = [record["content"]] if is_few else record["content"]
        if not isinstance(passages, list) or not all(isinstance(p, str) for p in passages):
            raise UserError(f'{place}: "content" is neither a passage nor a list of passages')
        seen: set[str] = set()
        for passage in passages:
            words = tuple(cut_blanks(passage))
            tags = [word for word in words if BLANK.fullmatch(word)]
            if "#idiom" in "".join(word for word in words if word not in tags):
                raise UserError(f"{place}: a blank is not closed, expected one like #idiom000123#")
            for tag in tags:
                if tag in seen:
                    raise UserError(f"{place}: the blank {tag} stands there twice")
                seen.add(tag)
                label = None
                if labelled:
                    answer = record.get("answer") if is_few else known.get(tag)
                    label = _label(answer, len(choices), tag, place)
                name = record.get("id", line - 1) if is_few else tag
                blanks.append(Blank(words, tag, choices, label, name, None if is_few else line))
        if is_few and len(seen) != 1:
            raise UserError(f"{place}: {len(seen)} blanks, expected one")
    if not blanks:
        raise UserError(f"{source}: holds no blanks")
    return blanks


def _label(answer: Any, count: int, tag: str, place: str) -> int:
    if answer is None:
        raise UserError(f"{place}: there is no answer to {tag}")
    if type(answer) is not int or not 0 <= answer < count:
        raise UserError(f"{place}: the answer to {tag} is {answer!r}, expected 0 to {count - 1}")
    return answer


TASK = Task(
    name="chid",
    kind="choice",
    train="train.json|train_few_all.json",
    dev="dev.json|dev_few_all.json",
    test={"1.0": "test1.0.json|test.json", "1.1": "test1.1.json|test.json"},
    answers_file=lambda name: name.replace(".json", "_answer.json"),
    archive="chid_public.zip",
    other_archives=("chid_fewclue_public.zip",),
    submission={"1.0": "chid10_predict.json", "1.1": "chid11_predict.json"},
    container="mapping",
    read=_read,
    choices=10,
)

"""C3: questions on dialogues (d-) and other texts (m-), two to four choices each."""

from __future__ import annotations

from typing import Any

from clue_jax.errors import UserError
from finetune.forms.choices import Question, check_choices
from finetune.records import json_document
from finetune.task import Content, Task


def _read(task: Task, content: Content, labelled: bool, answers: Content | None) -> list[Question]:
    """The questions of a file: a list of [lines of the passage, questions, id]."""
    data, source = content
    documents = json_document(data, source)
    if not isinstance(documents, list) or not documents:
        raise UserError(f"{source}: expected a list of passages with questions")
    questions: list[Question] = []
    for number, document in enumerate(documents, 1):
        place = f"{source}, passage {_name(document) or number}"
        try:
            lines, entries = document[0], document[1]
            passage = "\n".join(lines)
            for entry in entries:
                name = entry.get("id", len(questions))
                if not isinstance(entry["question"], str):
                    raise TypeError(f"question {entry['question']!r}")
                texts = check_choices(task, entry["choice"], place)
                label = _label(texts, entry["answer"], place) if labelled else None
                questions.append(Question(passage, entry["question"], texts, label, name))
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise UserError(
                f"{place}: not in C3's form, lines and then questions with question, choice and "
                f"answer ({error!r})"
            ) from error
        if not passage.strip():
            raise UserError(f"{place}: is empty")
    if not questions:
        raise UserError(f"{source}: holds no questions")
    return questions


def _name(document: Any) -> str | None:
    has_name = isinstance(document, list) and len(document) > 2
    return document[2] if has_name and isinstance(document[2], str) else None


def _label(choices: tuple[str, ...], answer: str, place: str) -> int:
    """The last choice that is the answer, as in the original."""
    found = [i for i, choice in enumerate(choices) if choice == answer]
    if not found:
        raise UserError(f"{place}: the answer {answer!r} is none of the choices")
    return found[-1]


TASK = Task(
    name="c3",
    kind="choice",
    train="d-train.json,m-train.json",
    dev="d-dev.json,m-dev.json",
    test={"1.0": "test1.0.json", "1.1": "test1.1.json"},
    archive="c3_public.zip",
    submission={"1.0": "c310_predict.json", "1.1": "c311_predict.json"},
    read=_read,
    choices=4,
)

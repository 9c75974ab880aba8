"""Questions, and blanks in a passage, with choices of which one is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clue_jax.errors import UserError
from clue_jax.features import choices
from clue_jax.text import Tokenizer
from finetune.forms.form import Form
from finetune.forms.labels import by_length
from finetune.rows import Rows
from finetune.task import Content, Task


@dataclass(frozen=True)
class Question:
    """A question about a passage.

    Attributes:
      passage, question: texts.
      choices: at least one.
      label: number of the right one; None in a test file.
      id: as in the file, or the number of the question.
    """

    passage: str
    question: str
    choices: tuple[str, ...]
    label: int | None
    id: Any


@dataclass(frozen=True)
class Blank:
    """A blank in a passage, for one of some idioms.

    Attributes:
      words: of the passage, see `clue_jax.features.choices.cut_blanks`.
      tag: of this blank.
      choices: the idioms.
      label: number of the right one; None in a test file.
      id: under which the answer is given.
      group: blanks of a group share their choices, and use each at most once; None for a blank
        that stands alone.
    """

    words: tuple[str, ...]
    tag: str
    choices: tuple[str, ...]
    label: int | None
    id: Any
    group: int | None


def check_choices(task: Task, found: Any, place: str) -> tuple[str, ...]:
    """Choices out of a file.

    Raises:
      UserError: if they are not 2 to `task.choices` texts.
    """
    if not isinstance(found, list) or not all(isinstance(choice, str) for choice in found):
        raise UserError(f"{place}: the choices are not a list of texts")
    if not 2 <= len(found) <= task.choices:
        raise UserError(f"{place}: {len(found)} choices; {task.name} takes 2 to {task.choices}")
    return tuple(found)


def no_reader(task: Task, content: Content, labelled: bool, answers: Content | None) -> list[Any]:
    """Tasks of this form have a reader each."""
    raise UserError(f"{task.name} has no reader of its own")


def rows(
    examples: Sequence[Question | Blank],
    task: Task,
    tokenizer: Tokenizer,
    normalize: Callable[[str], str],
    max_length: int,
) -> Rows:
    """A row for each choice; as many for every question."""
    texts = {
        text
        for example in examples
        if isinstance(example, Question)
        for text in (example.passage, example.question)
    }
    texts |= {choice for example in examples for choice in example.choices} | {choices.NO_CHOICE}
    known = _encoded(tokenizer, sorted(texts), normalize)
    blanked: dict[tuple[str, ...], choices.Blanked] = {}
    width = max(len(example.choices) for example in examples)
    if isinstance(examples[0], Question):
        width = task.choices
    ids: list[list[int]] = []
    segments: list[list[int]] = []
    for example in examples:
        if isinstance(example, Question):
            given = [*example.choices, *[choices.NO_CHOICE] * (width - len(example.choices))]
            made = [
                choices.question_row(
                    tokenizer, known[example.passage], known[example.question], known[choice],
                    max_length,
                )
                for choice in given
            ]  # fmt: skip
        else:
            if example.words not in blanked:
                words = [w if choices.BLANK.fullmatch(w) else normalize(w) for w in example.words]
                blanked[example.words] = choices.tokenize_blanked(words, tokenizer)
            idioms = [known[choice] for choice in example.choices]
            made = choices.blank_rows(
                tokenizer, blanked[example.words], example.tag, idioms, max_length
            )
        made += [choices.Row([], [])] * (width - len(made))
        ids += [row.ids for row in made]
        segments += [row.segments for row in made]
    labels = np.array([example.label or 0 for example in examples], np.int32)
    return Rows(ids, segments, labels, width, list(examples))


def _encoded(
    tokenizer: Tokenizer, texts: Sequence[str], normalize: Callable[[str], str]
) -> dict[str, list[int]]:
    batch = tokenizer.encode_batch([normalize(text) for text in texts])
    splits = batch.row_splits
    return {t: batch.ids[splits[i] : splits[i + 1]].tolist() for i, t in enumerate(texts)}


def decide(examples: Sequence[Question | Blank], logits: np.ndarray) -> np.ndarray:
    """The chosen number of each; within a group of blanks none twice, while there are enough."""
    chosen = np.zeros(len(examples), np.int64)
    groups: dict[Any, list[int]] = {}
    for i, example in enumerate(examples):
        chosen[i] = logits[i][: len(example.choices)].argmax()
        if isinstance(example, Blank) and example.group is not None:
            groups.setdefault(example.group, []).append(i)
    for members in groups.values():
        count = len(examples[members[0]].choices)
        for i, choice in zip(members, choices.assign(logits[members][:, :count]), strict=True):
            if choice is not None:
                chosen[i] = choice
    return chosen


def _scores(task: Task, rows: Rows, logits: np.ndarray) -> dict[str, float]:
    right = decide(rows.sources, logits) == rows.labels
    floor = [1 / len(example.choices) for example in rows.sources]
    return {"accuracy": float(right.mean()), "by_chance": float(np.mean(floor))}


def _answers(task: Task, rows: Rows, logits: np.ndarray) -> list[tuple[Any, Any]]:
    chosen = decide(rows.sources, logits).tolist()
    return [(example.id, c) for example, c in zip(rows.sources, chosen, strict=True)]


def _details(task: Task, rows: Rows, logits: np.ndarray) -> dict[str, Any]:
    alone = np.array([
        logits[i][: len(example.choices)].argmax() for i, example in enumerate(rows.sources)
    ])  # fmt: skip
    right = decide(rows.sources, logits) == rows.labels
    return {"accuracy_one_by_one": float((alone == rows.labels).mean())} | by_length(
        rows.lengths, right
    )


CHOICE = Form(no_reader, rows, _scores, _answers, "accuracy", _details)

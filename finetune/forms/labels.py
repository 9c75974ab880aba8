"""Texts and pairs with a label, several labels, or a score."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clue_jax import metrics
from clue_jax.errors import UserError
from clue_jax.features.sequences import build_row
from clue_jax.text import Tokenizer
from finetune.forms.form import Form
from finetune.records import json_lines
from finetune.rows import Rows
from finetune.task import Content, Label, Task, Texts

UNLABELLED = "-"  # marks examples on which the annotators did not agree
LENGTHS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Example:
    """One thing to be classified.

    Attributes:
      text_a: the text, or the first of a pair.
      text_b: the second of a pair.
      label: None in a test file.
      id: as in the file, or the number of the row.
      line: where it stands in its file, from 1.
    """

    text_a: str
    text_b: str | None
    label: Label
    id: Any
    line: int = field(repr=False)


def read(
    task: Task, content: Content, labelled: bool, answers: Content | None = None
) -> list[Example]:
    """The examples of a file, in order.

    Args:
      task: says how.
      content: the file.
      labelled: whether each record must have a label; records marked as unlabelled are left out.
      answers: not used.

    Raises:
      UserError: for an empty file, or a record that is not as it should be, with its line.
    """
    data, source = content
    examples: list[Example] = []
    for row, (line, record) in enumerate((task.records or json_lines)(data, source)):
        place = f"{source}, line {line}"
        try:
            pairs = _expand(task, record, labelled)
        except KeyError as error:
            raise UserError(
                f"{place}: no field {error}; {task.name} needs it, found {', '.join(record)}"
            ) from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{place}: {error}") from error
        for (text_a, text_b), label in pairs:
            if not isinstance(text_a, str) or not isinstance(text_b, str | None):
                raise UserError(f"{place}: a text is not a string")
            if labelled and label == UNLABELLED and UNLABELLED not in task.labels:
                continue
            wrong = _unknown_label(task, label) if labelled else None
            if wrong:
                raise UserError(f"{place}: {wrong}")
            name = record.get(task.id_field, row)
            examples.append(Example(text_a, text_b, label if labelled else None, name, line))
    if not examples:
        raise UserError(f"{source}: holds no examples")
    lonely = next((example for example in examples if example.text_b is None), None)
    if lonely and any(example.text_b is not None for example in examples):
        raise UserError(f"{source}, line {lonely.line}: the second text is missing")
    return examples


def _expand(task: Task, record: Mapping[str, Any], labelled: bool) -> list[tuple[Texts, Label]]:
    if task.expand:
        return task.expand(record, labelled)
    label: Label = None
    if labelled:
        value = record[task.label_field]
        if task.kind == "score":
            label = float(value)
        elif task.kind == "multi":
            label = label_names(value)
        else:
            label = label_name(value)
    return [(task.texts(record), label)]


def label_name(value: Any) -> str:
    """A label as its name: JSON's true and 1 are "true" and "1".

    Raises:
      ValueError: if it is nothing, an empty text, a list or an object.
    """
    if value is None or value == "" or isinstance(value, list | dict):
        raise ValueError(f"label {json.dumps(value)}, expected a text")
    return json.dumps(value) if isinstance(value, bool) else str(value)


def label_names(value: Any) -> tuple[str, ...]:
    """Several labels: a list of names, or names with commas between them.

    Raises:
      ValueError: if they are neither.
    """
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    if not isinstance(value, list):
        raise ValueError(f"labels {json.dumps(value)}, expected a list or a text")
    return tuple(label_name(name) for name in value)


def _unknown_label(task: Task, label: Label) -> str | None:
    if task.kind == "score":
        finite = isinstance(label, float) and abs(label) < float("inf")
        return None if finite else f"score {label} is not a finite number"
    names = label if isinstance(label, tuple) else (label,)
    for name in names:
        if name not in task.labels:
            known = ", ".join(task.labels[:20]) + (", .." if len(task.labels) > 20 else "")
            return f"label {name!r} is not one of {task.name}'s: {known}"
    return None


def rows(
    examples: Sequence[Example],
    task: Task,
    tokenizer: Tokenizer,
    normalize: Callable[[str], str],
    max_length: int,
) -> Rows:
    """A row for each example: `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`."""
    firsts = tokenizer.encode_batch([normalize(example.text_a) for example in examples])
    seconds = tokenizer.encode_batch([normalize(example.text_b or "") for example in examples])
    ids, segments = [], []
    for i in range(len(examples)):
        a = firsts.ids[firsts.row_splits[i] : firsts.row_splits[i + 1]].tolist()
        b = seconds.ids[seconds.row_splits[i] : seconds.row_splits[i + 1]].tolist()
        row, row_segments = build_row(tokenizer, a, b, max_length)
        ids.append(row)
        segments.append(row_segments)
    names = [example.id for example in examples]
    return Rows(ids, segments, _labels(examples, task), sources=names)


def _labels(examples: Sequence[Example], task: Task) -> np.ndarray:
    index = {label: i for i, label in enumerate(task.labels)}
    if task.kind == "score":
        return np.array([example.label or 0.0 for example in examples], np.float32)
    if task.kind == "multi":
        labels = np.zeros((len(examples), len(task.labels)), np.float32)
        for i, example in enumerate(examples):
            labels[i, [index[name] for name in example.label or ()]] = 1
        return labels
    return np.array([index.get(example.label, 0) for example in examples], np.int32)


def grouped(task: Task, labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted classes; where a record is several examples, one of each a record.

    Of a group, the answer is the member with the largest probability of the last class, the first
    of equals.
    """
    if task.group == 1:
        return labels, logits.argmax(axis=1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    likely = np.exp(shifted[:, -1]) / np.exp(shifted).sum(axis=1)
    return (
        labels.reshape(-1, task.group).argmax(axis=1),
        likely.reshape(-1, task.group).argmax(axis=1),
    )


def confusion(task: Task, rows: Rows, logits: np.ndarray) -> np.ndarray:
    """How often each class was taken for each: [C, C], rows are the true ones."""
    return metrics.confusion(*grouped(task, rows.labels, logits), len(task.labels))


def _scores(task: Task, rows: Rows, logits: np.ndarray) -> dict[str, float]:
    if task.kind == "score":
        return metrics.regression(rows.labels, logits[:, 0])
    if task.kind == "multi":
        return metrics.multi_label(rows.labels > 0, logits > 0)
    return metrics.classification(confusion(task, rows, logits))


def _answers(task: Task, rows: Rows, logits: np.ndarray) -> list[tuple[Any, Any]]:
    names = rows.sources[:: task.group]
    if task.kind == "score":
        return [(name, float(score)) for name, score in zip(names, logits[:, 0], strict=True)]
    if task.kind == "multi":
        found = [[task.labels[i] for i in np.flatnonzero(row > 0)] for row in logits]
    else:
        _, chosen = grouped(task, rows.labels, logits)
        found = [task.labels[i] for i in chosen]
    return list(zip(names, found, strict=True))


def _details(task: Task, rows: Rows, logits: np.ndarray) -> dict[str, Any]:
    if task.kind != "single" or task.group > 1:
        return {}
    return by_length(rows.lengths, logits.argmax(axis=1) == rows.labels)


def by_length(lengths: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Accuracy by number of tokens."""
    parts = {}
    for low, high in zip((0, *LENGTHS), LENGTHS, strict=False):
        inside = (lengths > low) & (lengths <= high)
        if inside.any():
            parts[f"{low + 1}-{high}"] = {
                "examples": int(inside.sum()),
                "accuracy": float(right[inside].mean()),
            }
    return {"by_length": parts}


_form = functools.partial(Form, read, rows, _scores, _answers)
SINGLE = _form("accuracy", details=_details)
MULTI = _form("micro_f1")
SCORE = _form("spearman")

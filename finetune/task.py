"""What a task is: where its texts and labels stand, in which files, and how it is submitted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clue_jax.errors import UserError

Kind = Literal["single", "multi", "score"]
# One label, several, or a number; None where a file has no labels.
Label = str | tuple[str, ...] | float | None
Texts = tuple[str, str | None]
UNLABELLED = "-"  # marks examples on which the annotators did not agree


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
    line: int


@dataclass(frozen=True)
class Task:
    """A task, as data.

    Attributes:
      name: on the command line.
      labels: in the original's order, which is that of the classifier's columns.
      texts: from a record of the file to the texts.
      train, dev, test: file names; `test` by version of the benchmark.
      archive: the official zip.
      submission: file name by version; empty if there is nothing to submit.
      test_rows: rows of the official test file by version.
      kind: what the labels are.
      label_field, id_field: names in a record.
      answer: what a line of the submission holds beside id and label.
      expand: for tasks whose record is several examples; gives their texts and labels.
      group: how many examples a record makes.
      read: splits a file into records with their line numbers; default JSON lines.
    """

    name: str
    labels: tuple[str, ...]
    texts: Callable[[Mapping[str, Any]], Texts]
    train: str = "train.json"
    dev: str = "dev.json"
    test: Mapping[str, str] = field(default_factory=lambda: {"1.1": "test.json"})
    archive: str = ""
    submission: Mapping[str, str] = field(default_factory=dict)
    test_rows: Mapping[str, int] = field(default_factory=dict)
    kind: Kind = "single"
    label_field: str = "label"
    id_field: str = "id"
    answer: Mapping[str, str] = field(default_factory=dict)
    expand: Callable[[Mapping[str, Any]], list[tuple[Texts, Label]]] | None = None
    group: int = 1
    read: Callable[[bytes, str], Iterator[tuple[int, dict[str, Any]]]] | None = None


def read_examples(task: Task, data: bytes, source: str, labelled: bool) -> list[Example]:
    """The examples of a file, in order.

    Args:
      task: says how.
      data: the file.
      source: its name, for messages.
      labelled: whether each record must have a label; records marked as unlabelled are left out.

    Raises:
      UserError: for an empty file, or a record that is not as it should be, with its line.
    """
    examples: list[Example] = []
    for row, (line, record) in enumerate((task.read or json_lines)(data, source)):
        place = f"{source}, line {line}"
        try:
            pairs = _expand(task, record, labelled)
        except KeyError as error:
            raise UserError(
                f"{place}: no field {error}; {task.name} needs it, found {', '.join(record)}"
            ) from error
        except (TypeError, ValueError, AttributeError) as error:
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
    return examples


def _expand(task: Task, record: Mapping[str, Any], labelled: bool) -> list[tuple[Texts, Label]]:
    if task.expand:
        return task.expand(record)
    label: Label = None
    if labelled:
        value = record[task.label_field]
        if task.kind == "score":
            label = float(value)
        elif task.kind == "multi":
            names = value.split(",") if isinstance(value, str) else value
            label = tuple(str(name).strip() for name in names if str(name).strip())
        else:
            label = label_name(value)
    return [(task.texts(record), label)]


def label_name(value: Any) -> str:
    """A label as its name: JSON's true and 1 are "true" and "1"."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


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


def json_lines(data: bytes, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers.

    Lines end at a line feed only: IFLYTEK's texts hold U+2028 and U+0085.

    Raises:
      UserError: for a line that is blank, not UTF-8, or no JSON object.
    """
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        place = f"{source}, line {number}"
        if not line.strip():
            raise UserError(f"{place}: is blank; remove it")
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 text") from error
        except ValueError as error:
            raise UserError(f"{place}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{place}: expected a JSON object, got {type(record).__name__}")
        yield number, record


def tab_separated(
    data: bytes, source: str, columns: tuple[str, ...] | None = None, separator: str = "\t"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a TSV or CSV file as records, with their line numbers.

    Args:
      data: the file. A TSV has no quoting; a CSV has that of spreadsheets.
      source: its name, for messages.
      columns: their names; None takes the first line.
      separator: a tab, or a comma for CSV.

    Raises:
      UserError: for text that is not UTF-8, or a row with another number of columns.
    """
    import csv
    import io

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source}, line {line}: not UTF-8 text") from error
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=separator, quoting=quoting)
    csv.field_size_limit(1 << 30)
    for values in reader:
        if columns is None:
            columns = tuple(values)
            continue
        if len(values) != len(columns):
            raise UserError(
                f"{source}, line {reader.line_num}: {len(values)} columns, expected "
                f"{len(columns)} ({', '.join(columns)})"
            )
        yield reader.line_num, dict(zip(columns, values, strict=True))

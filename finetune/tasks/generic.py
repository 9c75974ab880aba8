"""A person's own task: files of JSON lines, TSV or CSV with columns named on the command line."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clue_jax.errors import UserError
from clue_jax.features.entities import entities_of, labels_for
from finetune.forms.labels import label_name, label_names
from finetune.forms.tags import to_bio
from finetune.records import conll, json_lines, tab_separated
from finetune.task import Kind, Task, Texts

ENDINGS = ("jsonl", "json", "tsv", "csv", "txt", "conll")


def make(
    ending: str,
    text: str = "text",
    pair: str | None = None,
    label: str = "label",
    kind: Kind = "single",
    labels: tuple[str, ...] = (),
) -> Task:
    """A task out of column names.

    Args:
      ending: of the files train, dev and test: jsonl, json (lines too), tsv or csv, both with a
        header; of tags txt or conll, a unit and its tag a line.
      text, pair, label: columns of the text, of the second text of a pair, and of the label.
      kind: one label, several (a list, or separated by commas), a score, or tags.
      labels: in the order of the classifier's columns; none for a score.
    """

    def texts(record: Mapping[str, Any]) -> Texts:
        return record[text], record[pair] if pair else None

    separator = {"tsv": "\t", "csv": ","}.get(ending)
    return Task(
        name="generic",
        labels=("score",) if kind == "score" else labels,
        texts=texts,
        train=f"train.{ending}",
        dev=f"dev.{ending}",
        test={"1.0": f"test.{ending}", "1.1": f"test.{ending}"},
        archive="generic.zip",
        kind=kind,
        label_field=label,
        records=functools.partial(tab_separated, separator=separator) if separator else json_lines,
    )


def ending_of(folder: str) -> str:
    """The ending of the training file in a folder.

    Raises:
      UserError: if there is none, or several.
    """
    found = [ending for ending in ENDINGS if (Path(folder) / f"train.{ending}").is_file()]
    if len(found) != 1:
        names = ", ".join(f"train.{ending}" for ending in ENDINGS)
        raise UserError(f"{folder}: holds {len(found)} of {names}; expected one")
    return found[0]


def labels_of(task: Task, data: bytes, source: str) -> tuple[str, ...]:
    """The labels that a training file has, sorted; of tags the BIO labels of its types."""
    if task.kind == "tags":
        kinds = {
            entity.kind
            for line, _, tags in conll(data, source)
            for entity in entities_of(to_bio(tags, f"{source}, line {line}"))
        }
        if not kinds:
            raise UserError(f"{source}: holds no entities; expected lines of a unit and its tag")
        return labels_for(sorted(kinds))
    found: set[str] = set()
    for line, record in (task.records or json_lines)(data, source):
        if task.label_field not in record:
            raise UserError(f"{source}, line {line}: no field {task.label_field!r}")
        value = record[task.label_field]
        try:
            found |= set(label_names(value)) if task.kind == "multi" else {label_name(value)}
        except ValueError as error:
            raise UserError(f"{source}, line {line}: {error}") from error
    if len(found) < 2:
        raise UserError(
            f"{source}: has {len(found)} label{'s' * (len(found) != 1)}; a classifier needs two or "
            "more"
        )
    return tuple(sorted(found))

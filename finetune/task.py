"""What a task is: its files, its labels, how it is read, scored and submitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["single", "multi", "score", "choice", "spans", "tags"]
# One label, several, or a number; None where a file has no labels.
Label = str | tuple[str, ...] | float | None
Texts = tuple[str, str | None]
Content = tuple[bytes, str]  # of a file, and its name for messages


@dataclass(frozen=True)
class Task:
    """A task, as data.

    Attributes:
      name: on the command line.
      kind: what is to be found, see `finetune.forms`: one label, several, a score; the right
        choice; spans that answer a question; tags of characters.
      labels: in the original's order, which is that of the classifier's columns; for choices and
        spans none.
      texts: from a record of the file to the texts, for tasks of labels.
      train, dev, test: file names, several with commas between them, "|" between a name and
        others in its place; `test` by version of the benchmark; "" for none.
      answers_file: from the name of a file to that of the answers to it, if they stand apart.
      archive: the official zip.
      other_archives: zips of other editions, which are read as well.
      submission: file name by version; empty if there is nothing to submit.
      test_rows: rows of the official test file by version.
      container: of the submission: an object a line, or one object of ids and answers.
      answer: what a line of the submission holds beside id and label.
      board_metric: the score that the benchmark's table shows, if it is not the one that chooses
        the best checkpoint.
      label_field, id_field: names in a record.
      name_field: of labels that are codes, the field of their names in the file `labels.json`.
      expand: for tasks whose record is several examples; gives their texts and, if they shall have
        some, their labels.
      group: how many examples a record makes.
      records: splits a file into records with their line numbers; default JSON lines.
      read: reads the examples of a file, in the place of the form's own reader.
      simplify: traditional characters are simplified for the model; answers keep them.
      choices: of a question, at most.
      stride, max_question, max_answer: of reading comprehension, in tokens.
    """

    name: str
    labels: tuple[str, ...] = ()
    texts: Callable[[Mapping[str, Any]], Texts] | None = None
    kind: Kind = "single"
    train: str = "train.json"
    dev: str = "dev.json"
    test: Mapping[str, str] = field(default_factory=lambda: {"1.1": "test.json"})
    answers_file: Callable[[str], str] | None = None
    archive: str = ""
    other_archives: tuple[str, ...] = ()
    submission: Mapping[str, str] = field(default_factory=dict)
    test_rows: Mapping[str, int] = field(default_factory=dict)
    container: Literal["lines", "mapping"] = "lines"
    answer: Mapping[str, str] = field(default_factory=dict)
    board_metric: str | None = None
    label_field: str = "label"
    id_field: str = "id"
    name_field: str = ""
    expand: Callable[[Mapping[str, Any], bool], list[tuple[Texts, Label]]] | None = None
    group: int = 1
    records: Callable[[bytes, str], Iterator[tuple[int, dict[str, Any]]]] | None = None
    read: Callable[[Task, Content, bool, Content | None], list[Any]] | None = None
    simplify: bool = False
    choices: int = 4
    stride: int = 128
    max_question: int = 64
    max_answer: int = 50

    def files(self, split: str, version: str) -> list[str]:
        """The names of the files of a split."""
        names = {"train": self.train, "dev": self.dev}.get(split, self.test.get(version, ""))
        return [name for name in names.split(",") if name]

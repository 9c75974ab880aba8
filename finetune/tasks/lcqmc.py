"""LCQMC: do two questions ask the same? Tab-separated, with or without a header."""

from collections.abc import Iterator
from typing import Any

from finetune.records import tab_separated
from finetune.task import Task

_COLUMNS = ("text_a", "text_b", "label")
_HEADERS = (_COLUMNS, ("sentence1", "sentence2", "label"), ("query1", "query2", "label"))


def _records(data: bytes, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The pairs of a file. A test set may have no column of labels."""
    first = data.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].rstrip(b"\r")
    cells = tuple(first.decode("utf-8", "replace").split("\t"))
    width = 2 if len(cells) == 2 else 3
    records = tab_separated(data, source, _COLUMNS[:width])
    if cells in {header[:width] for header in _HEADERS}:
        next(records)
    return records


TASK = Task(
    name="lcqmc",
    labels=("0", "1"),
    texts=lambda record: (record["text_a"], record["text_b"]),
    train="train.tsv",
    dev="dev.tsv",
    test={"1.1": "test.tsv"},
    archive="lcqmc.zip",
    records=_records,
)

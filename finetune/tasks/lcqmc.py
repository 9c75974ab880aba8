"""LCQMC: do two questions ask the same? Tab-separated, without a header."""

import functools

from finetune.records import tab_separated
from finetune.task import Task

TASK = Task(
    name="lcqmc",
    labels=("0", "1"),
    texts=lambda record: (record["text_a"], record["text_b"]),
    train="train.tsv",
    dev="dev.tsv",
    test={"1.1": "test.tsv"},
    archive="lcqmc.zip",
    records=functools.partial(tab_separated, columns=("text_a", "text_b", "label")),
)

"""LCQMC: do two questions ask the same? Tab-separated, without a header."""

import functools

from finetune.task import Task, tab_separated

TASK = Task(
    name="lcqmc",
    labels=("0", "1"),
    texts=lambda record: (record["text_a"], record["text_b"]),
    train="train.tsv",
    dev="dev.tsv",
    test={"1.1": "test.tsv"},
    archive="lcqmc.zip",
    read=functools.partial(tab_separated, columns=("text_a", "text_b", "label")),
)

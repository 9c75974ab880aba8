"""ChnSentiCorp: is a review positive? Tab-separated, with a header."""

from finetune.records import tab_separated
from finetune.task import Task

TASK = Task(
    name="chnsenticorp",
    labels=("0", "1"),
    texts=lambda record: (record["text_a"], None),
    train="train.tsv",
    dev="dev.tsv",
    test={"1.1": "test.tsv"},
    archive="chnsenticorp.zip",
    records=tab_separated,
)

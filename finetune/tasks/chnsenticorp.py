"""ChnSentiCorp: is a review positive? Tab-separated, with a header."""

from finetune.task import Task, tab_separated

TASK = Task(
    name="chnsenticorp",
    labels=("0", "1"),
    texts=lambda record: (record["text_a"], None),
    train="train.tsv",
    dev="dev.tsv",
    test={"1.1": "test.tsv"},
    archive="chnsenticorp.zip",
    read=tab_separated,
)

"""XNLI, the Chinese part: natural language inference."""

from finetune.task import Task

TASK = Task(
    name="xnli",
    labels=("contradiction", "entailment", "neutral"),
    texts=lambda record: (record["premise"], record["hypo"]),
    archive="xnli.zip",
)

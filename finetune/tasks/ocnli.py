"""OCNLI: natural language inference, written in Chinese from the start. CLUE 1.1 only."""

from finetune.task import Task

TASK = Task(
    name="ocnli",
    labels=("contradiction", "entailment", "neutral"),
    texts=lambda record: (record["sentence1"], record["sentence2"]),
    train="train.50k.json",
    test={"1.1": "test.json"},
    archive="ocnli_public.zip",
    # ocnli_predict.json would score 0.
    submission={"1.1": "ocnli_50k_predict.json"},
    test_rows={"1.1": 3000},
)

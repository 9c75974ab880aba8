"""CMNLI: does the first sentence entail the second, contradict it, or neither? CLUE 1.1 trains it
too, but takes no answers to it."""

from finetune.task import Task

TASK = Task(
    name="cmnli",
    labels=("contradiction", "entailment", "neutral"),
    texts=lambda record: (record["sentence1"], record["sentence2"]),
    test={"1.0": "test.json", "1.1": "test.json"},
    archive="cmnli_public.zip",
    submission={"1.0": "cmnli_predict.json"},
    test_rows={"1.0": 13880, "1.1": 13880},
)

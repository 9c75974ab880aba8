"""IFLYTEK': what an app is for, from its long description; 119 classes."""

from finetune.task import Task

TASK = Task(
    name="iflytek",
    name_field="label_des",
    labels=tuple(str(number) for number in range(119)),
    texts=lambda record: (record["sentence"], None),
    test={"1.0": "test.json", "1.1": "test.json"},
    archive="iflytek_public.zip",
    submission={"1.0": "iflytek_predict.json", "1.1": "iflytek_predict.json"},
    test_rows={"1.0": 2600, "1.1": 2600},
)

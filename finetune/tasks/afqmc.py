"""AFQMC: do two questions to a bank's service mean the same?"""

from finetune.task import Task

TASK = Task(
    name="afqmc",
    labels=("0", "1"),
    texts=lambda record: (record["sentence1"], record["sentence2"]),
    test={"1.0": "test.json", "1.1": "test.json"},
    archive="afqmc_public.zip",
    submission={"1.0": "afqmc_predict.json", "1.1": "afqmc_predict.json"},
    test_rows={"1.0": 3861, "1.1": 3861},
)

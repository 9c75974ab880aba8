"""CMRC 2018: the answer to a question as a span of a passage out of Wikipedia."""

from finetune.task import Task

TASK = Task(
    name="cmrc2018",
    kind="spans",
    test={"1.0": "test.json", "1.1": "test.json"},
    archive="cmrc2018_public.zip",
    submission={"1.0": "cmrc2018_predict.json", "1.1": "cmrc2018_predict.json"},
    test_rows={"1.0": 2000, "1.1": 2000},
    container="mapping",
    board_metric="em",
)

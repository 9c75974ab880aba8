"""DRCD: as CMRC 2018, in traditional characters; the model sees simplified ones."""

from finetune.task import Task

TASK = Task(
    name="drcd",
    kind="spans",
    test={"1.0": "test.json", "1.1": "test.json"},
    archive="drcd_public.zip",
    container="mapping",
    board_metric="em",
    simplify=True,
)

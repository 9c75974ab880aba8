"""CSL: do all keywords belong to the abstract of the paper?"""

from collections.abc import Mapping
from typing import Any

from finetune.task import Task, Texts


def _texts(record: Mapping[str, Any]) -> Texts:
    keywords = record["keyword"]
    if not isinstance(keywords, list):
        raise ValueError(f"keyword is a {type(keywords).__name__}, expected a list")
    return " ".join(keywords), record["abst"]


TASK = Task(
    name="csl",
    labels=("0", "1"),
    texts=_texts,
    test={"1.0": "test.json", "1.1": "test.json"},
    archive="csl_public.zip",
    submission={"1.0": "csl_predict.json", "1.1": "csl_predict.json"},
    test_rows={"1.0": 3000, "1.1": 3000},
)

"""The CLUE diagnostics: a test file alone, for a model of CMNLI (1.0) or OCNLI (1.1)."""

from collections.abc import Mapping
from typing import Any

from finetune.task import Task, Texts


def _texts(record: Mapping[str, Any]) -> Texts:
    if "premise" in record:
        return record["premise"], record["hypothesis"]
    return record["sentence1"], record["sentence2"]


TASK = Task(
    name="diagnostics",
    labels=("contradiction", "entailment", "neutral"),
    texts=_texts,
    train="",
    dev="",
    test={"1.0": "diagnostics_test.json", "1.1": "diagnostics_test.json"},
    archive="clue_diagnostics_public.zip",
    submission={"1.0": "diagnostics_predict.json", "1.1": "diagnostics_predict.json"},
    id_field="index",
)

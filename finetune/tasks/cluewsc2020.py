"""CLUEWSC2020: does the pronoun stand for the noun? Both are marked in the text."""

from collections.abc import Mapping
from typing import Any

from clue_jax.features.marks import mark_spans
from finetune.task import Task, Texts


def _texts(record: Mapping[str, Any]) -> Texts:
    spans = record["target"]
    return mark_spans(
        record["text"],
        spans["span1_text"],
        spans["span1_index"],
        spans["span2_text"],
        spans["span2_index"],
    ), None


TASK = Task(
    name="cluewsc2020",
    labels=("true", "false"),
    texts=_texts,
    test={"1.0": "test1.0.json", "1.1": "test.json"},
    archive="cluewsc2020_public.zip",
    submission={"1.0": "cluewsc10_predict.json", "1.1": "cluewsc11_predict.json"},
    test_rows={"1.0": 290, "1.1": 2574},
)

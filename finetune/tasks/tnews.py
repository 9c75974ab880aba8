"""TNEWS': the section of a news headline. There are no classes 105 and 111."""

from finetune.task import Task

TASK = Task(
    name="tnews",
    name_field="label_desc",
    labels=tuple(str(code) for code in range(100, 117) if code not in (105, 111)),
    texts=lambda record: (record["sentence"], None),
    test={"1.0": "test1.0.json", "1.1": "test.json"},
    archive="tnews_public.zip",
    submission={"1.0": "tnews10_predict.json", "1.1": "tnews11_predict.json"},
    test_rows={"1.0": 10000, "1.1": 10000},
    answer={"label_desc": ""},
)

"""Fine-tuning on a person's own files, of each kind, to the answers that transformers reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_finetune import options

from finetune import evaluate, run


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("single", "tsv"), pytest.param("multi", "csv", marks=pytest.mark.slow), ("score", "jsonl")],
)
def test_own_files(micro_model, tmp_path, kind, ending):
    random = np.random.default_rng(1)
    labels = {"single": ["甲", "乙"], "multi": ["甲", "甲,乙", "乙"], "score": ["0.0", "1.0"]}[kind]
    folder = tmp_path / "data"
    folder.mkdir()
    source_rows = {}
    for split, count in (("train", 60), ("dev", 20), ("test", 9)):
        rows = []
        for _ in range(count):
            which = int(random.integers(len(labels)))
            rows.append({"a": "清灯亮"[which] * 3 + "来", "b": "地", "y": labels[which]})
        if ending == "jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            separator = "\t" if ending == "tsv" else ","
            quote = '"' if ending == "csv" else ""
            text = separator.join(rows[0]) + "\n"
            for row in rows:
                text += separator.join(f"{quote}{value}{quote}" for value in row.values()) + "\n"
        (folder / f"{split}.{ending}").write_text(text, encoding="utf-8")
        source_rows[split] = rows
    out = tmp_path / "out"
    run.main(
        options(folder, out, micro_model, task="generic", text="a", text_pair="b", label="y",
                kind=kind, epochs=8, seq_len=32, eval_every=8)
    )  # fmt: skip
    result = json.loads((out / "result.json").read_text())
    assert result["best_value"] > 0.9
    found = evaluate.main(["--model", str(out / "best"), "--input", str(folder / f"dev.{ending}")])
    assert found[result["metric"]] == result["best_value"]
    lines = (out / "generic_predict.json").read_text(encoding="utf-8").splitlines()
    predicted = [json.loads(line) for line in lines]
    assert len(predicted) == 9
    kinds = {"single": str, "multi": list, "score": float}
    assert all(isinstance(line["label"], kinds[kind]) for line in predicted)

    # transformers' pipeline reads the answers as we do: a softmax, sigmoids, or the number itself.
    transformers = pytest.importorskip("transformers")
    classify = transformers.pipeline("text-classification", str(out / "best"), top_k=None)
    rows = [row["a"] for row in source_rows["test"]]
    for text, line in zip(rows, predicted, strict=True):
        theirs = {
            found["label"]: found["score"]
            for found in classify([{"text": text, "text_pair": "地"}])[0]
        }
        if kind == "score":
            assert theirs[min(theirs)] == pytest.approx(line["label"], abs=1e-4)
        elif kind == "multi":
            assert {label for label, score in theirs.items() if score > 0.5} == set(line["label"])
        else:
            assert max(theirs, key=theirs.get) == line["label"]
            assert sum(theirs.values()) == pytest.approx(1)

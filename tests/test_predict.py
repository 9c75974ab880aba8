"""tools.predict: every form of input, order, what is shown, what is refused."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest
from conftest import save_kind

from clue_jax import Predictor
from clue_jax.errors import UserError
from tools import predict

TEXTS = ["清晨五点，渔港的灯亮了。", "今天天气很好", "我们去公园"]


def run(model, content, tmp_path, *options, name="in.txt"):
    source, output = tmp_path / name, tmp_path / "out.jsonl"
    source.write_bytes(content.encode() if isinstance(content, str) else content)
    predict.main(["--model", str(model), "--input", str(source), "--output", str(output), *options])
    lines = output.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def expected(model, inputs, **options):
    return Predictor(model).predict(inputs, **options)


def close(found, wanted, shown):
    assert len(found) == len(wanted) == len(shown)
    for line, answer, own in zip(found, wanted, shown, strict=True):
        assert line.keys() == {**own, **answer}.keys()
        assert {name: line[name] for name in own} == own
        assert line["label"] == answer["label"]
        assert line["probability"] == pytest.approx(answer["probability"], abs=1e-5)


def test_text_lines_are_answered_in_order(kinds, tmp_path, capsys):
    model = kinds["classification"]
    many = [f"{text}{i}" for i in range(200) for text in TEXTS]  # more than one chunk
    found = run(model, "\n".join(many) + "\n\n", tmp_path)
    close(found, expected(model, many), [{"text": text} for text in many])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["texts"] == 600 and result["bad_lines"] == 0 and result["texts_per_second"] > 0


def test_the_forms_give_the_same(kinds, tmp_path):
    model = kinds["classification"]
    pairs = [(a, b) for a, b in zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True)]
    inputs = [{"text": a, "text_pair": b} for a, b in pairs]
    wanted = expected(model, inputs)
    lines = "".join(json.dumps(given, ensure_ascii=False) + "\n" for given in inputs)
    close(run(model, lines, tmp_path, name="in.jsonl"), wanted, inputs)
    marked = b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode()
    close(run(model, marked, tmp_path, name="in.json"), wanted, inputs)
    tsv = "id\ttext\ttext_pair\n" + "".join(f"{i}\t{a}\t{b}\n" for i, (a, b) in enumerate(pairs))
    shown = [{"id": str(i), **given} for i, given in enumerate(inputs)]
    close(run(model, tsv, tmp_path, name="in.tsv"), wanted, shown)
    csv = "一,二\n" + "".join(f'"{a}","{b}"\n' for a, b in pairs)
    close(run(model, csv, tmp_path, "--text", "一", "--pair", "二", name="in.csv"), wanted, inputs)
    close(
        run(model, csv, tmp_path, "--format", "csv", "--text", "一", "--pair", "二"), wanted, inputs
    )


def test_records_of_the_models_own_task_are_understood(kinds, tmp_path, tokenizer):
    """CSL joins its keywords; CLUEWSC marks two spans."""
    for task, record, given in (
        (
            "csl",
            {"id": 7, "keyword": ["渔港", "灯"], "abst": "清晨五点", "label": "1"},
            {"text": "渔港 灯", "text_pair": "清晨五点"},
        ),
        (
            "cluewsc2020",
            {"text": "张三打了李四，他跑了", "target": {
                "span1_text": "李四", "span1_index": 4, "span2_text": "他", "span2_index": 7}},
            {"text": "张三打了_李四_，[他]跑了"},
        ),
    ):  # fmt: skip
        model = tmp_path / task
        shutil.copytree(kinds["classification"], model)
        info = json.loads((model / "clue_jax.json").read_text(encoding="utf-8"))
        (model / "clue_jax.json").write_text(json.dumps(info | {"task": task}), encoding="utf-8")
        (found,) = run(model, json.dumps(record) + "\n", tmp_path, name="in.jsonl")
        (wanted,) = expected(model, [given])
        assert found["probability"] == pytest.approx(wanted["probability"], abs=1e-5)
    model = tmp_path / "csl"
    with pytest.raises(UserError, match=r'line 1: holds no "text", and is no csl'):
        run(model, '{"a": 1}\n', tmp_path, name="in.jsonl")


def test_columns_of_a_persons_own_task_are_known(tmp_path, tokenizer):
    model = save_kind(tmp_path / "m", "classification", tokenizer)
    info = json.loads((model / "clue_jax.json").read_text(encoding="utf-8"))
    info["input"] = {"text": "标题", "pair": "正文", "label": "label", "kind": "single"}
    (model / "clue_jax.json").write_text(json.dumps(info), encoding="utf-8")
    (found,) = run(model, '{"标题": "清晨", "正文": "五点"}', tmp_path, name="in.jsonl")
    assert found["text"] == "清晨" and found["text_pair"] == "五点"


@pytest.mark.parametrize("kind", ["spans", "choice", "entities", "fill-mask", "embedding"])
def test_every_kind(kinds, tmp_path, kind):
    given = {
        "spans": {"text": "清晨五点，渔港的灯亮了。", "question": "几点？"},
        "choice": {"text": "清晨五点", "question": "几点？", "choices": ["五点", "六点"]},
        "fill-mask": {"text": "清晨[MASK]点"},
    }.get(kind, {"text": "清晨五点"})
    model = kinds.get(kind, kinds["fill-mask"])
    options = ("--task", kind, "--top-k", "2")
    (found,) = run(model, json.dumps(given), tmp_path, *options, name="in.jsonl")
    (wanted,) = expected(model, [given], kind=kind, top_k=2)
    own = {name: value for name, value in given.items() if name != "choices"}
    assert found == {**own, **wanted}


def test_standard_input_and_output(kinds, monkeypatch, capsys):
    model = kinds["classification"]
    for lines in (
        "".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
        "\n".join(TEXTS),
        "".join(json.dumps(text) + "\n" for text in TEXTS),
    ):
        stdin = io.TextIOWrapper(io.BytesIO(lines.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        form = ("--format", "jsonl") if lines.startswith('"') else ()
        predict.main(["--model", str(model), *form])
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        close(found, expected(model, TEXTS), [{"text": text} for text in TEXTS])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "好"}\n{"text": \n', r"a.jsonl, line 2: not valid JSON \(Expecting"),
        ("a.jsonl", '{"text": "好"}\n[1]\n', "a.jsonl, line 2: expected a JSON object, got list"),
        ("a.jsonl", '{"txt": "好"}\n', r'line 1: holds no "text", found "txt" \(--text names it\)'),
        ("a.jsonl", '\n\n{"text": 3}\n', 'line 3: "text" must be a text, got a int'),
        ("a.jsonl", "[" * 100000, "line 1: not valid JSON"),
        ("a.tsv", "text\tid\n好\n", r"a.tsv, line 2: 1 columns, expected 2 \(text, id\)"),
        ("a.txt", "好\n".encode("gb18030"), "a.txt, line 1: not UTF-8 text"),
        ("a.tsv", "文\n好\n".encode("gb18030"), "a.tsv, line 1: not UTF-8 text"),
        ("a.csv", 'text\n"好\n', r"a.csv, line 2: not valid CSV \(unexpected end of data\)"),
        ("a.csv", "text,id\n好\n", r"a.csv, line 2: 1 columns, expected 2 \(text, id\)"),
    ],
)
def test_what_is_refused(kinds, tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        run(kinds["classification"], content, tmp_path, name=name)
    assert not (tmp_path / "out.jsonl").exists()


def test_bad_lines_can_be_skipped(kinds, tmp_path, capsys):
    content = '{"text": "好"}\n{"text": \n\n{"text": 3}\n{"text": "不好"}\n'
    model = kinds["classification"]
    found = run(model, content, tmp_path, "--skip-bad-lines", name="in.jsonl")
    assert [line.get("text") for line in found] == ["好", None, None, "不好"]
    assert [line["line"] for line in found[1:3]] == [2, 4] and "error" in found[1]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["bad_lines"] == 2


def test_a_quoted_line_feed_and_a_long_field_are_one_text(kinds, tmp_path):
    long = "好" * 200_000
    content = f'text\n"清晨\n五点"\n\n{long}\n'
    found = run(kinds["classification"], content, tmp_path, name="in.csv")
    assert [line["text"] for line in found] == ["清晨\n五点", long]
    assert found[1]["truncated"] is True


def test_a_task_that_the_model_cannot_do_is_refused_at_once(kinds, tmp_path):
    with pytest.raises(UserError, match="makes no spans; it makes classification"):
        run(kinds["classification"], "好\n", tmp_path, "--task", "spans")
    with pytest.raises(UserError, match="none.txt: cannot read"):
        predict.main(["--model", str(kinds["score"]), "--input", str(tmp_path / "none.txt")])


def test_lone_surrogates_and_control_characters_do_no_harm(kinds, tmp_path):
    content = '{"text": "好\\ud800\\u0000\\u2028"}\n'
    (found,) = run(kinds["classification"], content, tmp_path, name="in.jsonl")
    assert found["text"] == "好\ud800\x00\u2028"

"""Files as people have them: what is read of them, and what is refused with file and line."""

from __future__ import annotations

import dataclasses
import json
import zipfile

import numpy as np
import pytest

from clue_jax.errors import UserError
from clue_jax.features.entities import Entity, as_mentions
from clue_jax.features.tokens import Characters, parts
from finetune.data import download, read_examples, read_file, read_split
from finetune.records import conll, json_lines, tab_separated
from finetune.tasks import TASKS
from finetune.tasks.generic import labels_of, make


def lines(*records: object) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def test_tabs_and_quotes():
    """A quote is a character like others between tabs; between commas it holds lines together."""
    table = '"a\tb\n1"\t2\r\n\u2028\t"'.encode()
    assert list(tab_separated(table, "f")) == [
        (2, {'"a': '1"', "b": "2"}),
        (3, {'"a': "\u2028", "b": '"'}),
    ]
    assert list(tab_separated(b'a,b\n"1\n2",3\n', "f", separator=",")) == [
        (3, {"a": "1\n2", "b": "3"})
    ]
    with pytest.raises(UserError, match=r"f, line 2: not valid CSV \(new-line"):
        list(tab_separated(b"a,b\n1\r2,3\n", "f", separator=","))
    with pytest.raises(UserError, match=r"f, line 3: not valid CSV \(','"):  # one opened in line 2
        list(tab_separated(b'a,b\n"1,2\n3 "4",5\n6,7\n', "f", separator=","))
    with pytest.raises(UserError, match=r"f, line 3: 1 columns, expected 2 \(a, b\)"):
        list(tab_separated(b"a\tb\n1\t2\n\n", "f"))


def test_a_deep_record_is_one_line():
    deep = b"{}\n" + b'{"a":' * 100_000 + b"\n"
    with pytest.raises(UserError, match="f, line 2: not valid JSON"):
        list(json_lines(deep, "f"))


def test_an_ideographic_space_is_a_unit():
    data = "\u3000 O\n北 B-LOC\n \t\n京\tO\n".encode()
    assert list(conll(data, "f")) == [
        (1, ["\u3000", "北"], ["O", "B-LOC"]),
        (4, ["京"], ["O"]),
    ]


def test_unknown_tags_are_refused():
    task = make(".txt", text="text", pair=None, label="label", kind="tags")
    for tag in ("X-LOC", "B", "B-", "loc"):
        data = f"天 O\n\n北 {tag}\n".encode()
        with pytest.raises(UserError, match=f"f, line 3: tag '{tag}'; expected O, or B, I, M"):
            labels_of(task, data, "f")
    assert labels_of(task, "北 B-LOC\n京 M-LOC\n市 E-LOC\n".encode(), "f") == (
        "B-LOC", "I-LOC", "O",
    )  # fmt: skip


def test_mentions_of_units_longer_than_a_character():
    """Places count units, so the texts come from these as well."""
    assert as_mentions(["在", "New", "York", "的"], [Entity("地", 1, 2)]) == {
        "地": {"NewYork": [[1, 2]]}
    }


def test_a_unit_longer_than_a_part_is_cut():
    units = ["a", "bbbbb", "c"]
    pieces = Characters(
        np.array([9, 1, 2, 3, 4, 5, 9], np.int32),
        np.array([0, 1, 1, 1, 1, 1, 2]),
        np.array([True, True, False, False, False, False, True]),
    )
    cut = parts(pieces, units, 3)
    assert [(p.start, p.stop) for p in cut] == [(0, 1), (1, 4), (4, 7)]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("single", None, "label null, expected a text"),
        ("single", "", 'label "", expected a text'),
        ("multi", ["b", None], "label null, expected a text"),
        ("multi", [{"b": 1}], r'label \{"b": 1\}, expected a text'),
        ("single", ["a"], r'label \["a"\], expected a text'),
        ("multi", 3, "labels 3, expected a list or a text"),
    ],
)
def test_labels_that_are_none(kind, value, message):
    task = make(".json", text="text", pair=None, label="label", kind=kind)
    data = lines({"text": "好", "label": "a"}, {"text": "坏", "label": value})
    with pytest.raises(UserError, match=f"f, line 2: {message}"):
        labels_of(task, data, "f")
    with pytest.raises(UserError, match=f"f, line 2: .*{message}"):
        read_examples(dataclasses.replace(task, labels=("a", "b")), (data, "f"), True)


def test_a_pair_without_its_second_text():
    task = make(".json", text="a", pair="b", label="label", kind="score")
    data = lines({"a": "好", "b": "坏", "label": 1}, {"a": "好", "b": None, "label": 1})
    with pytest.raises(UserError, match="f, line 2: "):
        read_examples(task, (data, "f"), True)


def test_a_limit_takes_as_many_of_each_file(tmp_path):
    """C3 is two sets, of which a limit must not leave one out."""
    for name, count in (("c3-d-train.json", 4), ("c3-m-train.json", 4)):
        question = {"question": "？", "choice": ["甲", "乙"], "answer": "甲"}
        entries = [[[f"{name[3]}{i}"], [question], str(i)] for i in range(count)]
        (tmp_path / name.removeprefix("c3-")).write_text(json.dumps(entries))
    read = read_split(TASKS["c3"], tmp_path, "train", limit=5)
    assert [example.passage for example in read] == ["d0", "d1", "d2", "m0", "m1"]
    assert len(read_split(TASKS["c3"], tmp_path, "train")) == 8


def test_ids_that_fall_together(tmp_path):
    """Answers by id would be lost; a file of lines keeps both, and training needs no ids."""
    asked = {"id": "Q7", "question": "？", "answers": []}
    paragraphs = [{"id": "P", "context": "文", "qas": [asked, asked]}]
    data = json.dumps({"version": "v1.0", "data": [{"paragraphs": paragraphs}]}).encode()
    (tmp_path / "test.json").write_bytes(data)
    with pytest.raises(UserError, match="test.json: holds the id Q7 twice"):
        read_split(TASKS["cmrc2018"], tmp_path, "test")
    with pytest.raises(UserError, match="test.json: holds the id Q7 twice"):
        read_file(TASKS["cmrc2018"], str(tmp_path / "test.json"), labelled=False)
    asked["answers"] = [{"text": "文", "answer_start": 0}]
    paragraphs = [{"id": "P", "context": "文", "qas": [asked, asked]}]
    (tmp_path / "train.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    assert len(read_split(TASKS["cmrc2018"], tmp_path, "train")) == 2
    blank = {"id": [1], "candidates": ["画蛇添足", "一日千里"], "content": "他#idiom#了"}
    (tmp_path / "test.json").write_text(json.dumps(blank))
    with pytest.raises(UserError, match=r"the id \[1\] is neither a text nor a number"):
        read_split(TASKS["chid"], tmp_path, "test")
    row = {"sentence1": "好", "sentence2": "坏", "label": "0", "id": 1}
    assert len(read_examples(TASKS["afqmc"], (lines(row, row), "f"), True)) == 2


def test_a_zip_of_several_tasks(tmp_path):
    row = {"sentence1": "好", "sentence2": "坏", "label": "0"}
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ocnli/dev.json", lines(row | {"label": "neutral"}))
        archive.writestr("afqmc/dev.json", lines(row))
        archive.writestr("old/train.json", lines(row))
        archive.writestr("train.json", lines(row, row))
    assert len(read_split(TASKS["afqmc"], path, "train")) == 2
    assert read_split(TASKS["afqmc"], path, "dev")[0].label == "0"
    with pytest.raises(UserError, match=r"all.zip: holds dev.json 2 times; unpack it first"):
        read_split(TASKS["csl"], path, "dev")


def test_a_zip_in_the_cache_is_what_was_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("CLUE_JAX_HOME", str(tmp_path))
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with zipfile.ZipFile(mirror / "afqmc_public.zip", "w") as archive:
        archive.writestr("dev.json", lines({"sentence1": "好", "sentence2": "坏", "label": "0"}))
    path, _ = download(TASKS["afqmc"], mirror=str(mirror))
    assert len(read_split(TASKS["afqmc"], None, "dev")) == 1
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other", "")
    with pytest.raises(UserError, match="afqmc_public.zip: is not what was downloaded"):
        read_split(TASKS["afqmc"], None, "dev")

"""The tasks' texts, labels and rows, against recordings of the original and by hand."""

from __future__ import annotations

import dataclasses
import gzip
import json
import zipfile

import numpy as np
import pytest

from clue_jax.errors import UserError
from clue_jax.features.marks import mark_spans
from clue_jax.features.sequences import build_row, pad_rows
from clue_jax.text import WordPieceTokenizer
from finetune.data import read_examples
from finetune.tasks import TASKS

RECORDED = {
    "afqmc": "afqmc", "tnews": "tnews", "iflytek": "iflytek", "cmnli": "cmnli", "ocnli": "ocnli",
    "csl": "csl", "cluewsc2020": "cluewsc2020", "copa": "copa", "xnli": "xnli",
    "edge": "afqmc", "edge_single": "tnews",
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabularies(shared):
    folder = shared / "data/vocab"
    names = {"google": "vocab_google_zh.txt", "clue": "vocab_clue.txt"}
    return {name: WordPieceTokenizer(folder / file) for name, file in names.items()}


@pytest.mark.parametrize("name", RECORDED)
def test_rows_are_the_recorded_ones(shared, vocabularies, name):
    folder = shared / "fixtures/classification_features"
    task = TASKS[RECORDED[name]]
    examples = {}
    for split in ("train", "dev", "test"):
        data = (folder / "data" / name / f"{split}.json").read_bytes()
        examples[split] = read_examples(task, (data, f"{split}.json"), split != "test")
    seen = dict.fromkeys(examples, 0)
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            recorded = json.loads(line)
            split = recorded["guid"].split("-")[0]
            # Four rows an example: two vocabularies, two lengths.
            example = examples[split][seen[split] // 4]
            seen[split] += 1
            assert (example.text_a, example.text_b) == (recorded["text_a"], recorded["text_b"])
            if split != "test":
                assert example.label == recorded["label"]
                assert task.labels.index(example.label) == recorded["label_id"]
            tokenizer, length = vocabularies[recorded["vocab"]], recorded["max_seq_length"]
            a = tokenizer.encode(example.text_a).ids
            b = tokenizer.encode(example.text_b).ids if example.text_b is not None else None
            row = build_row(tokenizer, a, b, length)
            padded = pad_rows([row], length, tokenizer.pad_id, 1)
            for ours, theirs in zip(
                padded, ("input_ids", "input_mask", "segment_ids"), strict=True
            ):
                assert ours[0].tolist() == recorded[theirs], recorded["guid"]
    assert {split: 4 * len(rows) for split, rows in examples.items()} == seen


def test_labels_are_in_the_recorded_order(shared):
    recorded = json.loads(
        (shared / "fixtures/classification_features/labels.json").read_text(encoding="utf-8")
    )["tasks"]
    for name, entry in recorded.items():
        assert list(TASKS[RECORDED[name]].labels) == entry["labels"], name


def test_every_official_file_is_read(shared):
    """The zips as CLUE publishes them: all splits there are, with the counts their README gives."""
    counts = {
        "afqmc": (34334, 2158, 3861), "tnews": (53360, 5000, 10000), "iflytek": (5622, 1300, 2600),
        "cmnli": (None, None, 13880), "ocnli": (None, None, 3000), "csl": (20000, 1500, 3000),
        "cluewsc2020": (1244, 152, 2574),
    }  # fmt: skip
    for name, expected in counts.items():
        task = TASKS[name]
        with zipfile.ZipFile(shared / "data/clue" / task.archive) as archive:
            for file, count in zip((task.train, task.dev, task.test["1.1"]), expected, strict=True):
                labelled = file != task.test["1.1"]
                found = read_examples(task, (archive.read(file), file), labelled)
                assert count is None or len(found) == count, (name, file)
                if not labelled:
                    assert len(found) == task.test_rows["1.1"]


def test_other_files_are_read(shared):
    for name, file, count in (("chnsenticorp", "dev.tsv", 1200), ("lcqmc", "dev.tsv", 8802)):
        with zipfile.ZipFile(shared / "data/other" / f"{name}.zip") as archive:
            examples = read_examples(TASKS[name], (archive.read(file), file), True)
        assert len(examples) == count
        assert {example.label for example in examples} == {"0", "1"}
    folder = shared / "data/formats/diagnostics/diagnostics_test.json"
    (example,) = read_examples(TASKS["diagnostics"], (folder.read_bytes(), "x"), False)
    assert (example.id, example.text_b) == (1, "李四将要比赛。")


@pytest.mark.parametrize(
    ("text", "noun", "pronoun", "expected"),
    [
        ("甲说他来", ("甲", 0), ("他", 2), "_甲_说[他]来"),
        ("他说甲来", ("甲", 2), ("他", 0), "[他]说_甲_来"),
        ("甲甲他", ("甲甲", 0), ("他", 2), "_甲甲_[他]"),
        ("他们与大人", ("大人", 3), ("他们", 0), "[他们]与_大人_"),
    ],
)
def test_marks_by_hand(text, noun, pronoun, expected):
    assert mark_spans(text, *noun, *pronoun) == expected


LINE = b'{"sentence1": "a", "sentence2": "b", "label": "0"}\n'


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ("afqmc", b"", "x.json: holds no examples"),
        ("afqmc", b"\n", "x.json, line 1: is blank"),
        ("afqmc", LINE + b"\n" + LINE, "x.json, line 2: is blank"),
        ("afqmc", LINE * 2 + b"{oops", "x.json, line 3: not valid JSON"),
        ("afqmc", LINE + b"[1]", "x.json, line 2: expected a JSON object, got list"),
        ("afqmc", LINE + b"\xff\n", "x.json, line 2: not UTF-8"),
        ("afqmc", LINE.replace(b'"0"', b'"2"'), "line 1: label '2' is not one of afqmc's: 0, 1"),
        ("afqmc", LINE.replace(b"sentence2", b"s"), "line 1: no field 'sentence2'; afqmc needs it"),
        ("afqmc", LINE.replace(b"label", b"l"), "line 1: no field 'label'"),
        ("afqmc", LINE.replace(b'"b"', b"7"), "line 1: a text is not a string"),
        ("tnews", b'{"sentence": "a", "label": "105"}', "label '105' is not one of tnews's: 100"),
        ("csl", b'{"keyword": "ab", "abst": "", "label": "1"}', "keyword is a str, expected a lis"),
        ("cluewsc2020", b'{"text": "a", "target": {"span1_text": "b", "span1_index": 0, '
         b'"span2_text": "a", "span2_index": 0}, "label": "true"}', "'b' does not stand at pos"),
        ("cluewsc2020", b'{"text": "a", "target": 3, "label": "true"}', "line 1: "),
        ("lcqmc", b"a\tb\t1\na\tb\n", "x.json, line 2: 2 columns, expected 3"),
        ("copa", b'{"premise": "a", "choice0": "b", "choice1": "c", "question": "why"}', "'why'"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_with_their_line(task, data, message):
    with pytest.raises(UserError) as error:
        read_examples(TASKS[task], (data, "x.json"), True)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_original_could_not_read():
    """Numbers and booleans as labels, a byte-order mark, U+2028 within a line."""
    data = b"\xef\xbb\xbf" + LINE.replace(b'"0"', b"1") + LINE.replace(b'"a"', '"\u2028"'.encode())
    first, second = read_examples(TASKS["afqmc"], (data, "x"), True)
    assert first.label == "1" and second.text_a == "\u2028"
    data = b'{"text": "ab", "target": {"span1_text": "a", "span1_index": 0, "span2_text": "b", "span2_index": 1}, "label": true}'  # noqa: E501
    assert read_examples(TASKS["cluewsc2020"], (data, "x"), True)[0].label == "true"


def test_lcqmc_with_and_without_header_and_labels():
    rows = [("甲", "乙"), ("丙", "丁")]
    for columns in (2, 3):
        bare = "".join("\t".join((*row, "1")[:columns]) + "\r\n" for row in rows)
        for header in ("", "text_a\ttext_b\tlabel", "\ufeffsentence1\tsentence2\tlabel"):
            cut = "\t".join(header.split("\t")[:columns])
            data = (f"{cut}\r\n{bare}" if header else bare).encode()
            found = read_examples(TASKS["lcqmc"], (data, "x"), False)
            assert [(e.text_a, e.text_b) for e in found] == rows
            assert [e.id for e in found] == [0, 1], (columns, header)
    with pytest.raises(UserError, match="line 1: no field 'label'"):
        read_examples(TASKS["lcqmc"], ("甲\t乙\n".encode(), "x"), True)


def test_kinds_of_labels():
    task = dataclasses.replace(TASKS["afqmc"], kind="multi", labels=("x", "y"))
    data = b'{"sentence1": "a", "sentence2": "b", "label": "x, y"}\n'
    data += b'{"sentence1": "a", "sentence2": "b", "label": []}'
    assert [e.label for e in read_examples(task, (data, "x"), True)] == [("x", "y"), ()]
    task = dataclasses.replace(task, kind="score")
    assert read_examples(task, (LINE.replace(b'"0"', b"0.5"), "x"), True)[0].label == 0.5
    with pytest.raises(UserError, match="line 1"):
        read_examples(task, (LINE.replace(b'"0"', b'"nan"'), "x"), True)
    assert np.isfinite(read_examples(task, (LINE, "x"), True)[0].label)

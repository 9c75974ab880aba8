"""Cleaning a corpus: each rule, repeats, and the same bytes for any number of workers."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from clue_jax.errors import UserError
from clue_jax.files import KEY
from pretraining import build_shards, clean_text
from pretraining.cleaning import Limits, clean_line, fault_of, first_of_each, near_repeats, sketch
from pretraining.corpus import cut_pieces


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("清晨五点，渔港的灯亮了。", None),
        ("他在 2016 年买了一台 iPhone，用了三年多。", None),
        ("短句。", "short"),
        ("This sentence is English, with 中文 in it.", "foreign"),
        ("这一行有坏掉的字符\ufffd\ufffd在里面。", "garbled"),
        ("啊啊啊啊啊啊啊啊啊啊啊啊太好了。", "garbled"),
        ("锟斤拷是编码出错的痕迹。", "garbled"),
        ("<p>这里是网页的残留部分</p>", "markup"),
        ("if(x){ 这是程序，不是文章 }", "markup"),
        ("版权所有，未经许可不得转载。", "boilerplate"),
        ("点击这里查看更多精彩内容", "boilerplate"),
        ("他点击了鼠标，然后继续写信。", None),
    ],
)
def test_each_rule(line, fault):
    assert fault_of(clean_line(line), Limits()) == fault


def test_a_line_is_made_plain():
    assert clean_line("\ufeff  今天\u3000天气\u200b很 好 。\x07\t") == "今天天气很好 。"
    assert clean_line("用 Python  写 程序") == "用 Python 写程序"


def article(seed: int, sentences: int = 12) -> list[str]:
    """Lines of random characters, each one a sentence."""
    chance = random.Random(seed)
    letters = [chr(c) for c in range(0x4E00, 0x4E00 + 3000)]
    return ["".join(chance.choices(letters, k=30)) + "。" for _ in range(sentences)]


def write(path: Path, documents: list[list[str]]) -> Path:
    path.write_text("\n\n".join("\n".join(lines) for lines in documents) + "\n", "utf-8")
    return path


def read(folder: Path) -> list[list[str]]:
    text = "".join(path.read_text("utf-8") for path in sorted(folder.glob("clean-*.txt")))
    return [document.split("\n") for document in text.strip("\n").split("\n\n")]


def test_repeats_are_dropped(tmp_path):
    first, second = article(1), article(2)
    changed = [*first[:11], article(3)[0]]  # eleven twelfths of the first
    half = [*article(4)[:6], *second[6:]]
    path = write(tmp_path / "raw.txt", [first, second, first, changed, half])

    def run(dedup: str) -> tuple[list[list[str]], dict]:
        output = tmp_path / dedup
        summary = clean_text.main(
            ["--input", str(path), "--output", str(output), "--dedup", dedup, "--workers", "1"]
        )
        return read(output), summary["dropped"]

    kept, dropped = run("none")
    assert kept == [first, second, first, changed, half] and dropped == {}
    kept, dropped = run("exact")
    assert kept == [first, second, changed[11:], half[:6]]
    assert dropped == {"repeat": 12 + 11 + 6}
    kept, dropped = run("near")
    assert kept == [first, second, half[:6]]
    assert dropped == {"near repeat": 1, "repeat": 12 + 11 + 6}


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_lines_of_nothing_are_no_lines(tmp_path, dedup):
    """With no least length either; what is left of them would be a blank line."""
    a, b, c = article(1)[:4], article(2)[:4], article(3)[:4]
    path = write(tmp_path / "raw.txt", [[*a, "\u200b", *b], [*a, *c], [*b, *c]])
    output = tmp_path / "out"
    summary = clean_text.main(
        ["--input", str(path), "--output", str(output), "--dedup", dedup, "--workers", "1"]
        + ["--line-characters", "0"]
    )
    assert read(output) == [[*a, *b], c]
    assert summary["dropped"]["short"] == 1


@pytest.mark.parametrize("dedup", ["none", "exact"])
def test_a_clearing_up_that_was_cut_goes_on(tmp_path, monkeypatch, dedup):
    """After any of its steps; nothing is cleaned anew."""
    monkeypatch.setattr(clean_text, "cut_pieces", functools.partial(cut_pieces, size=4000))
    path = write(tmp_path / "raw.txt", [article(seed % 40) for seed in range(60)])
    given = ["--input", str(path), "--dedup", dedup, "--workers", "1", "--output"]
    whole = clean_text.main([*given, str(tmp_path / "whole")])
    for steps in (0, 1, 3):
        output, left = tmp_path / str(steps), [steps]

        def cut(self, missing_ok=False, left=left):
            if self.suffix in (".kept", ".npz"):
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
            Path.unlink(self, missing_ok)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(type(epath.Path(tmp_path)), "unlink", cut)
            clean_text.main([*given, str(output)])
        with monkeypatch.context() as patch:
            patch.setattr(clean_text, "_clean_piece", None)
            again = clean_text.main([*given, str(output)])
        same = ("documents", "lines", "characters", "dropped")
        assert all(again[name] == whole[name] for name in same)
        names = [
            sorted(p.name for p in folder.iterdir()) for folder in (tmp_path / "whole", output)
        ]
        assert names[0] == names[1] and read(output) == read(tmp_path / "whole")


def test_sketches_tell_what_is_shared():
    """Against the share of pieces computed outright."""

    def pieces(lines: list[str]) -> set[str]:
        text = "".join(lines)
        return {text[i : i + 8] for i in range(len(text) - 7)}

    a = article(5, 40)
    for common in (10, 30, 38):
        b = [*a[:common], *article(6, 40 - common)]
        share = len(pieces(a) & pieces(b)) / len(pieces(a) | pieces(b))
        found = (sketch(a) == sketch(b)).mean()
        assert found == pytest.approx(share, abs=4 * (share * (1 - share) / 64) ** 0.5)
    sketches = np.stack([sketch(lines) for lines in (a, article(7), a, [*a[:39], "完全不同。"])])
    assert near_repeats(sketches, 0.8).tolist() == [False, False, True, True]
    assert first_of_each(np.array([3, 5, 3, 3, 5, 9])).tolist() == [1, 1, 0, 0, 0, 1]


def test_the_bytes_are_those_of_one_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(clean_text, "cut_pieces", functools.partial(cut_pieces, size=4000))
    documents = [article(seed % 40) for seed in range(60)]
    path = write(tmp_path / "raw.txt", documents)
    for workers in ("1", "3"):
        clean_text.main(
            ["--input", str(path), "--output", str(tmp_path / workers), "--dedup", "near"]
            + ["--workers", workers]
        )
    one, three = (sorted((tmp_path / w).iterdir()) for w in ("1", "3"))
    assert [p.name for p in one] == [p.name for p in three] and len(one) > 3
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, three, strict=True))
    assert json.loads((tmp_path / "1" / "report.json").read_text())["documents"] == 40


def test_from_raw_text_to_shards(tmp_path, vocab_file):
    """Traditional characters become simplified, paragraphs sentences; shards take the result."""
    paragraph = "清晨五點，漁港的燈亮了。船員們把網收好，準備出海！你問他們累不累？"
    raw = write(tmp_path / "raw.txt", [[paragraph], ["版權所有，不得轉載。"]])
    output = str(tmp_path / "out")
    clean_text.main(["--input", str(raw), "--output", output, "--to-simplified", "--workers", "1"])
    assert read(tmp_path / "out") == [
        ["清晨五点，渔港的灯亮了。", "船员们把网收好，准备出海！", "你问他们累不累？"]
    ]
    text = [str(path) for path in (tmp_path / "out").glob("clean-*.txt")]
    summary = build_shards.main(
        ["--input", *text, "--vocab", str(vocab_file), "--output", str(tmp_path / "shards")]
        + ["--seq-len", "32", "--workers", "1"]
    )
    assert summary["documents"] == 1 and summary["sentences"] == 3


def test_nothing_left_leaves_nothing(tmp_path):
    raw = write(tmp_path / "raw.txt", [["only English here, nothing else"], ["短"]])
    with pytest.raises(UserError, match=r"nothing is left \(lines: foreign 1, short 1\)"):
        clean_text.main(["--input", str(raw), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    (tmp_path / "mine" / KEY).write_text("as if work had been cut in an object store")
    with pytest.raises(UserError, match="holds something else than clean text"):
        clean_text.main(["--input", str(raw), "--output", str(tmp_path / "mine")])
    assert (tmp_path / "mine" / "letter.txt").exists()

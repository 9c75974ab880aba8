"""Text that says everything twice: what a retelling keeps, what is refused."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from conftest import SAMPLE

from clue_jax.errors import UserError
from pretraining import build_retellings, build_shards


def test_every_passage_and_its_retelling(tmp_path, vocab_file):
    """Half of each document is text of the input; the other has no character beside its own, and
    most of them. The shards take it."""
    output = tmp_path / "told.txt"
    given = ["--input", str(SAMPLE), "--output", str(output), "--count", "40"]
    assert build_retellings.main(given)["passages"] == 40
    text = "".join(SAMPLE.read_text(encoding="utf-8").split())
    documents = output.read_text(encoding="utf-8").strip().split("\n\n")
    assert len(documents) == 40
    is_first = []
    for document in documents:
        first, second = ("".join(line.split()) for line in document.split("\n"))
        is_first.append(first in text)
        passage, told = (first, second) if is_first[-1] else (second, first)
        assert passage in text and 30 <= len(passage) <= 60
        assert not Counter(told.replace("，", "").rstrip("。")) - Counter(passage)
        assert 0.4 * len(passage) < len(told) <= len(passage) + 1
    assert 8 < sum(is_first) < 32
    shards = ["--input", str(output), "--vocab", str(vocab_file), "--output", str(tmp_path / "s")]
    assert build_shards.main(shards)["documents"] == 40


def test_clauses_change_places():
    told = [
        build_retellings.retelling("春天来了，花开了。夏天很热！", random.Random(i))
        for i in range(200)
    ]
    whole = {text for text in told if len(text) == 14}
    assert len(whole) == 6  # all orders of the three clauses
    assert "夏天很热，春天来了，花开了。" in whole
    assert min(map(len, told)) < 10


def test_what_cannot_be_made(tmp_path):
    given = ["--input", str(SAMPLE), "--output", str(tmp_path / "out.txt")]
    with pytest.raises(UserError, match="--passage-length at least 20"):
        build_retellings.main([*given, "--passage-length", "10"])
    with pytest.raises(UserError, match="no passage of 2000 to 4000"):
        build_retellings.main([*given, "--passage-length", "4000"])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="empty.txt: empty file"):
        build_retellings.main(["--input", str(tmp_path / "empty.txt"), *given[2:]])
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]
    build_retellings.main(given)
    with pytest.raises(UserError, match="is there already"):
        build_retellings.main(given)

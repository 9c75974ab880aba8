"""Questions with choices made of text: which choice is right, what the wrong ones are, refusals."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from conftest import SAMPLE

from clue_jax.errors import UserError
from finetune.data import read_split
from finetune.tasks import TASKS
from pretraining import build_choices

GIVEN = ["--input", str(SAMPLE), "--count", "30", "--held-out", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("choices") / "out"
    summary = build_choices.main([*GIVEN, "--output", str(output)])
    assert summary["train"] == 24 and summary["dev"] == 6
    return output


def test_the_task_reads_them(folder):
    """A passage is text of the input, and asked about once. The right choice is among the others,
    stands in the passage (phrases) or is made of its words (statements), and stands anywhere."""
    text = "".join(SAMPLE.read_text(encoding="utf-8").split())
    examples = read_split(TASKS["c3"], folder, "train") + read_split(TASKS["c3"], folder, "dev")
    assert len(examples) == 30 == len({example.passage for example in examples})
    strange = 0
    for example in examples:
        assert "".join(example.passage.split()) in text and 15 <= len(example.passage) <= 100
        assert len(set(example.choices)) == len(example.choices) == 4
        right = example.choices[example.label]
        assert not Counter(right) - Counter(example.passage)
        wrong = [choice for choice in example.choices if choice != right]
        assert not any(right in choice or choice in right for choice in wrong)
        strange += sum(choice not in example.passage for choice in wrong)
    assert strange >= 45  # of 90: at least the half taken from other passages
    assert min(Counter(example.label for example in examples).values()) >= 3


def test_phrases_answer_and_statements_agree(folder):
    """Of the first kind the answer stands in the passage, once; a statement keeps the order of the
    words of one clause."""
    for name in ("d-train", "d-dev", "m-train", "m-dev"):
        documents = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for (passage,), (entry,), _ in documents:
            right = entry["answer"]
            if name.startswith("d"):
                assert passage.count(right) == 1 and right not in entry["question"]
            else:
                clauses = map(iter, build_choices.CLAUSE.findall(passage))
                assert any(all(letter in clause for letter in right) for clause in clauses)


def test_the_same_seed_makes_the_same(folder, tmp_path):
    build_choices.main([*GIVEN, "--output", str(tmp_path / "a")])
    build_choices.main([*GIVEN, "--output", str(tmp_path / "b"), "--seed", "1"])
    for name in ("d-train.json", "d-dev.json", "m-train.json", "m-dev.json"):
        assert (tmp_path / "a" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "b" / name).read_bytes() != (folder / name).read_bytes()


def test_wrong_choices_are_near_and_far():
    """Both kinds, all different; nothing that holds the right one or lies in it."""
    passage = "春天来了，花开了。夏天很热，大家去海边游泳。"
    chance = random.Random(0)
    seen = Counter()
    for _ in range(100):
        wrong = build_choices._wrong(
            "花", ["夏天", "海边", "花开了"], ["冬天", "雪人", "春天"], passage, chance
        )
        assert len(set(wrong)) == len(wrong) == 3
        seen.update(wrong)
    assert set(seen) == {"夏天", "海边", "冬天", "雪人"}  # 花开了 holds it, 春天 is no far one
    assert build_choices._wrong("花", [], ["花朵"], passage, chance) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--held-out", "29"], "--held-out must be at least 2, and at least 2 less than --count"),
        (["--passage-length", "25"], "--shortest-passage must lie between 20 and"),
        (["--input", "/nowhere"], "/nowhere: cannot read"),
        (["--passage-length", "3000", "--shortest-passage", "3000"], "enough for 0 questions only"),
    ],
)
def test_what_cannot_be_made(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build_choices.main([*GIVEN, "--output", str(tmp_path / "out"), *options])
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_written_over(folder):
    with pytest.raises(UserError, match="is there already"):
        build_choices.main([*GIVEN, "--output", str(folder)])

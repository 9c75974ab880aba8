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
    for example in examples:
        assert "".join(example.passage.split()) in text and 15 <= len(example.passage) <= 100
        assert len(set(example.choices)) == len(example.choices) == 4
        right = example.choices[example.label]
        assert not Counter(right) - Counter(example.passage)
        wrong = [choice for choice in example.choices if choice != right]
        assert not any(right in choice or choice in right for choice in wrong)
    labels = Counter(example.label for example in examples)
    assert min(labels[i] for i in range(4)) >= 3


def test_phrases_answer_and_statements_agree(folder):
    """Of the first kind the answer stands in the passage, once, and some wrong choices stand there
    too, others do not; a statement keeps the order of the words of one clause, a wrong one of none.
    """
    near = far = 0
    for name in ("d-train", "d-dev", "m-train", "m-dev"):
        documents = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for (passage,), (entry,), _ in documents:
            right = entry["answer"]
            if name.startswith("d"):
                assert passage.count(right) == 1 and right not in entry["question"]
                near += sum(choice in passage for choice in entry["choice"]) - 1
                far += sum(choice not in passage for choice in entry["choice"])
            else:
                for choice in entry["choice"]:
                    clauses = map(iter, build_choices.CLAUSE.findall(passage))
                    agrees = any(all(letter in clause for letter in choice) for clause in clauses)
                    assert agrees == (choice == right)
    assert near >= 10 and far >= 10  # of 45


def test_a_statement_keeps_what_denies():
    chance = random.Random(0)
    told = {build_choices._shortened(["教室", "没有", "玻璃"], chance) for _ in range(200)}
    assert told == {"教室没有玻璃", "教室没有", "没有玻璃", "没有"}


def test_scarce_text_gives_fewer_questions_and_none_with_fewer_choices(tmp_path):
    """Both kinds of question get their share of the passages."""
    given = ["--input", str(SAMPLE), "--count", "80", "--held-out", "6"]
    summary = build_choices.main([*given, "--output", str(tmp_path / "out")])
    kinds = {}
    for kind in "dm":
        content = (tmp_path / "out" / f"{kind}-train.json").read_text(encoding="utf-8")
        kinds[kind] = json.loads(content)
        assert all(len(entry["choice"]) == 4 for _, (entry,), _ in kinds[kind])
    assert min(map(len, kinds.values())) >= 10
    assert summary["train"] == sum(map(len, kinds.values())) < 74
    assert build_choices.statements(["春天来了之后花园里的花都开了。"], 5, chance=None) == []


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
        (
            ["--passage-length", "3000", "--shortest-passage", "3000"],
            "enough for 0 questions of d-train",
        ),
    ],
)
def test_what_cannot_be_made(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build_choices.main([*GIVEN, "--output", str(tmp_path / "out"), *options])
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_written_over(folder):
    with pytest.raises(UserError, match="is there already"):
        build_choices.main([*GIVEN, "--output", str(folder)])

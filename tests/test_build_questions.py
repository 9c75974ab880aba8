"""Questions made of text: where their answers stand, what they leave out, what is refused."""

from __future__ import annotations

import json
import random

import pytest
from conftest import SAMPLE

from clue_jax.errors import UserError
from finetune.data import read_split
from finetune.forms import FORMS
from finetune.tasks import TASKS
from pretraining import build_questions, passages

WORDS = (
    "什么时候",
    "哪一年",
    "什么",
    "哪里",
    "哪个地方",
    "哪个",
    "谁",
    "哪位",
    "多少",
    "怎样",
    "如何",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("questions") / "out"
    given = ["--input", str(SAMPLE), "--output", str(output), "--count", "60", "--held-out", "9"]
    summary = build_questions.main(given)
    assert summary["dev"] == 9 and 0 < summary["train"] <= 51
    return output


def test_the_task_reads_them(folder, tokenizer, caplog):
    """Every answer stands where it is said to, once, and not in its question; a passage is text of
    the input, and asked about once."""
    text = "".join(SAMPLE.read_text(encoding="utf-8").split())
    examples = read_split(TASKS["cmrc2018"], folder, "train")
    examples += read_split(TASKS["cmrc2018"], folder, "dev")
    rows = FORMS["spans"].rows(examples, TASKS["cmrc2018"], tokenizer, str, 64)
    assert "stood elsewhere" not in caplog.text and len(rows) >= len(examples)
    seen = set()
    for name in ("train", "dev"):
        content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for paragraph in content["data"][0]["paragraphs"]:
            (entry,) = paragraph["qas"]
            (answer,) = entry["answers"]
            context = paragraph["context"]
            assert context.find(answer["text"]) == answer["answer_start"]
            assert context.count(answer["text"]) == 1 and answer["text"] not in entry["question"]
            assert "".join(context.split()) in text and 22 <= len(context) <= 44
            assert any(word in entry["question"] for word in WORDS)
            seen.add(context)
    assert len(seen) == len(examples)


def test_the_same_seed_makes_the_same(folder, tmp_path):
    given = ["--input", str(SAMPLE), "--count", "60", "--held-out", "9"]
    build_questions.main([*given, "--output", str(tmp_path / "a")])
    build_questions.main([*given, "--output", str(tmp_path / "b"), "--seed", "1"])
    for name in ("train.json", "dev.json"):
        assert (tmp_path / "a" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "b" / name).read_bytes() != (folder / name).read_bytes()


def test_all_passages_are_equally_likely():
    counts = dict.fromkeys("abcde", 0)
    chance = random.Random(0)
    for _ in range(2000):
        for passage in passages.sample(iter("abcde"), 2, chance):
            counts[passage] += 1
    assert all(abs(count - 800) < 80 for count in counts.values())
    assert sorted(passages.sample(iter("abaab"), 5, chance)) == ["a", "b"]


def test_question_words_fit_their_answers():
    """Numbers, times, places and persons are asked for as such; ends of clauses are answers too.
    Whatever is drawn, an answer lies within a clause, and an end of one begins anywhere."""
    chance = random.Random(0)
    text = "这座桥长1200米，宽三十五米。王小明一九九八年来到了南京市工作和生活。"
    made = [build_questions.question(text, chance) for _ in range(800)]
    found = {}
    for asked, answer, place in filter(None, made):
        assert text[place : place + len(answer)] == answer and 2 <= len(answer) <= 30
        assert not set("，。") & set(answer)
        found.setdefault(answer, set()).add(next(word for word in WORDS if word in asked))
    assert found["1200"] == {"多少"} and found["一九九八年"] == {"什么时候", "哪一年"}
    assert found["南京市"] == {"哪里", "哪个地方"} and found["王小明"] == {"谁", "哪位"}
    assert found["来到了南京市工作和生活"] <= {"什么", "怎样", "如何"}
    assert build_questions.question("太短。", chance) is None
    text = "他给一年级学生上课三十年之后在十月五日离开，全长1,200米的大桥也在昨天通车了。"
    made = [build_questions.question(text, chance) for _ in range(800)]
    for asked, answer, _ in filter(None, made):
        assert "年" not in answer or not any(word in asked for word in ("什么时候", "哪一年"))
        assert answer not in ("200", "1")  # 1,200 is not cut
    asked = {answer: asked for asked, answer, _ in filter(None, made)}
    assert "什么时候" in asked["十月五日"]


def test_questions_name_what_the_passage_is_about():
    """Half of those on the clauses that do not say it themselves; never one of another clause."""
    chance = random.Random(0)
    text = "长江流经十一个省市。两岸住着四亿多人口。长江全长六千三百公里。"
    made = list(filter(None, (build_questions.question(text, chance) for _ in range(600))))
    elsewhere = [asked for asked, _, place in made if 10 <= place < 20]
    named = sum(asked.startswith("长江") for asked in elsewhere)
    assert 0.4 * len(elsewhere) < named < 0.6 * len(elsewhere) and len(elsewhere) > 60
    assert max(asked.count("长江") for asked, *_ in made) == 1
    made = [build_questions.question(text[:20], chance) for _ in range(200)]  # 长江 once
    assert not any(asked.startswith("长江") for asked, _, place in filter(None, made) if place > 9)


def test_limits_drawn_for_each_passage(tmp_path):
    """Short and long passages side by side: some too long for the lower limit, some too short for
    the upper one alone."""
    given = ["--input", str(SAMPLE), "--count", "60", "--held-out", "9", "--passage-length", "120"]
    build_questions.main([*given, "--shortest-passage", "20", "--output", str(tmp_path / "out")])
    content = json.loads((tmp_path / "out" / "train.json").read_text(encoding="utf-8"))
    lengths = [len(paragraph["context"]) for paragraph in content["data"][0]["paragraphs"]]
    assert 10 <= min(lengths) < 40 and 60 < max(lengths) <= 120


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--held-out", "60"], "--held-out must lie between 0 and --count"),
        (["--passage-length", "10"], "--passage-length be at least 20"),
        (["--shortest-passage", "45", "--held-out", "9"], "--shortest-passage must lie between"),
        (["--held-out", "59"], r"sample_zh.txt: enough for \d+ questions only"),
        (["--input", "/nowhere", "--held-out", "9"], "/nowhere: cannot read"),
    ],
)
def test_what_cannot_be_made(tmp_path, options, message):
    given = ["--input", str(SAMPLE), "--output", str(tmp_path / "out"), "--count", "60"]
    if message.startswith("sample"):
        given += ["--passage-length", "300"]
    with pytest.raises(UserError, match=message):
        build_questions.main([*given, *options])
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_written_over(folder):
    with pytest.raises(UserError, match="is there already"):
        build_questions.main(["--input", str(SAMPLE), "--output", str(folder), "--count", "600"])

"""Reading comprehension, choices and entities as tasks: trained, evaluated, predicted, refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from clue_jax.convert import source
from clue_jax.errors import UserError
from finetune import evaluate, predict, run, submission
from finetune.data import read_examples, read_split
from finetune.forms import FORMS, choices, spans
from finetune.rows import Rows
from finetune.tasks import TASKS

CHARACTERS = "来村的水五点渔港一盏接地亮了起"
IDIOMS = ["画蛇添足", "一日千里", "日新月异", "百花齐放"]


def some(random, count: int) -> str:
    return "".join(random.choice(list(CHARACTERS), count))


def c3_file(random, count: int, labelled: bool) -> str:
    """The right choice is the one with 清."""
    documents = []
    for i in range(count):
        choices = ["清" * 9, "灯" * 9, "晨" * 9][: int(random.integers(2, 4))]
        random.shuffle(choices)
        entry = {"question": "什么?", "choice": choices}
        entry |= {"answer": "清" * 9} if labelled else {"id": 700 + i}
        documents.append([[some(random, 5), "来"], [entry], f"x-{i}"])
    return json.dumps(documents, ensure_ascii=False)


def chid_files(random, count: int, start: int) -> tuple[str, dict]:
    """Groups of two passages whose idioms are told by the character before the blank."""
    lines, answers = [], {}
    for i in range(count):
        order = random.permutation(4)
        candidates = [IDIOMS[k] for k in order]
        content = []
        for j in range(2):
            tag = f"#idiom{start + 2 * i + j:06d}#"
            content.append(f"{IDIOMS[order[j]][0] * 6}{tag}{IDIOMS[order[j]][1] * 6}。")
            answers[tag] = j
        lines.append(json.dumps({"candidates": candidates, "content": content}, ensure_ascii=False))
    return "\n".join(lines) + "\n", answers


def cmrc_file(random, count: int, labelled: bool) -> str:
    """The answer is the 清 in the passage; half of them are said to stand one place too late."""
    paragraphs = []
    for i in range(count):
        left, right = some(random, int(random.integers(3, 30))), some(random, 8)
        answer = {"text": "清", "answer_start": len(left) + int(random.integers(2))}
        entry = {"question": "何处?", "id": f"Q{i}"}
        if labelled:
            entry["answers"] = [answer]
        paragraphs.append({"context": f"{left}清{right}", "qas": [entry]})
    return json.dumps({"data": [{"paragraphs": paragraphs}]}, ensure_ascii=False)


def cluener_file(random, count: int, labelled: bool) -> str:
    """Names are runs of 清, games runs of 灯."""
    lines = []
    for i in range(count):
        left, middle = some(random, int(random.integers(1, 9))), some(random, 2)
        text = f"{left}清清{middle}灯灯灯{some(random, 3)}"
        start = len(left)
        label = {"name": {"清清": [[start, start + 1]]},
                 "game": {"灯灯灯": [[start + 4, start + 6]]}}  # fmt: skip
        record = {"text": text} | ({"label": label} if labelled else {"id": i})
        lines.append(json.dumps(record, ensure_ascii=False))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("reading")
    random = np.random.default_rng(0)
    for name in ("c3", "chid", "cmrc2018", "cluener"):
        (root / name).mkdir()
    sizes = {"train": 96, "dev": 24, "test": 12}
    for split, count in sizes.items():
        labelled = split != "test"
        text = cluener_file(random, count, labelled)
        (root / "cluener" / f"{split}.json").write_text(text, "utf-8")
        text = cmrc_file(random, count, labelled)
        (root / "cmrc2018" / f"{split}.json").write_text(text, "utf-8")
        name = {"test": "test1.1"}.get(split, split)
        text, answers = chid_files(random, count // 2, 1000 * len(name))
        (root / "chid" / f"{name}.json").write_text(text, "utf-8")
        if labelled:
            (root / "chid" / f"{split}_answer.json").write_text(json.dumps(answers))
        for half in ("d", "m") if labelled else ("",):
            file = f"{half}-{split}.json" if half else "test1.1.json"
            text = c3_file(random, count // 2 if half else count, labelled)
            (root / "c3" / file).write_text(text, "utf-8")
    return root


TRAINED = {
    "cmrc2018": ("average", 0.8, "cmrc2018_predict.json", 12),
    "c3": ("accuracy", 0.7, "c311_predict.json", 12),
    "chid": ("accuracy", 0.7, "chid11_predict.json", 12),
    "cluener": ("f1", 0.9, "cluener_predict.json", 12),
}


@pytest.fixture(scope="module")
def finished(data, micro_model, tmp_path_factory):
    """A run of each task, made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("reading_runs"), {}

    def get(task: str) -> Path:
        if task not in made:
            made[task] = root / task
            run.main(
                ["--task", task, "--model", str(micro_model), "--data-dir", str(data / task)]
                + ["--output", str(root / task), "--epochs", "12", "--batch-size", "16"]
                + ["--learning-rate", "3e-3", "--seq-len", "64", "--eval-every", "24"]
                + ["--no-buckets", "--mesh", "data=8", "--dropout", "0"]
            )
        return made[task]

    return get


@pytest.mark.parametrize("task", TRAINED)
def test_a_task_is_learned_and_predicted(finished, data, task, tmp_path):
    metric, floor, name, count = TRAINED[task]
    output = finished(task)
    result = json.loads((output / "result.json").read_text())
    assert result["metric"] == metric and result["best_value"] > floor
    checked = submission.main(["check", str(output / name), "--data-root", str(data)])
    assert checked["faults"] == []
    # The same numbers from the saved model, on another mesh with another batch.
    files = {"c3": "d-dev.json"}
    dev = data / task / files.get(task, "dev.json")
    found = evaluate.main(
        ["--model", str(output / "best"), "--input", str(dev), "--mesh", "data=1"]
        + ["--batch-size", "5"]
    )
    if task != "c3":  # whose dev set is two files
        assert found[metric] == pytest.approx(result["best_value"], abs=1e-9)
    assert found["task"] == task
    out = tmp_path / "p.json"
    tests = data / task / ("test1.1.json" if task in ("c3", "chid") else "test.json")
    given = ["--model", str(output / "best"), "--input", str(tests), "--output", str(out)]
    assert predict.main([*given, "--batch-size", "3", "--mesh", "data=1"])["rows"] == count
    assert out.read_bytes() == (output / name).read_bytes()


@pytest.mark.parametrize(
    ("task", "cls"),
    [
        ("cmrc2018", "AutoModelForQuestionAnswering"),
        ("c3", "AutoModelForMultipleChoice"),
        ("cluener", "AutoModelForTokenClassification"),
    ],
)
def test_transformers_computes_the_same(finished, data, task, cls):
    """Its logits on the dev set, from the directory as it is, padding or not."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    best = finished(task) / "best"
    theirs = getattr(transformers, cls).from_pretrained(best).eval()
    loaded = source.load(best)
    examples = read_split(TASKS[task], data / task, "dev")[:6]
    form = FORMS[TASKS[task].kind]
    rows = form.rows(examples, TASKS[task], loaded.tokenizer, str, 64)
    ours, _ = evaluate.evaluate_directory(
        loaded, TASKS[task], rows, 8, 64, evaluate.make_mesh("data=1"), "float32"
    )
    for i in range(len(rows)):
        some = slice(i * rows.width, (i + 1) * rows.width)
        longest = max(map(len, rows.ids[some]))
        ids = np.zeros((rows.width, longest), np.int64)
        mask, segments = ids.copy(), ids.copy()
        for j, (row, own) in enumerate(zip(rows.ids[some], rows.segments[some], strict=True)):
            ids[j, : len(row)], mask[j, : len(row)], segments[j, : len(row)] = row, 1, own
        tensors = [torch.tensor(x if task != "c3" else x[None]) for x in (ids, mask, segments)]
        with torch.no_grad():
            out = theirs(tensors[0], attention_mask=tensors[1], token_type_ids=tensors[2])
        if task == "cmrc2018":
            logits = np.stack([out.start_logits[0].numpy(), out.end_logits[0].numpy()])
        else:
            logits = out.logits[0].numpy()
        np.testing.assert_allclose(ours[i], logits, rtol=1e-4, atol=1e-4)
    if task == "cluener":
        assert tuple(theirs.config.id2label.values()) == TASKS[task].labels


def test_a_conll_file_of_one_s_own(micro_model, tmp_path):
    random = np.random.default_rng(2)
    for split, count in (("train", 80), ("dev", 20), ("test", 5)):
        text = ""
        for _ in range(count):
            for _ in range(int(random.integers(1, 4))):
                text += "".join(f"{c} O\n" for c in some(random, 2)) + "清 B-PER\n灯 E-PER\n"
            text += "\n"
        (tmp_path / f"{split}.txt").write_text(text, "utf-8")
    run.main(
        ["--task", "generic", "--kind", "tags", "--model", str(micro_model)]
        + ["--data-dir", str(tmp_path), "--output", str(tmp_path / "out"), "--epochs", "8"]
        + ["--batch-size", "16", "--learning-rate", "3e-3", "--seq-len", "32", "--dropout", "0"]
        + ["--eval-every", "0", "--mesh", "data=1"]
    )
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["best_value"] > 0.9
    command = ["--model", str(tmp_path / "out/best"), "--input", str(tmp_path / "dev.txt")]
    found = evaluate.main(command)
    assert found["f1"] == result["best_value"] and set(found["by_type"]) == {"PER"}


# ---- What is not as it should be -----------------------------------------------------------------


def cmrc(context="清晨五点", question="何时?", answers=({"text": "五点", "answer_start": 2},)):
    entry = {"question": question, "id": "Q7", "answers": list(answers)}
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [entry]}]}]})


def c3(choices=("甲", "乙"), answer="甲"):
    entry = {"question": "?", "choice": list(choices), "answer": answer}
    return json.dumps([[["清晨"], [entry], "m-5"]])


def chid(content=("他#idiom000001#了。",), candidates=tuple(IDIOMS)):
    return json.dumps({"candidates": list(candidates), "content": list(content)})


def ner(label):
    return json.dumps({"text": "清晨五点", "label": label})


REFUSED = [
    ("cmrc2018", cmrc(context=" "), "x.json, question Q7: its passage is empty"),
    ("cmrc2018", cmrc(answers=()), "x.json, question Q7: has no answer"),
    ("cmrc2018", cmrc(answers=({"answer_start": 1},)), 'question Q7: "answers" need a "text"'),
    ("cmrc2018", '{"data": [{}]}', "x.json: not in SQuAD's form"),
    ("cmrc2018", '{"data": []}', "x.json: holds no questions"),
    ("cmrc2018", '{\n"data": [', "x.json, line 2: not valid JSON"),
    ("c3", c3(("甲",)), "x.json, passage m-5: 1 choices; c3 takes 2 to 4"),
    ("c3", c3("甲乙丙丁戊"), "x.json, passage m-5: 5 choices; c3 takes 2 to 4"),
    ("c3", c3(answer="丙"), "x.json, passage m-5: the answer '丙' is none of the choices"),
    ("c3", "[[1, 2]]", "x.json, passage 1: not in C3's form"),
    ("c3", "{}", "x.json: expected a list of passages"),
    ("chid", chid(("他#idiom0001了。",)), "x.json, line 1: a blank is not closed"),
    ("chid", chid(candidates=IDIOMS * 3), "x.json, line 1: 12 choices; chid takes 2 to 10"),
    ("chid", chid(("他#idiom000002#",)), "x.json, line 1: there is no answer to #idiom000002#"),
    ("chid", chid(("#idiom000001#" * 2,)), "x.json, line 1: the blank #idiom000001# stands there"),
    ("chid", '{"content": []}', 'x.json, line 1: needs "candidates" and "content"'),
    ("cluener", ner({"name": {"五点": [[2, 9]]}}), "line 1: name at 2..9 is outside"),
    ("cluener", ner({"pet": {"五点": [[2, 3]]}}), "line 1: tag 'B-pet' is not one of cluener's"),
    ("cluener", ner({"name": {"五点": [[2, 4]]}}), "line 1: name at 2..4 is outside"),
    ("cluener", ner({"name": {"晨": [[1, 2]]}}), "line 1: '晨' is not at [1, 2], where '晨五'"),
    ("cluener", ner("name"), 'x.json, line 1: no "label" with entities'),
    ("msra_ner", "清 B-PER\n晨\n", "x.json, line 2: 1 columns, unlike the line before"),
    ("msra_ner", "清 B-CAT\n", "x.json, line 1: tag 'B-CAT' is not one of msra_ner's"),
    ("msra_ner", "text_a\tlabel\n清 晨\tO\n", "x.json, line 2: 2 units, but 1 tags"),
    ("msra_ner", "", "x.json: holds no sentences"),
]  # fmt: skip


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_squad_s_forms_are_told_apart(indent, bom):
    """One document, however it is laid out, or articles in lines, be it one."""
    document = json.loads(cmrc())
    questions = json.dumps(document, indent=indent)
    lines = json.dumps(document["data"][0])
    for text, count in ((questions, 1), (lines, 1), (f"{lines}\n{lines}\n", 2)):
        assert len(read_examples(TASKS["cmrc2018"], ((bom + text).encode(), "x"), True)) == count


def test_msra_as_others_name_it(tmp_path, caplog):
    """Three TSV files; between U+0002 a unit may be a blank."""
    for split, name in (("train", "清"), ("dev", "晨"), ("test", "灯")):
        row = "\x02".join((name, " ", "亮")), "\x02".join(("B-PER", "O", "O"))
        (tmp_path / f"{split}.tsv").write_text("text_a\tlabel\n" + "\t".join(row) + "\n", "utf-8")
    for split, name in (("train", "清"), ("dev", "晨"), ("test", "灯")):
        (found,) = read_split(TASKS["msra_ner"], tmp_path, split)
        assert found.units == (name, " ", "亮")
    assert not caplog.text
    (tmp_path / "dev.tsv").unlink()
    (found,) = read_split(TASKS["msra_ner"], tmp_path, "dev")
    assert found.units[0] == "灯" and "test.tsv: chooses the best checkpoint" in caplog.text


@pytest.mark.parametrize(("task", "text", "message"), REFUSED)
def test_files_that_are_refused(task, text, message):
    answers = (b'{"#idiom000001#": 0}', "answers") if task == "chid" else None
    with pytest.raises(UserError, match=re.escape(message)):
        read_examples(TASKS[task], (text.encode(), "x.json"), True, answers)


def test_two_to_ten_choices_are_taken(tokenizer):
    """Of C3 the lacking ones are filled up, of CHID they are out of the question."""
    for count in (2, 3, 4):
        (question,) = read_examples(TASKS["c3"], (c3("甲乙丙丁"[:count]).encode(), "x"), True)
        rows = FORMS["choice"].rows([question], TASKS["c3"], tokenizer, str, 32)
        assert rows.width == 4 and all(rows.ids)
    blanks = []
    for count in (2, 7):
        text = chid(candidates=(IDIOMS * 2)[:count]).encode()
        blanks += read_examples(TASKS["chid"], (text, "x"), True, (b'{"#idiom000001#": 0}', "a"))
    rows = FORMS["choice"].rows(blanks, TASKS["chid"], tokenizer, str, 32)
    assert rows.width == 7 and [bool(row) for row in rows.ids[:7]] == [True] * 2 + [False] * 5


def test_choices_are_made_as_recorded(shared):
    """C3's answers and accuracy from recorded logits, ties among them."""
    folder = shared / "fixtures/mrc_c3"
    logits = np.load(folder / "accuracy_logits.npz")
    recorded = json.loads((folder / "accuracy.json").read_text())
    labels = np.load(folder / "dev_512.npz")["labels"]
    questions = [choices.Question("", "", tuple("甲乙丙丁"), int(i), 0) for i in labels]
    rows = Rows([[]] * 4 * len(labels), [[]] * 4 * len(labels), labels, 4, questions)
    for name, entry in recorded.items():
        found = FORMS["choice"].answers(TASKS["c3"], rows, logits[name])
        assert [answer for _, answer in found] == entry["submission_list"]
        accuracy = FORMS["choice"].scores(TASKS["c3"], rows, logits[name])["accuracy"]
        assert accuracy == entry["eval_accuracy"]


def test_few_clue_s_form_is_read():
    record = {"id": 5, "candidates": IDIOMS, "content": "他#idiom#了", "answer": 2}
    (blank,) = read_examples(TASKS["chid"], (json.dumps(record).encode(), "x"), True)
    assert (blank.id, blank.label, blank.group, blank.tag) == (5, 2, None, "#idiom#")


def test_answers_that_are_not_where_they_should_be(tokenizer, caplog):
    """One elsewhere, one nowhere: said, and the second question keeps its windows."""
    moved = cmrc(answers=({"text": "五点", "answer_start": 0},))
    lost = cmrc(answers=({"text": "六点", "answer_start": 2},))
    examples = [
        question
        for text in (moved, lost)
        for question in read_examples(TASKS["cmrc2018"], (text.encode(), "x.json"), True)
    ]
    rows = FORMS["spans"].rows(examples, TASKS["cmrc2018"], tokenizer, str, 32)
    assert "x.json: 1 answers stood elsewhere in their passage and were found, 1 are" in caplog.text
    assert rows.labels[0].tolist() != [0, 0] and rows.labels[1].tolist() == [0, 0]


def test_an_empty_passage_has_an_empty_answer(tokenizer):
    text = cmrc(context="", answers=()).encode()
    (question,) = read_examples(TASKS["cmrc2018"], (text, "x"), False)
    rows = FORMS["spans"].rows([question], TASKS["cmrc2018"], tokenizer, str, 32)
    assert len(rows) == 0
    assert FORMS["spans"].answers(TASKS["cmrc2018"], rows, []) == [("Q7", "")]


def test_traditional_answers_keep_their_characters(tokenizer):
    """The model sees simplified characters; the answer is cut out of the traditional text."""
    pytest.importorskip("opencc")
    context = "他在東京的車站學習中國歷史。"
    entry = {"question": "何處?", "id": "a", "answers": [{"text": "東京", "answer_start": 2}]}
    text = json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [entry]}]}]}).encode()
    examples = read_examples(TASKS["drcd"], (text, "x"), True)
    normalize = evaluate.normalizer_of(TASKS["drcd"], type("M", (), {"info": {}})())
    rows = FORMS["spans"].rows(examples, TASKS["drcd"], tokenizer, normalize, 64)
    asked = rows.sources[0]
    assert asked.passage.shown == "他在东京的车站学习中国历史。"
    start, end = rows.labels[0]
    logits = np.full((1, 2, len(rows.ids[0])), -9.0)
    logits[0, 0, start] = logits[0, 1, end] = 9.0
    assert spans.SPANS.answers(TASKS["drcd"], rows, logits) == [("a", "東京")]


def test_the_sentence_most_like_the_question():
    context = "他在北京。她去上海工作！谁知道呢"
    assert spans.likest_sentence("她在哪里工作?", context) == "她去上海工作"
    assert spans.likest_sentence("?", "") == ""


def test_a_long_document_is_answered(tokenizer):
    context = "来" * 20_000 + "清"
    text = cmrc(context=context, answers=({"text": "清", "answer_start": 20_000},)).encode()
    examples = read_examples(TASKS["cmrc2018"], (text, "x"), True)
    rows = FORMS["spans"].rows(examples, TASKS["cmrc2018"], tokenizer, str, 512)
    assert len(rows) > 100 and max(map(len, rows.ids)) <= 512
    (at,) = np.flatnonzero(rows.labels.any(axis=1))
    logits = [np.full((2, len(row)), -9.0) for row in rows.ids]
    logits[at][0, rows.labels[at][0]] = logits[at][1, rows.labels[at][1]] = 9.0
    assert FORMS["spans"].answers(TASKS["cmrc2018"], rows, logits) == [("Q7", "清")]


def test_official_files_of_reading_tasks_are_read(shared):
    """The counts of the data's README; wrong answer offsets are counted as it says."""
    counts = {
        "cmrc2018": (10142, 3219, 2000), "c3": (11869, 3816, None), "cluener": (10748, 672, 1345),
        "drcd": (1960, 3524, None), "chid": (202, 202, 2000),
    }  # fmt: skip
    for name, expected in counts.items():
        for split, count in zip(("train", "dev", "test"), expected, strict=True):
            found = read_split(TASKS[name], shared / "data/clue", split)
            assert (None if found is None else len(found)) == count, (name, split)
    for name in ("c3", "chid", "cmrc2018", "drcd"):
        assert read_split(TASKS[name], shared / "data/formats", "train")
    assert len(read_split(TASKS["chid"], shared / "data/formats", "test")) == 9
    assert len(read_split(TASKS["msra_ner"], shared / "data/other", "dev")) == 4636

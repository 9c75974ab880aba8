"""Reading comprehension: windows, answers and scores, equal to recordings of the original."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from clue_jax.features import passages, spans, windows
from clue_jax.metrics import reading
from clue_jax.text import WordPieceTokenizer
from clue_jax.text.normalize import traditional_to_simplified

SETS = {"mrc_cmrc2018": False, "mrc_drcd": True}
FEATURES = [
    ("input_train", "train_512_128", "train"),
    ("input_train", "train_128_64", "train"),
    ("input_dev", "dev_512_128", "dev"),
    ("input_dev", "dev_128_64", "dev"),
    ("input_edge", "edge_train_512_128", "edge_train"),
    ("input_edge", "edge_train_128_64", "edge_train"),
    ("input_edge", "edge_dev_512_128", "edge_dev"),
    ("input_edge", "edge_dev_128_64", "edge_dev"),
    ("input_dev", "dev10_128_64_vocab8021", None),
    ("input_dev", "dev_as_train_512_128", "dev_as_train"),
]


@pytest.fixture(scope="module")
def tokenizers(shared):
    """Words of more than 100 characters are unknown in the original's reading comprehension."""
    folder = shared / "data/vocab"
    return {
        "google": WordPieceTokenizer(folder / "vocab_google_zh.txt", max_word_length=100),
        "clue": WordPieceTokenizer(folder / "vocab_clue.txt", max_word_length=100),
    }


def paragraphs(path):
    data = json.loads(path.read_text(encoding="utf-8"))["data"]
    return [paragraph for article in data for paragraph in article["paragraphs"]]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def as_shown(text: str, drcd: bool) -> str:
    return traditional_to_simplified(text) if drcd else text


class Questions:
    """The questions of a recorded input, with their windows, as the original makes them."""

    def __init__(self, path, tokenizer, drcd, length, stride, answered, limit=None):
        self.items = []
        repair = 0 if drcd else 3
        for paragraph in paragraphs(path)[:limit]:
            shown = as_shown(paragraph["context"], drcd)
            passage = passages.cut(paragraph["context"], shown, more_signs=drcd)
            tokenized = windows.tokenize_passage(passage, tokenizer)
            for question in paragraph["qas"]:
                place = answer = None
                if answered:
                    first = question["answers"][0]
                    text = as_shown(first["text"], drcd)
                    place = passages.locate(passage, text, first["answer_start"], repair)
                    ids = tokenizer.encode(text).ids
                    answer = windows.answer_tokens(tokenized, place, ids)
                asked = as_shown(question["question"], drcd)
                ids = tokenizer.encode(asked).ids
                made = windows.make_windows(tokenizer, ids, tokenized, answer, length, stride)
                self.items.append((question["id"], asked, passage, tokenized, place, answer, made))


@pytest.mark.parametrize(("source", "name", "examples"), FEATURES, ids=lambda value: str(value))
@pytest.mark.parametrize("folder", SETS)
def test_windows_are_the_recorded_ones(shared, tokenizers, folder, source, name, examples):
    """Of DRCD, those whose text OpenCC converts as the original's tables did."""
    drcd, place = SETS[folder], shared / "fixtures" / folder
    if not (place / f"{name}.npz").exists():
        pytest.skip("this set has no such recording")
    recorded = dict(np.load(place / f"{name}.npz"))
    told = lines(place / f"{examples}.examples.jsonl") if examples else None
    is_train = "train" in name
    length, stride = (int(n) for n in re.search(r"(\d+)_(\d+)", name.split("dev10_")[-1]).groups())
    made = Questions(
        place / f"{source}.json", tokenizers["clue" if "8021" in name else "google"], drcd,
        length, stride, is_train, 10 if "dev10" in name else None,
    )  # fmt: skip
    count = compared = 0
    words: list[str] = []
    for number, (qid, question, passage, tokenized, found, answer, rows) in enumerate(made.items):
        first = count
        count += len(rows)
        ids = [
            recorded["input_ids"][first + i][: len(row.ids)].tolist() for i, row in enumerate(rows)
        ]
        expected = told[number] if told else {}
        if drcd and told and "doc_tokens" in expected:
            words = expected["doc_tokens"]
        as_recorded = not drcd or (
            [question, passage.words] == [expected["question_simplified"], words]
            if told and words
            else ids == [row.ids for row in rows]
        )
        if not as_recorded:
            continue
        compared += 1
        if told:
            assert expected["qid"] == qid
            assert passage.words == expected.get("doc_tokens", passage.words)
            if is_train:
                assert (found.start, found.end) == (expected["char_start"], expected["char_end"])
                assert (found.first, found.last) == (expected["word_start"], expected["word_end"])
                assert found.text == expected["actual_text"]
                assert list(answer) == expected["tok_span"]
                assert found.shift == expected.get("n_shift", 0)
        for i, row in enumerate(rows):
            n, at = len(row.ids), first + i
            assert ids[i] == row.ids, (qid, i)
            assert not recorded["input_ids"][at][n:].any()
            assert recorded["input_mask"][at].sum() == n
            assert recorded["segment_ids"][at][:n].tolist() == row.segments
            part = slice(row.offset, row.offset + row.length)
            to_word = np.full(length, -1)
            to_word[part] = tokenized.words[row.first : row.first + row.length]
            assert (to_word == recorded["token_to_orig"][at]).all()
            best = np.full(length, -1)
            best[part] = row.is_max_context
            assert (best == recorded["is_max_context"][at]).all()
            assert recorded["example_index"][at] == number
            assert recorded["doc_span"][at].tolist() == [row.first, row.length]
            if is_train:
                ends = recorded["start_position"][at], recorded["end_position"][at]
                assert (row.start, row.end) == ends
    assert count == len(recorded["input_ids"])
    assert compared == len(made.items) if not drcd else compared >= 8


POST = [
    "dev_128_64_random_first40_n10_m30", "dev_128_64_realistic_first40_n20_m50_negative_thr-6",
    "dev_128_64_realistic_n20_m50", "dev_128_64_ties_first40_n20_m50",
    "dev_512_128_realistic_n20_m50", "edge_dev_128_64_realistic_n20_m50",
    "edge_dev_512_128_realistic_n20_m50",
]  # fmt: skip


@pytest.mark.parametrize("name", POST)
@pytest.mark.parametrize("folder", SETS)
def test_answers_are_the_recorded_ones(shared, tokenizers, folder, name):
    """The n best with their order, probabilities and scores, ties and null answers included."""
    drcd, place = SETS[folder], shared / "fixtures" / folder
    tokenizer = tokenizers["google"]
    match = re.match(
        r"(edge_)?dev_(\d+)_(\d+)_(\w+?)(_first40)?_n(\d+)_m(\d+)(?:_negative_thr(.*))?$", name
    )
    edge, length, stride, kind, first40, n, longest, threshold = match.groups()
    logits = dict(
        np.load(place / f"post/{edge or ''}dev_{length}_{stride}_{kind}{first40 or ''}.logits.npz")
        if (
            place / f"post/{edge or ''}dev_{length}_{stride}_{kind}{first40 or ''}.logits.npz"
        ).exists()
        else np.load(place / f"post/{edge or ''}dev_{length}_{stride}_{kind}.logits.npz")
    )
    expected = {row["qid"]: row for row in lines(place / "post" / f"{name}.jsonl")}
    made = Questions(
        place / f"input_{'edge' if edge else 'dev'}.json", tokenizer, drcd, int(length),
        int(stride), answered=False,
    )  # fmt: skip
    at = 0
    for qid, _, passage, tokenized, _, _, rows in made.items:
        some = [
            np.stack([logits["start_logits"][i], logits["end_logits"][i]])
            for i in range(at, at + len(rows))
        ] if qid in expected else []  # fmt: skip
        at += len(rows)
        if qid not in expected:
            continue

        def text_of(first, last, passage=passage, tokenized=tokenized):
            pieces = [tokenizer.vocabulary[i] for i in tokenized.ids[first : last + 1]]
            return spans.original_text(passage, tokenized, pieces, first, last)

        limit = float(threshold) if threshold else None
        answer, candidates = spans.n_best(rows, some, text_of, int(n), int(longest), limit)
        wanted = expected.pop(qid)
        assert answer == wanted["prediction"]
        assert [c.text for c in candidates] == [row[0] for row in wanted["nbest"]]
        numbers = np.array([c[1:4] for c in candidates])
        theirs = np.array([row[1:] for row in wanted["nbest"]])
        np.testing.assert_allclose(numbers[:, 0], theirs[:, 0], rtol=1e-9)
        np.testing.assert_array_equal(numbers[:, 1:], theirs[:, 1:])
    assert not expected


def test_answers_are_projected_as_recorded(shared):
    for row in lines(shared / "fixtures/mrc_cmrc2018/final_text.jsonl"):
        assert spans.project(row["pred_text"], row["orig_text"]) == row["final_text"]


@pytest.mark.parametrize("folder", SETS)
def test_scores_are_the_recorded_ones(shared, folder):
    place = shared / "fixtures" / folder
    pairs = lines(place / "eval/pairs.jsonl")
    for pair in pairs:
        expected = pair.get("regex_only_f1", pair["f1"])
        assert abs(reading.f1(pair["answers"], pair["prediction"]) - expected) < 1e-12, pair
        assert reading.exact_match(pair["answers"], pair["prediction"]) == pair["em"]
        segments = pair.get("regex_only_prediction_segments", pair["prediction_segments"])
        assert reading.segment(pair["prediction"]) == segments
        assert reading.without_signs(pair["prediction"]) == pair["prediction_em_form"]
    answers = {
        question["id"].strip(): [answer["text"] for answer in question["answers"]]
        for paragraph in paragraphs(place / "input_dev.json")
        for question in paragraph["qas"]
    }
    recorded = json.loads((place / "eval/scores.json").read_text())
    assert len(recorded) > 15
    for entry in recorded:
        path = place / f"eval/predictions_{entry['name']}.json"
        score = reading.score(answers, json.loads(path.read_text(encoding="utf-8")))
        assert abs(score["f1"] - entry["f1_regex_tokenizer_only"]) < 1e-9, entry["name"]
        assert abs(score["em"] - entry["em"]) < 1e-9
        assert (score["total"], score["skip"]) == (entry["total"], entry["skip"])


# ---- By hand, without the recordings -------------------------------------------------------------


def test_a_passage_by_hand():
    passage = passages.cut("李白 (701—762)，abc。")
    assert passage.words == ["李", "白", "(", "701", "—", "762", ")", "，", "abc", "。"]
    assert passage.spans[3] == (4, 7) and passage.spans[-1] == (16, 17)
    assert passage.word_of == [0, 1, 1, 2, 3, 3, 3, 4, 5, 5, 5, 6, 7, 8, 8, 8, 9]
    with pytest.raises(ValueError, match="a text of 2 characters became one of 3"):
        passages.cut("ab", "abc")


@pytest.mark.parametrize(
    ("answer", "start", "repair", "expected"),
    [
        ("青莲", 3, 3, (3, 4, 0)),
        ("青莲", 5, 3, (3, 4, 2)),
        ("青莲", 5, 0, (5, 6, 0)),  # not repaired: what stands there is taken
        ("，号", 1, 0, (2, 2, 0)),  # an answer does not begin with a comma
        ("青莲", -1, 3, None),
        ("青莲", 99, 3, None),
        ("", 3, 3, None),
    ],
)
def test_answers_are_located(answer, start, repair, expected):
    place = passages.locate(passages.cut("字，号青莲居士。"), answer, start, repair)
    found = place and (place.first, place.last, place.shift)
    assert found == expected


def test_the_nearest_occurrence_is_found():
    passage = passages.cut("北京、上海、北京、天津、北京")
    assert [passages.find(passage, "北京", start) for start in (0, 5, 8, 30)] == [0, 6, 6, 12]
    assert passages.find(passage, "广州", 0) is None and passages.find(passage, "", 0) is None


def test_windows_by_hand(tokenizer):
    """Ten tokens, six to a window, each starting three later: [0, 6), [3, 9), [6, 10)."""
    assert windows.window_starts(10, 6, 3) == [(0, 6), (3, 6), (6, 4)]
    assert windows.window_starts(0, 6, 3) == []
    chosen = windows.max_context([(0, 6), (3, 6), (6, 4)], 10)
    assert chosen.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    passage = windows.tokenize_passage(passages.cut("清晨五点渔港的灯一盏"), tokenizer)
    assert len(passage.ids) == 10
    rows = windows.make_windows(tokenizer, [7, 8, 9], passage, (4, 6), 11, 3, max_question=2)
    assert [(row.first, row.length) for row in rows] == [(0, 6), (3, 6), (6, 4)]
    assert all(row.ids[:4] == [tokenizer.cls_id, 7, 8, tokenizer.sep_id] for row in rows)
    assert [(row.start, row.end) for row in rows] == [(0, 0), (5, 7), (0, 0)]
    with pytest.raises(ValueError, match="a question of 2 tokens leaves no room in 5"):
        windows.make_windows(tokenizer, [7, 8, 9], passage, None, 5, 3, max_question=2)


def test_an_answer_keeps_the_blanks_of_the_passage(tokenizer):
    passage = passages.cut("他在 New York 工作")
    tokenized = windows.tokenize_passage(passage, tokenizer)
    first, last = (int(np.flatnonzero(tokenized.words == word)[0]) for word in (2, 4))
    assert spans.slice_of(passage, tokenized, first, last - 1) == "New York"


def test_a_long_passage_is_cut_in_linear_time(tokenizer):
    passage = passages.cut("清晨五点渔港的灯一盏" * 2000)
    tokenized = windows.tokenize_passage(passage, tokenizer)
    rows = windows.make_windows(tokenizer, [5] * 10, tokenized, (19_998, 19_999), 512)
    assert len(rows) == 154 and sum(row.is_max_context.sum() for row in rows) == 20_000
    assert [row.start > 0 for row in rows] == [False] * 153 + [True]


def test_scores_by_hand():
    assert reading.f1(["北京市"], "北京") == pytest.approx(0.8)
    assert reading.exact_match(["《北京》"], "北京。") == 1
    assert reading.common_run(list("abcde"), list("xbcdy")) == 3
    assert reading.f1([""], "") == 0 and reading.exact_match([""], "") == 1
    assert reading.score({"a": ["北京"], "b": ["上海"]}, {"a": "北京"}) == {
        "f1": 50.0, "em": 50.0, "average": 50.0, "total": 2, "skip": 1,
    }  # fmt: skip

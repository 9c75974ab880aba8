"""`Predictor`: every kind against transformers or the rules by hand, and any text in any batch."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SAMPLE, save_kind

import clue_jax
from clue_jax.errors import UserError
from clue_jax.features.entities import entities_of
from clue_jax.prediction.programs import plan, shapes

LINES = [line for line in SAMPLE.read_text(encoding="utf-8").splitlines() if line][:60]
INPUTS = {
    "classification": [
        *LINES[:20],
        {"text": LINES[20], "text_pair": LINES[21]},
        "",
        {"text": "张三打了李四，他跑了", "target": {
            "span1_text": "李四", "span1_index": 4, "span2_text": "他", "span2_index": 7}},
    ],
    "multi-label": LINES[:5],
    "score": [{"text": a, "text_pair": b} for a, b in itertools.pairwise(LINES[:5])],
    "spans": [
        {"text": "".join(LINES[:12]), "question": "渔港的灯几点亮？"},
        {"text": "北京 是 首都", "question": "首都是哪？"},
        {"text": "", "question": "什么？"},
    ],
    "choice": [
        {"text": LINES[0], "question": "几点？", "choices": ["五点", "六点", "七点"]},
        {
            "text": "他#idiom000001#，又#idiom000002#。",
            "choices": ["一心一意", "三心二意", "画蛇添足"],
        },
        {"text": "他#idiom000003#了。", "choices": ["一心一意", "画蛇添足"]},
    ],
    "entities": [*LINES[:6], "".join(LINES[:9]), "", " a  b "],
    "fill-mask": ["清晨[MASK]点", "[MASK]" * 19, LINES[0] + "[MASK]"],
    "embedding": LINES[:3],
    "similarity": LINES[:3],
}  # fmt: skip


@pytest.fixture(scope="module")
def predictors(kinds):
    found = {kind: clue_jax.Predictor(folder) for kind, folder in kinds.items()}
    return found | dict.fromkeys(("embedding", "similarity"), found["fill-mask"])


def theirs(kinds, kind):
    transformers = pytest.importorskip("transformers")
    names = {
        "choice": "MultipleChoice", "entities": "TokenClassification", "spans": "QuestionAnswering"
    }  # fmt: skip
    name = names.get(kind, "SequenceClassification")
    model = getattr(transformers, f"BertFor{name}").from_pretrained(kinds[kind]).eval()
    return model, transformers.BertTokenizerFast.from_pretrained(kinds[kind])


@pytest.mark.parametrize("kind", INPUTS)
def test_kinds_are_known_by_the_directory(predictors, kind):
    own = {"embedding": "fill-mask", "similarity": "fill-mask"}.get(kind, kind)
    assert predictors[kind].kinds == (own, "embedding", "similarity")


@pytest.mark.parametrize("kind", ["classification", "multi-label", "score"])
def test_labels_are_those_of_transformers(kinds, predictors, kind):
    torch = pytest.importorskip("torch")
    model, tokenizer = theirs(kinds, kind)
    inputs = [x for x in INPUTS[kind] if isinstance(x, str) or "target" not in x]
    for given, answer in zip(inputs, predictors[kind].predict(inputs, top_k=9), strict=True):
        texts = (given,) if isinstance(given, str) else (given["text"], given["text_pair"])
        encoded = tokenizer(*texts, return_tensors="pt", truncation=True, max_length=64)
        with torch.no_grad():
            logits = model(**encoded).logits[0].double()
        if kind == "score":
            assert answer == {"score": pytest.approx(logits.item(), abs=1e-4)}
            continue
        shares = logits.softmax(0) if kind == "classification" else logits.sigmoid()
        labels = predictors[kind].labels
        assert {x["label"]: x["probability"] for x in answer["labels"]} == pytest.approx(
            dict(zip(labels, shares.tolist(), strict=True)), abs=1e-5
        )
        if kind == "classification":
            assert answer["label"] == labels[shares.argmax()]
            assert answer["probability"] == answer["labels"][0]["probability"]
        else:
            assert answer["chosen"] == [labels[i] for i in np.flatnonzero(logits > 0)]


def test_marks_are_those_of_the_task(predictors):
    """CLUEWSC's target does what the marks in the text do."""
    predictor = predictors["classification"]
    plain, marked = predictor.predict([INPUTS["classification"][-1], "张三打了_李四_，[他]跑了"])
    assert plain["labels"] == [pytest.approx(x, abs=1e-6) for x in marked["labels"]]


def test_entities_are_those_of_the_best_tags(kinds, predictors):
    """Of all sequences of tags that obey BIO, by transformers' scores; places are the text's."""
    torch = pytest.importorskip("torch")
    model, tokenizer = theirs(kinds, "entities")
    predictor = predictors["entities"]
    labels = predictor.labels
    texts = [line[:5] for line in LINES[:12]]
    number = 0
    for text, answer in zip(texts, predictor.predict(texts), strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0, 1:-1].double()
        ways = [
            way
            for way in itertools.product(range(len(labels)), repeat=len(text))
            if all(
                not labels[b].startswith("I") or labels[a][1:] == labels[b][1:]
                for a, b in itertools.pairwise((labels.index("O"), *way))
            )
        ]
        scores = logits.numpy()[np.arange(len(text)), np.array(ways)].sum(axis=1)
        best = [labels[i] for i in ways[scores.argmax()]]
        assert [(e["type"], e["start"], e["end"] - 1) for e in answer["entities"]] == [
            tuple(entity) for entity in entities_of(best)
        ]
        for entity in answer["entities"]:
            assert text[entity["start"] : entity["end"]] == entity["text"]
            assert 0 < entity["probability"] <= 1
            number += 1
    assert number > 12


def test_an_answer_is_the_span_with_most_score(kinds, predictors):
    torch = pytest.importorskip("torch")
    model, tokenizer = theirs(kinds, "spans")
    text, question = "清晨五点渔港的灯亮了", "几点？"
    (answer,) = predictors["spans"].predict([{"text": text, "question": question}], top_k=3)
    encoded = tokenizer(question, text, return_tensors="pt")
    with torch.no_grad():
        output = model(**encoded)
    starts, ends = output.start_logits[0].double(), output.end_logits[0].double()
    first, count = len(question) + 2, len(text)
    scores = {
        (a, b): (starts[first + a] + ends[first + b]).item()
        for a in range(count)
        for b in range(a, count)
    }
    best = max(scores, key=scores.get)
    assert (answer["start"], answer["end"] - 1) == best
    assert answer["answer"] == text[best[0] : best[1] + 1]
    assert len(answer["answers"]) == 3 and answer["answers"][0]["answer"] == answer["answer"]


def test_answers_are_slices_of_the_passage(predictors):
    for given, answer in zip(
        INPUTS["spans"], predictors["spans"].predict(INPUTS["spans"], top_k=20), strict=True
    ):
        for found in answer["answers"]:
            assert given["text"][found["start"] : found["end"]] == found["answer"]
    assert answer["answer"] == "" and answer["answers"] == []  # of the empty passage


def test_choices_are_those_of_transformers(kinds, predictors):
    torch = pytest.importorskip("torch")
    model, tokenizer = theirs(kinds, "choice")
    predictor = predictors["choice"]
    question, blanks, one = predictor.predict(INPUTS["choice"])
    given = INPUTS["choice"][0]
    encode = predictor.tokenizer.encode
    scores = []
    for choice in given["choices"]:
        parts = [encode(x).ids for x in (given["text"], given["question"], choice)]
        ids = [tokenizer.cls_token_id]
        for part in parts:
            ids += [*part, tokenizer.sep_token_id]
        kinds_of_segment = [0] * (len(parts[0]) + 2)
        kinds_of_segment += [1] * (len(ids) - len(kinds_of_segment))
        with torch.no_grad():
            logits = model(
                torch.tensor([[ids]]), token_type_ids=torch.tensor([[kinds_of_segment]])
            ).logits
        scores.append(logits.item())
    shares = np.exp(scores) / np.exp(scores).sum()
    assert question["choice"] == int(shares.argmax())
    found = {x["choice"]: x["probability"] for x in question["choices"]}
    assert found == pytest.approx(dict(enumerate(shares)), abs=1e-5)
    first, second = blanks["blanks"]
    assert [first["blank"], second["blank"]] == ["#idiom000001#", "#idiom000002#"]
    assert first["choice"] != second["choice"]
    assert one["answer"] == INPUTS["choice"][2]["choices"][one["choice"]] and one["blank"]


def test_codes_have_names(kinds, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(kinds["classification"], folder)
    info = json.loads((folder / "clue_jax.json").read_text(encoding="utf-8"))
    info["label_names"] = {"军事": "news_military", "体育": "news_sports"}
    (folder / "clue_jax.json").write_text(json.dumps(info), encoding="utf-8")
    (answer,) = clue_jax.Predictor(folder).predict(["好"])
    found = {x["label"]: x.get("name") for x in answer["labels"]}
    assert found == {"军事": "news_military", "体育": "news_sports", "财经": None}
    loaded = clue_jax.load(folder)
    loaded.save(tmp_path / "again")  # they stay with the model
    assert clue_jax.load(tmp_path / "again").info["label_names"] == info["label_names"]


def test_similarities_are_cosines(predictors):
    predictor = predictors["similarity"]
    vectors = predictor.embed(LINES[:3]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = predictor.predict(LINES[:3], "similarity")
    np.testing.assert_allclose([x["similarities"] for x in found], vectors @ vectors.T, atol=1e-5)


def _numbers(value):
    """A value without its numbers, and these."""
    if isinstance(value, float):
        return "number", [value]
    if isinstance(value, dict):
        parts = {key: _numbers(item) for key, item in value.items()}
        return {k: v for k, (v, _) in parts.items()}, [x for _, n in parts.values() for x in n]
    if isinstance(value, list):
        parts = [_numbers(item) for item in value]
        return [v for v, _ in parts], [x for _, n in parts for x in n]
    return value, []


@pytest.mark.parametrize("kind", [kind for kind in INPUTS if kind != "similarity"])
def test_an_answer_does_not_depend_on_its_batch(predictors, kind):
    """The same input alone, among all others, in the reverse order and in a large batch."""
    predictor, inputs = predictors[kind], INPUTS[kind]
    alone = [predictor.predict([given], kind)[0] for given in inputs]
    together = predictor.predict(inputs, kind)
    backwards = predictor.predict(inputs[::-1], kind)[::-1]
    many = predictor.predict(inputs * 9, kind)[-len(inputs) :]
    for one, *others in zip(alone, together, backwards, many, strict=True):
        for other in others:
            (shape, numbers), (other_shape, other_numbers) = _numbers(one), _numbers(other)
            assert shape == other_shape
            np.testing.assert_allclose(other_numbers, numbers, rtol=0, atol=1e-5)


def test_long_texts_are_cut_and_say_so(predictors):
    short, long = predictors["classification"].predict(["好" * 62, "好" * 63])
    assert "truncated" not in short and long["truncated"] is True
    assert short["labels"] == [pytest.approx(x) for x in long["labels"]]


def test_every_row_is_in_one_batch_that_holds_it():
    random = np.random.default_rng(0)
    for count in (0, 1, 3, 5, 17, 100, 700):
        lengths = random.integers(1, 129, count)
        batches = plan(lengths, 128)
        assert sorted(row for batch in batches for row in batch.rows) == list(range(count))
        for batch in batches:
            assert (batch.size, batch.length) in shapes(128)
            assert 0 < len(batch.rows) <= batch.size
            assert max(lengths[batch.rows]) <= batch.length
    slots = sum(batch.size * batch.length for batch in batches)
    assert slots < 1.2 * lengths.sum()


def test_the_plan_is_the_cheapest():
    """Against all ways to cut three rows into neighbours."""
    lengths = [10, 30, 100]

    def cost(parts):
        total = 0
        for part in parts:
            size = next(b for b in (1, 4, 16, 64) if b >= len(part))
            total += size * next(t for b, t in shapes(128) if b == 1 and t >= max(part)) + 64
        return total

    ways = ([[10], [30], [100]], [[10, 30], [100]], [[10], [30, 100]], [lengths])
    batches = plan(lengths, 128)
    found = sum(batch.size * batch.length + 64 for batch in batches)
    assert found == min(cost(way) for way in ways)


def test_all_programs_can_be_compiled_before(kinds):
    predictor = clue_jax.Predictor(kinds["classification"])
    assert list(predictor.compile()) == shapes(64)
    function = predictor._program("classification")._function
    compiled = function._cache_size()
    assert compiled == len(shapes(64))
    predictor.predict(LINES)
    assert function._cache_size() == compiled


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("classification", ["好", 3], "input 2: an input is a text or an object with texts, got a"),
        ("classification", [{"txt": "好"}], 'input 1: classification needs "text", found "txt"'),
        ("classification", [{"text": "好", "pair": "x"}], 'takes "text", "text_pair", "target"'),
        ("classification", [{"text": None}], 'needs "text", found nothing'),
        ("classification", [{"text": ["好"]}], '"text" must be a text, got a list'),
        ("classification", [{"text": "好", "target": 1}], '"target" must hold "span1_text"'),
        (
            "classification",
            ["好", {"text": "好", "target": {
                "span1_text": "坏", "span1_index": 0, "span2_text": "好", "span2_index": 0}}],
            "input 2: \"target\": '坏' does not stand at position 0",
        ),
        ("spans", ["好"], 'spans needs "question", found "text"'),
        ("spans", [{"text": "好", "question": "好" * 80}], "a question of 64 tokens leaves no"),
        ("choice", [{"text": "好", "choices": ["一"]}], "at least two, got 1"),
        ("choice", [{"text": "好", "choices": [1, 2]}], '"choices" must be a list of texts'),
        ("choice", [{"text": "好", "choices": ["一", "二"]}], "needs a blank such as #idiom00"),
        ("choice", [{"text": "#idiom1##idiom1#", "choices": ["一", "二"]}], "a blank stands twice"),
        ("fill-mask", ["[MASK]", "好"], r"input 2: the text holds no \[MASK\]"),
        ("fill-mask", ["[MASK]" + "好" * 63], "input 1: the text has 66 tokens, the model"),
        ("score", "好", "inputs must be a list, got a single one"),
    ],
)  # fmt: skip
def test_what_is_refused(predictors, kind, given, message):
    with pytest.raises(UserError, match=message):
        predictors[kind].predict(given)


def test_kinds_and_top_k_are_checked(predictors):
    with pytest.raises(UserError, match="makes no spans; it makes classification, embedding, sim"):
        predictors["classification"].predict(["好"], "spans")
    for top_k in (0, True, 10**9, 1.0):
        with pytest.raises(UserError, match=f"top_k {top_k} must lie between 1 and 787"):
            predictors["classification"].predict(["好"], top_k=top_k)


def test_tags_that_are_not_bio_are_refused(tokenizer, tmp_path):
    folder = save_kind(tmp_path / "m", "entities", tokenizer)
    for name in ("clue_jax.json", "config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace('"B-地名"', '"S-地名"'), encoding="utf-8")
    predictor = clue_jax.Predictor(folder)
    with pytest.raises(UserError, match="its tags are not BIO: S-地名"):
        predictor.predict(["好"])
    assert len(predictor.embed(["好"])) == 1  # the encoder is as good as ever


def test_a_foreign_classifier_of_tokens_is_known_by_its_missing_pooler(kinds, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(kinds["entities"], folder)
    (folder / "clue_jax.json").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("architectures")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = "清晨五点，渔港的灯亮了"
    assert clue_jax.Predictor(folder).predict([text]) == clue_jax.Predictor(
        kinds["entities"]
    ).predict([text])


def test_nothing_is_predicted_for_nothing(predictors):
    for kind, predictor in predictors.items():
        assert predictor.predict([], kind) == []


def test_what_is_cut_is_said(kinds, predictors, tokenizer, tmp_path):
    """Questions at 64 tokens, and what stands far from a blank."""
    near, far = predictors["choice"].predict(
        [{"text": "好" * n + "#idiom000001#", "choices": ["一心一意", "画蛇添足"]} for n in (9, 99)]
    )
    assert "truncated" not in near and far["truncated"] is True
    folder = save_kind(
        tmp_path / "m", "spans", tokenizer, max_seq_length=128, max_position_embeddings=128
    )
    short, long = clue_jax.Predictor(folder).predict(
        [{"text": "好" * 200, "question": "好" * n} for n in (64, 65)]
    )
    assert "truncated" not in short and long["truncated"] is True


def test_it_runs_without_the_heavy_packages(kinds):
    """No tensorflow, torch or orbax; answers are the same."""
    code = (
        "import json, sys, clue_jax; p = clue_jax.Predictor(sys.argv[1]);"
        "print(json.dumps(p.predict(['清晨五点'])))"
    )
    environment = {"CLUE_JAX_WITHOUT": "tensorflow,torch,orbax,transformers,optax"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(kinds["classification"])],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | environment | {"PYTHONPATH": f"{ROOT / 'tests' / 'without'}:{ROOT}"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    expected = clue_jax.Predictor(kinds["classification"]).predict(["清晨五点"])
    assert found[0]["labels"] == [pytest.approx(x, abs=1e-6) for x in expected[0]["labels"]]

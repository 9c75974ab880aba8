"""What a command line says reaches the training: recipes, optimizer, dropout, order, losses."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_config

from clue_jax import losses, sharding
from clue_jax.convert import merge
from clue_jax.files import json_text
from clue_jax.model import ChoiceModel, SpanModel
from clue_jax.model.layers import MASK_BIAS
from clue_jax.train_state import new_state
from finetune import clue, presets
from finetune.data import read_examples, read_split
from finetune.evaluate import is_blind
from finetune.forms import FORMS
from finetune.forms.choices import Blank, decide
from finetune.forms.tags import decode
from finetune.job import Job, dropout_key, prepare
from finetune.model import random_params
from finetune.rows import batch_of
from finetune.run import is_due
from finetune.settings import Settings
from finetune.tasks import TASKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    rows = [
        {"sentence1": "清" * (1 + i % 7), "sentence2": "来", "label": str(i % 2)} for i in range(24)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for split in ("train", "dev", "test"):
        (folder / f"{split}.json").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("single", (9, 3)), ("score", (9, 1)), ("multi", (9, 3)), ("choice", (9, 4))],
)
def test_outputs_that_tell_no_inputs_apart(kind, shape):
    """A class may be likelier than another all the same; a choice may not."""
    random = np.random.default_rng(0)
    same = random.normal(size=(1, 1) if kind == "choice" else (1, shape[1]))
    logits = same + random.normal(0, 0.002, shape)
    assert is_blind(logits, kind)
    if kind == "choice":
        padded = np.concatenate([logits, np.full((9, 1), MASK_BIAS)], axis=1)
        assert is_blind(padded, kind)
    logits[4, 0] += 0.2
    assert not is_blind(logits, kind)


@pytest.mark.parametrize("kind", ["spans", "tags"])
def test_outputs_that_tell_no_positions_apart(kind):
    random = np.random.default_rng(0)
    rows = [np.float32([[1, -2]]) + random.normal(0, 0.002, (n, 2)) for n in (5, 9)]
    rows = [row.T for row in rows] if kind == "spans" else rows
    assert is_blind(rows, kind)
    if kind == "spans":
        rows[0][:, 0] = MASK_BIAS
        assert is_blind(rows, kind)
    rows[1][1, 1] += 0.2
    assert not is_blind(rows, kind)


@pytest.fixture
def make_job(folder, micro_model):
    def make(**changes) -> Job:
        given = {"batch_size": 8, "epochs": 4, "seq_len": 32, "learning_rate": 0.5}
        settings = Settings(
            "afqmc", str(micro_model), "", str(folder), **{**given, **changes}, mesh="data=1"
        )
        return prepare(settings, sharding.make_mesh("data=1"))

    return make


def start(job: Job):
    optimizer = job.optimizer(np.float32(0.5))
    create = lambda: random_params(job.model(True), jax.random.key(3))  # noqa: E731
    return new_state(create, optimizer, sharding.make_mesh("data=1"))


def test_the_rate_by_step(make_job):
    """Twelve updates: up in half of them, then down to nothing."""
    schedule = make_job(warmup=0.5).schedule(0.5)
    expected = [0.5 * step / 6 for step in range(6)] + [0.5 * (1 - s / 12) for s in range(6, 12)]
    found = [float(schedule(step)) for step in range(12)]
    assert found[:6] == pytest.approx(expected[:6]) and found[6] == pytest.approx(max(found))
    assert found == sorted(found[:7]) + sorted(found[7:], reverse=True)
    jumps = make_job(warmup=0.5, schedule="original").schedule(0.5)
    assert float(jumps(6)) == pytest.approx(0.25)  # half of the decay is over by then


def test_the_optimizer_is_as_asked_for(make_job):
    """One update by hand, without correction of the moments: b1 0.9, b2 0.99."""
    job = make_job(warmup=0.0, weight_decay=0.25, layer_decay=0.5, adam_b2=0.99)
    params = start(job).params
    gradients = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
    optimizer = job.optimizer(0.5)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    updates, flat = merge.flatten(updates), merge.flatten(params)
    adam = 0.1 * 1e-3 / (np.sqrt(0.01) * 1e-3 + 1e-6)
    for path, share, decay in (
        ("classifier/kernel", 1.0, 0.25),
        ("classifier/bias", 1.0, 0.0),
        ("bert/encoder/layer_1/feed_forward/output/kernel", 1.0, 0.25),
        ("bert/encoder/layer_0/feed_forward/output/kernel", 0.5, 0.25),
        ("bert/embeddings/word_embeddings", 0.25, 0.25),
    ):
        expected = -0.5 * share * (adam + decay * np.asarray(flat[path]))
        np.testing.assert_allclose(updates[path], expected, rtol=1e-4)


def test_a_call_is_its_steps(make_job):
    """Three updates in one program are the three one after the other, dropout and all; on texts of
    one length, since dropout is drawn anew for another."""
    job = make_job(dropout=0.1, epochs=4, steps_per_call=3)
    assert job.calls(0) == [range(i, i + 3) for i in (0, 3, 6, 9)]
    key, rate = dropout_key(0), np.float32(1e-3)
    states, sums = [], []
    state = start(job)
    for step in range(6):
        state, of_step = jax.jit(job.step)(state, job.batch(step, 0), key, rate)
        sums.append(of_step["loss_sum"])
    states.append(state)
    state, together = start(job), []
    for call in job.calls(0)[:2]:
        state, of_call = jax.jit(job.call)(state, job.batches(call, 0), key, rate)
        together += of_call["loss_sum"].tolist()
    np.testing.assert_allclose(together, sums, rtol=1e-6)
    assert int(state.step) == 6
    for path, array in merge.flatten(states[0].params).items():
        np.testing.assert_allclose(merge.flatten(state.params)[path], array, atol=1e-6)


def test_calls_end_with_their_epoch(make_job):
    job = make_job(epochs=2.5, batch_size=4, steps_per_call=4)  # 6 batches an epoch
    ends = [call.stop for call in job.calls(0)]
    assert ends == [4, 6, 10, 12, 15]
    assert [call.stop for call in job.calls(10)] == ends[3:]
    assert job.calls(15) == []
    whole = make_job(epochs=2, batch_size=4, steps_per_call=100)
    assert [call.stop for call in whole.calls(0)] == [6, 12]
    assert [is_due(call, 5) for call in job.calls(0)] == [False, True, True, False, True]


def test_dropout_is_as_asked_for_and_new_each_step(make_job):
    job = make_job(dropout=0.5)
    assert job.config.hidden_dropout_prob == job.config.attention_probs_dropout_prob == 0.5
    state, batch = start(job), job.batch(0, 0)
    step = jax.jit(job.step)

    def loss(number: int, seed: int, of=step) -> float:
        at = type(state)(jnp.int32(number), state.params, state.opt_state)
        return float(of(at, batch, dropout_key(seed), np.float32(0.5))[1]["loss_sum"])

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(1, 0), loss(0, 1)}) == 3
    none = jax.jit(make_job(dropout=0.0).step)
    assert loss(0, 0, none) == loss(1, 0, none) == loss(0, 1, none)


def test_rows_that_fill_up_do_not_count(make_job):
    """The loss and the update of three examples are the same in a batch of four as alone."""
    job = make_job(dropout=0.0)
    state, chosen = start(job), np.array([2, 5, 11])
    updated = []
    for size in (3, 4):
        batch = batch_of(job.train, chosen, size, (32,), 0)
        after, sums = jax.jit(job.step)(state, batch, dropout_key(0), np.float32(0.5))
        updated.append((sums, merge.flatten(after.params)))
    (alone, params), (filled, others) = updated
    assert float(filled["weight_sum"]) == 3
    np.testing.assert_allclose(filled["loss_sum"], alone["loss_sum"], rtol=1e-5)
    np.testing.assert_allclose(filled["gradient_norm"], alone["gradient_norm"], rtol=1e-5)
    for path, array in params.items():
        np.testing.assert_allclose(others[path], array, atol=1e-5)


def test_the_order_is_the_seed_s(make_job):
    job = make_job()
    first, again, other = (job.rows(0, seed).tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_recipes():
    """A few figures of the original's scripts; models of up to six layers are small."""
    small, large = micro_config(9, num_hidden_layers=6), micro_config(9, num_hidden_layers=7)
    assert presets.size_of(small) == "small" and presets.size_of(large) == "large"
    for task, expected in {
        "afqmc": (128, 16, 2e-5, 3, 300), "iflytek": (128, 32, 2e-5, 3, 300),
        "cmnli": (128, 64, 3e-5, 2, 300), "cluewsc2020": (128, 16, 1e-5, 10, 10),
        "csl": (128, 16, 1e-5, 5, 100), "xnli": (128, 32, 2e-5, 3, 1000),
    }.items():  # fmt: skip
        for config in (small, large):
            recipe = presets.recipe(task, config, original=True)
            assert recipe == presets.Recipe(*expected, schedule="original")
    original = {task: presets.recipe(task, small, True) for task in presets.ORIGINAL}
    assert {name: r.warmup for name, r in original.items() if r.warmup != 0.1} == {
        "c3": 0.05, "chid": 0.06,
    }  # fmt: skip
    assert [name for name, r in original.items() if r.adam_b2 != 0.999] == ["msra_ner"]
    assert presets.recipe("tnews", large, original=False) == presets.Recipe(128, 16, 2e-5, 3)
    assert presets.recipe("tnews", small, False) != presets.recipe("tnews", large, False)
    assert presets.recipe("lcqmc", large, original=False) == presets.OTHER["large"]


def test_a_limit_counts_questions(tmp_path):
    """Of COPA, whose question is two examples."""
    row = {"premise": "清", "choice0": "来", "choice1": "亮", "question": "cause", "label": 1}
    (tmp_path / "train.json").write_text((json.dumps(row) + "\n") * 5)
    read = read_split(TASKS["copa"], tmp_path, "train", limit=3)
    assert [example.label for example in read] == ["0", "1"] * 3
    # In a test file no label is looked at.
    (tmp_path / "test.json").write_text(json.dumps(row | {"label": "?"}) + "\n")
    assert [e.label for e in read_split(TASKS["copa"], tmp_path, "test")] == [None, None]


def test_the_loss_of_spans_is_the_mean_of_both_ends():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]] * 2, np.float32))
    labels, weights = np.array([[0, 1], [2, 2]]), np.array([1.0, 0.0])
    sums = losses.task_loss("spans", logits, labels, weights)
    assert float(sums["loss_sum"]) == pytest.approx((np.log(2) + np.log(8)) / 2)
    assert float(sums["correct_sum"]) == 0 and float(sums["weight_sum"]) == 1


def test_what_is_not_there_is_out_of_the_question():
    """A missing choice, and padding as the place of an answer."""
    config = micro_config(9)
    ids = np.array([[[2, 5, 3, 0], [2, 6, 3, 0], [0, 0, 0, 0]]], np.int32)
    mask = (ids > 0).astype(np.int32)
    model = ChoiceModel(config)
    params = random_params(model, jax.random.key(0))
    logits = model.apply({"params": params}, ids, mask, np.zeros_like(ids))
    assert (logits[0, :2] > -100).all() and logits[0, 2] < -1e3
    model = SpanModel(config)
    params = random_params(model, jax.random.key(0))
    logits = model.apply({"params": params}, ids[0], mask[0], np.zeros_like(ids[0]))
    assert (logits[:2, :, :3] > -100).all() and (logits[:2, :, 3] < -1e3).all()


def test_an_idiom_is_used_once_in_its_group():
    """The second blank of a group takes its next best; another group is free again."""
    words, idioms = ("甲",), ("一", "二", "三")
    blanks = [Blank(words, f"#{i}#", idioms, None, i, group) for i, group in enumerate([1, 1, 2])]
    logits = np.array([[9.0, 1, 0], [8.0, 7, 0], [5.0, 0, 0]])
    assert decide(blanks, logits).tolist() == [0, 1, 0]
    alone = [Blank(words, "#0#", idioms, None, i, None) for i in range(3)]
    assert decide(alone, logits).tolist() == [0, 0, 0]


def test_tags_that_obey_and_that_do_not(tokenizer):
    """The likeliest tags hold an I- without its B-; the best sequence that obeys has none. Only the
    first piece of a unit is asked."""
    task = TASKS["cluener"]
    data = json.dumps({"text": "清晨五"}).encode()
    (example,) = read_examples(task, (data, "x"), False)
    rows = FORMS["tags"].rows([example], task, tokenizer, str, 32)
    assert len(rows.ids[0]) == 5
    index = {label: i for i, label in enumerate(task.labels)}
    logits = np.zeros((5, len(task.labels)), np.float32)
    logits[1, index["O"]], logits[1, index["B-name"]] = 5.0, 4.0
    logits[2, index["I-name"]] = 5.0
    logits[3, index["O"]] = 5.0
    ((places, tags),) = decode(task, rows, [logits], obey=False)
    assert places.tolist() == [0, 1, 2] and tags == ["O", "I-name", "O"]
    ((_, tags),) = decode(task, rows, [logits])
    assert tags == ["B-name", "I-name", "O"]
    # A unit of several pieces: those behind the first have no say.
    source = rows.sources[0]
    object.__setattr__(source.pieces, "first", np.array([True, False, True]))
    object.__setattr__(source.pieces, "places", np.array([0, 0, 2]))
    ((places, tags),) = decode(task, rows, [logits], obey=False)
    assert places.tolist() == [0, 2] and tags == ["O", "O"]


def test_the_report_counts_what_the_benchmark_counts():
    """CMRC2018 is chosen by the mean of both scores, and counts by exact match; the diagnostics are
    answered by the model of the inference task that the version scores."""
    dev = [{"step": 3, "average": 0.5, "em": 0.25, "f1": 0.75, "loss": 1.0}]
    result = {
        "metric": "average", "best_value": 0.5, "best_step": 3, "steps": 3, "train_examples": 1,
        "seconds": 1.0, "dev": dev,
    }  # fmt: skip
    other = result | {"metric": "accuracy", "dev": [dev[0] | {"accuracy": 0.75}]}
    report = clue._report(clue.Settings("m", "o"), {"cmrc2018": result, "c3": other})
    assert report["tasks"]["cmrc2018"]["score"] == 0.25 and report["average"] == 0.5
    assert clue.DIAGNOSED_BY == {"1.0": "cmnli", "1.1": "ocnli"}
    for version, task in clue.DIAGNOSED_BY.items():
        assert version in TASKS[task].submission


def test_json_is_what_every_reader_takes():
    value = {
        "a": [float("nan"), 1.5],
        "b": {"c": float("-inf")},
        "d": "清\ud800",
        "e": (True, None),
    }
    text = json_text(value)
    assert json.loads(text) == {
        "a": [None, 1.5], "b": {"c": None}, "d": "清\ud800", "e": [True, None],
    }  # fmt: skip
    assert text.encode("utf-8").decode("utf-8") == text and "清" in text


def test_digests_tell_what_counts_and_not_where_it_lies(micro_model, tmp_path):
    """A second right answer, which only scores read, changes the digest; the place of a file does
    not."""
    digests = []
    for number, more in enumerate(([], [], [{"text": "来亮", "answer_start": 0}])):
        folder = tmp_path / str(number)
        folder.mkdir()
        for split in ("train", "dev", "test"):
            answers = [{"text": "来", "answer_start": 0}, *(more if split == "dev" else [])]
            entry = {"id": "Q", "question": "何处?", "answers": answers}
            content = {"data": [{"paragraphs": [{"context": "来亮了", "qas": [entry]}]}]}
            (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
        settings = Settings("cmrc2018", str(micro_model), "", str(folder), seq_len=32, batch_size=8)
        digests.append(prepare(settings, sharding.make_mesh("data=1")).digests)
    first, moved, other = digests
    assert first == moved
    assert {name for name in first if first[name] != other[name]} == {"dev_sha256"}
    assert {"model_sha256", "vocab_sha256", "train_sha256", "test_sha256"} < set(first)

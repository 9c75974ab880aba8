"""The parts of fine-tuning: the original's trajectory, batches, scores, choosing the best."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from clue_jax import metrics, optim
from clue_jax.convert import merge, source
from clue_jax.model import ClassificationModel
from clue_jax.train_state import TrainState
from finetune import step
from finetune.forms.labels import grouped
from finetune.history import best, stopped
from finetune.rows import Rows, batch_of, buckets, train_order
from finetune.tasks import TASKS

# ---- The original's trajectory -------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_original_s_training_is_reproduced(shared, accumulate):
    """30 steps on real TNEWS rows: losses, dense gradient norms, logits and parameters."""
    folder = shared / "fixtures/finetune_training"
    loaded = source.load(folder / "initial", config=folder / "bert_config.json")
    inputs = dict(np.load(folder / "inputs.npz"))
    expected = dict(np.load(folder / "expected_onehot.npz"))
    steps = int(inputs["num_train_steps"])
    schedule = optim.learning_rate(
        "original", float(inputs["init_lr"]), steps, int(inputs["num_warmup_steps"])
    )
    optimizer = optim.adamw(schedule, b2=0.999)
    model = ClassificationModel(loaded.config.without_dropout(), 15)
    head = {
        "kernel": inputs["initial_output_weights"].T.copy(),
        "bias": inputs["initial_output_bias"],
    }
    params = jax.tree.map(np.array, {"bert": loaded.params["bert"], "classifier": head})
    state = TrainState(np.int32(0), params, optimizer.init(params))
    step_function = jax.jit(
        functools.partial(
            step.train_step, model=model, optimizer=optimizer, key=jax.random.key(0), kind="single",
            accumulate=accumulate,
        )
    )  # fmt: skip

    def eval_logits(params):
        names = ("input_ids", "input_mask", "segment_ids")
        return model.apply({"params": params}, *[inputs[f"eval_{name}"] for name in names])

    np.testing.assert_allclose(eval_logits(params), expected["eval_logits_before"], atol=2e-6)
    for i in range(steps):
        batch = {
            name: inputs[f"train_{name}"][i] for name in ("input_ids", "input_mask", "segment_ids")
        }
        labels = inputs["train_label_ids"][i]
        batch |= {"labels": labels, "weights": np.ones(len(labels), np.float32)}
        np.testing.assert_allclose(schedule(i), expected["learning_rate"][i], rtol=1e-6)
        state, sums = step_function(state, batch)
        loss = sums["loss_sum"] / sums["weight_sum"]
        np.testing.assert_allclose(loss, expected["losses"][i], atol=2e-5)
        norm = expected["norm_of_summed_gradients"][i]
        np.testing.assert_allclose(sums["gradient_norm"], norm, rtol=1e-4)
    np.testing.assert_allclose(eval_logits(state.params), expected["eval_logits_after"], atol=1e-4)
    kernel = state.params["classifier"]["kernel"]
    final = next(v for k, v in expected.items() if k.startswith("final") and "output_weights" in k)
    np.testing.assert_allclose(kernel.T, final, atol=1e-5)


# ---- The parts -----------------------------------------------------------------------------------


def some_rows(count: int, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    ids = [random.integers(5, 700, length).tolist() for length in random.integers(3, 60, count)]
    labels = random.integers(0, 2, count).astype(np.int32)
    return Rows(ids, [[0] * len(row) for row in ids], labels)


@pytest.mark.parametrize("by_length", [True, False])
def test_an_epoch_has_every_example_once(by_length):
    rows = some_rows(1003)
    epochs = [train_order(rows, 16, 3, epoch, by_length) for epoch in (0, 1)]
    for batches in epochs:
        assert len(batches) == 63
        assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    assert [b.tolist() for b in epochs[0]] != [b.tolist() for b in epochs[1]]
    again = train_order(rows, 16, 3, 0, by_length)
    assert all((a == b).all() for a, b in zip(again, epochs[0], strict=True))
    padded = sum(
        batch_of(rows, chosen, 16, buckets(64), 0)["input_ids"].size for chosen in epochs[0]
    )
    assert (padded < 63 * 16 * 64 * 0.85) == by_length


def test_a_call_has_batches_of_like_length_in_random_order():
    rows = some_rows(1003)  # 63 batches: 15 calls of 4, and 3 batches
    epochs = [train_order(rows, 16, 3, epoch, True, together=4) for epoch in range(4)]
    assert [b.tolist() for b in epochs[0]] != [b.tolist() for b in epochs[1]]
    endings = []
    for batches in epochs:
        assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
        longest = [max(rows.lengths[i] for i in batch) for batch in batches]
        calls = [longest[i : i + 4] for i in range(0, 60, 4)]
        assert np.median([max(call) - min(call) for call in calls]) < 6
        assert calls != sorted(calls) and any(call != sorted(call) for call in calls)
        endings.append(max(longest[60:]))
    assert len(set(endings)) > 1  # what is left over is not always of one length
    one_call = train_order(rows, 16, 3, 0, True, together=100)
    lengths = [max(rows.lengths[i] for i in batch) for batch in one_call]
    assert len(lengths) == 63 and lengths != sorted(lengths)


def test_buckets_by_hand():
    assert buckets(128) == (32, 64, 128)
    assert buckets(100) == (32, 64, 100)
    assert buckets(32) == (32,)
    assert buckets(20) == (20,)


def test_batches_by_hand():
    rows = Rows([[2, 3], [4, 5, 6]], [[0, 0], [0, 1, 1]], np.array([1, 0], np.int32))
    batch = batch_of(rows, np.array([1, 0]), 3, (4, 8), 9)
    assert batch["input_ids"].tolist() == [[4, 5, 6, 9], [2, 3, 9, 9], [9, 9, 9, 9]]
    assert batch["input_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert batch["labels"].tolist() == [0, 1, 0]
    assert batch["weights"].tolist() == [1, 1, 0]


def test_scores_by_hand():
    matrix = metrics.confusion(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 0]), 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    scores = metrics.classification(matrix)
    assert scores["accuracy"] == 0.6 and scores["majority"] == 0.4
    np.testing.assert_allclose(scores["macro_f1"], (1 / 2 + 2 / 3 + 2 / 3) / 3)
    labels = np.array([[1, 0], [1, 1], [0, 0]], bool)
    found = metrics.multi_label(labels, np.array([[1, 0], [0, 1], [1, 0]], bool))
    np.testing.assert_allclose(found["accuracy"], 1 / 3)
    np.testing.assert_allclose(found["micro_f1"], 2 * 2 / 6)
    np.testing.assert_allclose(found["macro_f1"], (2 * 1 / 4 + 1) / 2)


def test_correlations_are_scipy_s():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    a, b = random.integers(0, 6, 50), random.normal(size=50)
    found = metrics.regression(a, b)
    np.testing.assert_allclose(found["pearson"], stats.pearsonr(a, b)[0])
    np.testing.assert_allclose(found["spearman"], stats.spearmanr(a, b)[0])
    assert metrics.regression(a, np.ones(50))["pearson"] == 0


def test_the_best_evaluation_is_fairly_chosen():
    task = TASKS["tnews"]
    history = [
        {"step": 1, "accuracy": 0.5, "loss": 1.0},
        {"step": 2, "accuracy": 0.6, "loss": 0.9},
        {"step": 3, "accuracy": 0.6, "loss": 0.7},
        {"step": 4, "accuracy": 0.6, "loss": 0.7},
        {"step": 5, "accuracy": 0.5, "loss": 0.1},
    ]
    assert best(history, task)["step"] == 3
    none = {"step": 0, "accuracy": 0.1, "loss": float("nan")}
    assert best([none, *history], task)["step"] == 3 and best([none, none], task) is none
    assert stopped(history, 2, task) and not stopped(history, 3, task)
    assert not stopped(history, 0, task) and not stopped([], 1, task)


def test_copa_is_answered_by_the_likelier_pair():
    """By hand; of equals the first."""
    logits = np.array([[0, 1.0], [0, 2.0], [5, 5.0], [3, 3.0], [1, 0.0], [9, 9.5]], np.float32)
    labels = np.array([0, 1, 1, 0, 1, 0])
    true, predicted = grouped(TASKS["copa"], labels, logits)
    assert true.tolist() == [1, 0, 0] and predicted.tolist() == [1, 0, 1]


def test_layers_learn_at_their_own_rates():
    """By hand: the last layer and the head at the full rate, each below at half of that above."""
    params = {
        "bert": {
            "embeddings": {"word_embeddings": np.ones((2, 2), np.float32)},
            "encoder": {f"layer_{i}": {"kernel": np.ones((2, 2), np.float32)} for i in range(2)},
        },
        "classifier": {"kernel": np.ones((2, 2), np.float32)},
    }
    gradients = jax.tree.map(np.ones_like, params)
    moves = []
    for decay in (1.0, 0.5):
        optimizer = optim.adamw(
            lambda step: 0.1, b2=0.999, weight_decay=0.0, layer_decay=decay, layers=2
        )
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        moves.append(merge.flatten(updates))
    ratio = {path: float((moves[1][path] / moves[0][path]).mean()) for path in moves[0]}
    assert ratio == {
        "bert/embeddings/word_embeddings": 0.25,
        "bert/encoder/layer_0/kernel": 0.5,
        "bert/encoder/layer_1/kernel": 1.0,
        "classifier/kernel": 1.0,
    }

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clue_jax import optim
from clue_jax.config import ModelConfig
from clue_jax.convert import tf_bert
from clue_jax.convert.merge import flatten, nest
from clue_jax.errors import UserError
from clue_jax.model import PretrainingModel
from clue_jax.sharding import make_mesh, state_shardings
from clue_jax.train_state import TrainState
from pretraining.program import NEXT_SENTENCE_ONLY
from pretraining.step import train_step


def test_recorded_learning_rates(shared):
    folder = shared / "fixtures/schedule_and_optimizer"
    recorded = np.load(folder / "learning_rate.npz")
    cases = json.loads((folder / "parameters.json").read_text())["learning_rate"]
    for name, case in cases.items():
        rate = optim.learning_rate(
            "original", case["init_lr"], case["num_train_steps"], case["num_warmup_steps"]
        )
        expected = recorded[f"lr_{name}"]
        ours = jax.vmap(rate)(np.arange(len(expected)))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 * case["init_lr"])


def test_linear_schedule_by_hand():
    rate = optim.learning_rate("linear", 1.0, 100, 10)
    steps = {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 99: 1 / 90, 100: 0.0, 150: 0.0}
    for step, expected in steps.items():
        assert rate(step) == pytest.approx(expected, abs=1e-6)
    original = optim.learning_rate("original", 1.0, 1000, 100)
    assert original(99) == pytest.approx(0.99)
    assert original(100) == pytest.approx(0.90)  # the jump that the default does not have


def test_bad_schedules_are_refused():
    with pytest.raises(UserError, match="--warmup-steps 11 must lie between 0 and --steps 10"):
        optim.learning_rate("linear", 1.0, 10, 11)
    with pytest.raises(UserError, match="unknown schedule 'cosine'"):
        optim.learning_rate("cosine", 1.0, 10, 1)


_FEED_FORWARD = "bert/encoder/layer_0/feed_forward"
OUR_PATHS = {
    "bert/embeddings/word_embeddings": "bert/embeddings/word_embeddings",
    "bert/embeddings/LayerNorm/gamma": "bert/embeddings/layer_norm/scale",
    "bert/encoder/layer_0/output/dense/kernel": f"{_FEED_FORWARD}/output/kernel",
    "bert/encoder/layer_0/output/dense/bias": f"{_FEED_FORWARD}/output/bias",
    "bert/encoder/layer_0/output/LayerNorm/beta": f"{_FEED_FORWARD}/layer_norm/bias",
    "output_weights": "classifier/kernel",
    "output_bias": "classifier/bias",
}


@pytest.mark.parametrize("b2", ["0.999", "0.98"])
def test_recorded_updates(shared, b2):
    folder = shared / "fixtures/schedule_and_optimizer"
    recorded = np.load(folder / f"adam_beta2_{b2}.npz")
    case = json.loads((folder / "parameters.json").read_text())["optimizer"][b2]
    schedule = optim.learning_rate(
        "original", case["init_lr"], case["num_train_steps"], case["num_warmup_steps"]
    )
    optimizer = optim.adamw(schedule, b2=float(b2))

    def tree(kind, row):
        return nest({OUR_PATHS[name]: recorded[f"{kind}|{name}"][row] for name in case["names"]})

    params = tree("param", 0)
    decayed = flatten(optim.decayed(params))
    assert {n for n in case["names"] if decayed[OUR_PATHS[n]]} == set(case["decayed"])
    state = optimizer.init(params)
    for step in range(case["steps"]):
        gradients = tree("grad", step)
        norm = optax.tree.norm(gradients)
        assert norm == pytest.approx(recorded["gradient_global_norm"][step], rel=1e-5)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        expected = flatten(tree("param", step + 1))
        for path, value in flatten(params).items():
            np.testing.assert_allclose(value, expected[path], rtol=0, atol=5e-7, err_msg=path)


def test_recorded_training_run(shared, agree):
    """The original's masked-LM training: losses, gradient norms, and every final variable."""
    folder = shared / "fixtures/tf_bert_original"
    config = ModelConfig.from_tf_bert(folder / "bert_config.json")
    params, dropped = tf_bert.load(folder / "bert_model.ckpt", config)
    assert "global_step" in dropped
    recorded = np.load(folder / "train.npz")
    schedule = optim.learning_rate(
        "original",
        float(recorded["init_lr"]),
        int(recorded["num_train_steps"]),
        int(recorded["num_warmup_steps"]),
    )
    optimizer = optim.adamw(schedule, b2=0.999, frozen=NEXT_SENTENCE_ONLY)
    mesh = make_mesh("data=1")
    state = TrainState(np.int32(0), params, optimizer.init(params))
    state = jax.device_put(state, state_shardings(state, mesh))
    step_function = jax.jit(
        lambda state, batch: train_step(
            state,
            batch,
            model=PretrainingModel(config),
            optimizer=optimizer,
            key=jax.random.key(0),
            next_sentence=False,
        )
    )
    for i, expected in enumerate(recorded["losses"]):
        batch = {
            name: recorded[f"{name}_{i}"]
            for name in (
                "input_ids", "segment_ids", "masked_lm_positions", "masked_lm_ids",
                "masked_lm_weights", "next_sentence_labels",
            )
        }  # fmt: skip
        mask = recorded[f"input_mask_{i}"]
        batch["document_ids"] = mask
        batch["position_ids"] = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
        batch["next_sentence_weights"] = np.zeros(len(mask), np.float32)
        state, sums = step_function(state, batch)
        loss = sums["masked_lm_loss_sum"] / (sums["masked_lm_weight_sum"] + 1e-5)
        agree("losses of a training run, relative", loss, expected, 1e-5, relative=True)
        norm = recorded["gradient_norm"][i]
        what = "norms of its gradients, relative"
        agree(what, sums["gradient_norm"], norm, 1e-5, relative=True)
    expected_params, _ = tf_bert.load(folder / "trained.ckpt", config)
    expected = flatten(expected_params)
    for path, value in flatten(state.params).items():
        agree("every variable after it", value, expected[path], 1e-5, part=path)


def test_frozen_parameters_have_no_slots_and_do_not_decay():
    params = {"bert": {"pooler": {"kernel": np.ones((2, 2), np.float32)}},
              "masked_lm": {"transform": {"kernel": np.ones((2, 2), np.float32)}}}  # fmt: skip
    optimizer = optim.adamw(lambda step: 0.1, b2=0.98, frozen=NEXT_SENTENCE_ONLY)
    state = optimizer.init(params)
    slots = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 2)]
    assert len(slots) == 2  # mu and nu of the trained one
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, state, params)
    assert (updates["bert"]["pooler"]["kernel"] == 0).all()
    np.testing.assert_allclose(updates["masked_lm"]["transform"]["kernel"], -0.001, rtol=1e-6)


def test_the_average_by_hand():
    """Against the rule computed in float64; what is frozen stays to the bit."""
    plain = optim.adamw(lambda step: 0.1, b2=0.98, frozen="^still")
    params = {"moves": jnp.array([1.0, -2.0]), "still": jnp.array([0.1, 0.7])}
    optimizer = optim.with_average(plain, 0.5)
    state, expected = optimizer.init(params), np.array([1.0, -2.0])
    for count in range(1, 20):
        updates, state = optimizer.update({"moves": params["moves"], "still": 0.3}, state, params)
        params = optax.apply_updates(params, updates)
        decay = min(0.5, count / (count + 9))
        expected = decay * expected + (1 - decay) * np.asarray(params["moves"], np.float64)
    average = optim.average_of(state)
    np.testing.assert_allclose(average["moves"], expected, rtol=1e-6)
    assert abs(average["moves"] - params["moves"]).min() > 0.01
    np.testing.assert_array_equal(average["still"], np.float32([0.1, 0.7]))

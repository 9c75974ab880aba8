"""Updates that are not finite, memory savers, LAMB, SIGTERM."""

from __future__ import annotations

import functools
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import arguments, metrics, micro_config, random_params
from test_run import assert_same_run, start_run

from clue_jax import optim
from clue_jax.checkpoint import load_params
from clue_jax.convert.merge import flatten
from clue_jax.errors import UserError
from clue_jax.files import read_json
from clue_jax.guard import SkipWatch
from clue_jax.model import PretrainingModel
from clue_jax.train_state import TrainState
from pretraining import run
from pretraining.evaluate import head_sums
from pretraining.step import train_step


def some_batch(rows: int = 8, length: int = 16, masked: int = 4, vocab: int = 60) -> dict:
    """Random rows; the first has one masked token, the others `masked`."""
    random = np.random.default_rng(0)
    ids = random.integers(5, vocab, (rows, length)).astype(np.int32)
    weights = np.ones((rows, masked), np.float32)
    weights[0, 1:] = 0
    return {
        "input_ids": ids,
        "document_ids": np.ones_like(ids),
        "segment_ids": np.zeros_like(ids),
        "position_ids": np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape),
        "masked_lm_positions": random.integers(0, length, (rows, masked)).astype(np.int32),
        "masked_lm_ids": random.integers(5, vocab, (rows, masked)).astype(np.int32),
        "masked_lm_weights": weights,
        "next_sentence_labels": random.integers(0, 2, rows).astype(np.int32),
        "next_sentence_weights": np.ones(rows, np.float32),
    }


@functools.cache
def parts(accumulate: int = 1, remat: bool = False):
    """The compiled step of a micro model without dropout, and its first state."""
    config = micro_config(60).without_dropout()
    model = PretrainingModel(config, remat=remat)
    optimizer = optim.adamw(lambda step: 1e-3, b2=0.98)
    params = jax.tree.map(jnp.asarray, random_params(config))
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    step = functools.partial(
        train_step, model=model, optimizer=optimizer, key=jax.random.key(0), next_sentence=True,
        accumulate=accumulate,
    )  # fmt: skip
    return jax.jit(step), state


# ---- Updates that are not finite -----------------------------------------------------------------


def test_an_update_that_is_not_finite_is_left_out():
    step, state = parts()
    batch = some_batch()
    bad = batch | {"masked_lm_weights": np.full_like(batch["masked_lm_weights"], np.inf)}
    after, sums = step(state, bad)
    assert float(sums["skipped"]) == 1
    assert float(sums["masked_lm_loss_sum"]) == 0
    assert int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
    good, sums = step(after, batch)
    assert float(sums["skipped"]) == 0
    assert not np.array_equal(
        good.params["bert"]["pooler"]["kernel"], state.params["bert"]["pooler"]["kernel"]
    )


def test_three_in_a_row_stop_a_run():
    watch = SkipWatch()
    skipped = {"skipped": np.float32(1)}
    fine = {"skipped": np.float32(0)}
    for step, sums in enumerate((skipped, skipped, fine, skipped, skipped, skipped), 1):
        watch.see(step, sums)
    with pytest.raises(UserError, match="not finite in steps 4 to 6; .* --learning-rate"):
        watch.see(7, fine)
    watch = SkipWatch()
    for start, flags in ((1, [0, 0, 0, 1]), (5, [1, 0, 1, 1]), (9, [1, 0, 0, 0])):
        watch.see(start, {"skipped": np.float32(flags)})
    with pytest.raises(UserError, match="not finite in steps 7 to 9;"):
        watch.see(13, fine)
    watch = SkipWatch()
    watch.see(1, {"skipped": np.float32([0, 1, 1, 1])})
    with pytest.raises(UserError, match="not finite in steps 2 to 4;"):
        watch.finish()  # the only call of a run
    watch.finish()  # nothing is left to look at


def test_a_run_that_comes_apart_stops_with_its_checkpoints(shards, micro_model, tmp_path):
    """A learning rate that is absurd from step 5 on."""
    output = tmp_path / "out"
    with pytest.raises(UserError, match="the gradient was not finite in steps"):
        run.main(
            arguments(shards, output, micro_model, steps=40, learning_rate=1e35, save_every=1,
                      warmup_steps=30, weight_decay=0, mesh="data=1")
        )  # fmt: skip
    _, step = load_params(output / "checkpoints")
    assert 0 < step < 40
    assert not (output / "model").exists()


def test_a_run_that_comes_apart_in_its_only_call_stops_too(shards, micro_model, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(UserError, match="the gradient was not finite in steps"):
        run.main(
            arguments(shards, output, micro_model, steps=16, steps_per_call=16, save_every=16,
                      log_every=16, learning_rate=1e35, warmup_steps=0, weight_decay=0,
                      mesh="data=1")
        )  # fmt: skip
    assert not (output / "model").exists()
    assert not list((output / "checkpoints").glob("[0-9]*"))


# ---- Memory savers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accumulate", "remat"),
    [(2, False), pytest.param(8, False, marks=pytest.mark.slow), (1, True), (4, True)],
)
def test_memory_savers_change_no_number(accumulate, remat):
    """Rows with unlike numbers of masks: the mean is over the batch, not over the parts."""
    plain, state = parts()
    other, _ = parts(accumulate, remat)
    batch = some_batch()
    expected, expected_sums = plain(state, batch)
    found, sums = other(state, batch)
    for name, value in expected_sums.items():
        assert float(sums[name]) == pytest.approx(float(value), rel=1e-5), name
    theirs = flatten(expected.opt_state[1].mu)
    for path, value in flatten(found.opt_state[1].mu).items():
        np.testing.assert_allclose(value, theirs[path], rtol=1e-4, atol=1e-8, err_msg=path)


def test_remat_keeps_less_for_the_backward_pass():
    batch = some_batch(rows=32, length=32)
    _, state = parts()

    def kept(remat: bool) -> int:
        """Bytes that the forward pass leaves for the backward pass."""
        model = PretrainingModel(micro_config(60).without_dropout(), remat=remat)

        def backward(params):
            return jax.vjp(lambda params: head_sums(model, params, batch), params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(backward, state.params))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    assert kept(remat=True) < 0.5 * kept(remat=False)


@pytest.mark.slow
def test_accumulation_needs_less_memory():
    """By the compiler's own account of the buffers in between."""

    def need(accumulate: int) -> int:
        step, state = parts(accumulate)
        compiled = step.lower(state, some_batch(rows=32, length=32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert need(8) < 0.8 * need(1)


def test_a_batch_that_accumulation_does_not_divide(shards, micro_model, tmp_path):
    with pytest.raises(UserError, match="--batch-size 8 is not a multiple of --accumulate 3 times"):
        run.main(arguments(shards, tmp_path, micro_model, accumulate=3, mesh="data=1"))


# ---- LAMB ----------------------------------------------------------------------------------------


def test_lamb_by_hand():
    """Two steps of algorithm 2 of the paper in numpy."""
    random = np.random.default_rng(0)
    params = {
        "dense": {
            "kernel": random.normal(size=(3, 4)).astype(np.float32),
            "bias": random.normal(size=4).astype(np.float32),
        }
    }
    optimizer = optim.lamb(lambda step: 0.1, b2=0.99, weight_decay=0.05, max_gradient_norm=1e9)
    state = optimizer.init(params)
    expected = {k: v.astype(np.float64) for k, v in params["dense"].items()}
    m = {k: np.zeros_like(v) for k, v in expected.items()}
    v = {k: np.zeros_like(w) for k, w in expected.items()}
    for t in (1, 2):
        gradients = {
            "dense": {
                k: random.normal(size=w.shape).astype(np.float32) for k, w in expected.items()
            }
        }
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, g in gradients["dense"].items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.99 * v[name] + 0.01 * g.astype(np.float64) ** 2
            update = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.99**t)) + 1e-6)
            if name == "kernel":
                update = update + 0.05 * expected[name]
                update *= np.linalg.norm(expected[name]) / np.linalg.norm(update)
            expected[name] = expected[name] - 0.1 * update
    for name, value in expected.items():
        np.testing.assert_allclose(params["dense"][name], value, rtol=1e-5)


def test_lamb_and_a_profile_and_other_held_out_rows(shards, micro_model, tmp_path):
    output = tmp_path / "out"
    run.main([
        *arguments(shards, output, micro_model, steps=8, log_every=1, eval_every=8,
                   learning_rate=1e-2, mesh="data=1"),
        "--optimizer", "lamb",
        "--profile", str(tmp_path / "trace"), "--eval-data", str(shards),
    ])  # fmt: skip
    losses = [line["masked_lm_loss"] for line in metrics(output)]
    assert losses[-1] < losses[0]
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    rows = (output / "metrics.jsonl").read_text().split('"held_out/sequences": ')[1]
    # All rows, not the few held out.
    assert int(rows.split("}")[0].split(",")[0]) == read_json(shards / "manifest.json")["rows"]
    with pytest.raises(UserError, match="--eval-data needs --eval-every"):
        run.main(arguments(shards, tmp_path / "b", micro_model, eval_data=shards))
    with pytest.raises(UserError, match="--profile needs at least 8 steps to do"):
        run.main(arguments(shards, tmp_path / "c", micro_model, profile=tmp_path / "d"))


# ---- SIGTERM -------------------------------------------------------------------------------------


def test_sigterm_saves_the_step_and_leaves(shards, micro_model, tmp_path):
    options = {"steps": 40, "save_every": 1000, "mesh": "data=2"}
    run.main(arguments(shards, tmp_path / "whole", micro_model, **options))
    output = tmp_path / "stopped"
    process = start_run(arguments(shards, output, micro_model, **options))
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() or not metrics(output):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert process.wait(timeout=30) == 143
    seconds = time.monotonic() - started
    print(f"left {seconds:.1f} s after SIGTERM")
    assert seconds < 30
    (step,) = (int(path.name) for path in (output / "checkpoints").iterdir())
    assert 2 <= step < 40
    assert start_run(arguments(shards, output, micro_model, **options)).wait() == 0
    assert_same_run(output, tmp_path / "whole", 40)

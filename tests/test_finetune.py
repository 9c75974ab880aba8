"""Fine-tuning: the original's trajectory, the loop end to end, resuming, refusals."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from clue_jax import optim
from clue_jax.convert import source
from clue_jax.model import ClassificationModel
from clue_jax.train_state import TrainState
from finetune import run

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
            run.train_step, model=model, optimizer=optimizer, key=jax.random.key(0), kind="single",
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
    np.testing.assert_allclose(
        eval_logits(state.params), expected["eval_logits_after"], atol=1e-4
    )
    kernel = state.params["classifier"]["kernel"]
    final = next(v for k, v in expected.items() if k.startswith("final") and "output_weights" in k)
    np.testing.assert_allclose(kernel.T, final, atol=1e-5)

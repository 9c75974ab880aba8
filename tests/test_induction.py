"""First weights with induction heads: where they look, what they find, and whom they refuse."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from conftest import arguments, micro_config

from clue_jax import sharding
from clue_jax.config import PRESETS
from clue_jax.convert import merge, model_dir
from clue_jax.errors import UserError
from clue_jax.model import PretrainingModel
from clue_jax.model.encoder import Bert
from pretraining import run
from pretraining.induction import check, induction_params
from pretraining.start import random_params

MASK, FIRST = 103, 200
KEY = jax.random.key(0)


def config(**changes):
    sizes = {"hidden_size": 128, "num_attention_heads": 8, "intermediate_size": 128}
    return micro_config(1000, **sizes, max_position_embeddings=128, **changes)


def params_of(given):
    model = PretrainingModel(given)
    return jax.jit(lambda: induction_params(random_params(model, KEY), given, KEY))()


@pytest.fixture(scope="module")
def twice():
    """Rows of random words that are said twice; in the first half every eighth is masked."""
    said = np.random.default_rng(0).integers(FIRST, 1000, (16, 40))
    ids = np.concatenate([said, said], axis=1)
    masked = ids.copy()
    masked[:, 4:40:8] = MASK
    return said, masked


@pytest.fixture(scope="module")
def params():
    return params_of(config())


def attention(params, layer: int, x: np.ndarray) -> np.ndarray:
    """[B, N, T, S] by the formula, of the first weights, which have no biases."""
    kernels = params["bert"]["encoder"][f"layer_{layer}"]["attention"]
    query, key = (
        (np.asarray(x) @ np.asarray(kernels[name]["kernel"])).reshape(*x.shape[:2], 8, 16)
        for name in ("query", "key")
    )
    scores = np.exp(np.einsum("BTNH,BSNH->BNTS", query, key) / 4)
    return scores / scores.sum(-1, keepdims=True)


def test_heads_look_where_they_should(params, twice):
    said, masked = twice
    out = Bert(config().without_dropout()).apply(
        {"params": params["bert"]}, masked, np.ones_like(masked), np.zeros_like(masked)
    )
    weights = attention(params, 0, out.all_layers[0])
    for head, distance in enumerate((-1, 1, -2, 2)):
        looked = [weights[:, head, t, t + distance].mean() for t in range(2, 78)]
        assert min(looked) > 0.9, distance
    weights = attention(params, 1, out.all_layers[1])
    places = np.arange(12, 40, 8)  # masked, with two neighbours on either side
    for head in range(2, 8):  # those of more than one neighbour
        both = weights[:, head, places, places] + weights[:, head, places, places + 40]
        assert both.mean() > 0.7  # at itself and at the other place, of 80
        assert weights[:, head, places, places + 40].mean() > 0.2
    # What was copied is near to the word that is gone, of a thousand.
    words = np.asarray(params["bert"]["embeddings"]["word_embeddings"])
    scores = np.asarray(out.sequence_output)[:, places] @ words.T
    scores[:, :, MASK] = -np.inf
    assert (scores.argmax(-1) == said[:, places]).mean() > 0.3
    assert guessed(params, twice) > 0.05  # GELU leaves the head of the masked words a part of it


def guessed(params, twice) -> float:
    """Share of the masked words that a pretraining model of these parameters guesses."""
    said, masked = twice
    places = np.tile(np.arange(12, 40, 8), (len(said), 1))
    logits, _ = PretrainingModel(config().without_dropout()).apply(
        {"params": params}, masked, np.ones_like(masked), np.zeros_like(masked), places
    )
    logits = np.array(logits)
    logits[:, :, MASK] = -np.inf
    return (logits.argmax(-1) == said[:, places[0]]).mean()


def test_random_weights_find_nothing(twice):
    """The measure of the test above is not met by chance."""
    said, masked = twice
    params = random_params(PretrainingModel(config()), KEY)
    out = Bert(config().without_dropout()).apply(
        {"params": params["bert"]}, masked, np.ones_like(masked), np.zeros_like(masked)
    )
    places = np.arange(12, 40, 8)
    words = np.asarray(params["bert"]["embeddings"]["word_embeddings"])
    scores = np.asarray(out.sequence_output)[:, places] @ words.T
    scores[:, :, MASK] = -np.inf
    assert (scores.argmax(-1) == said[:, places]).mean() < 0.03
    assert guessed(params, twice) < 0.03


def test_the_weights_are_those_of_any_model():
    """The same names and shapes, no matter the mesh; what has no part in it is as it was drawn."""
    given = config(num_hidden_layers=3)
    drawn = merge.flatten(random_params(PretrainingModel(given), KEY))
    flat = merge.flatten(params_of(given))
    assert {k: v.shape for k, v in flat.items()} == {k: v.shape for k, v in drawn.items()}
    changed = {path for path in flat if not np.array_equal(flat[path], drawn[path])}
    embeddings = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    kernels = ("query", "key", "value", "output")
    assert changed == {
        *(f"bert/embeddings/{name}" for name in embeddings),
        *(f"bert/encoder/layer_{i}/attention/{name}/kernel" for i in range(2) for name in kernels),
        *(f"bert/encoder/layer_2/attention/{name}/kernel" for name in ("value", "output")),
        "masked_lm/transform/kernel",
    }

    def create():
        return induction_params(random_params(PretrainingModel(given), KEY), given, KEY)

    mesh = sharding.make_mesh("data=2,fsdp=4")
    shardings = sharding.state_shardings(jax.eval_shape(create), mesh)
    spread = merge.flatten(jax.jit(create, out_shardings=shardings)())
    assert not spread["masked_lm/transform/kernel"].sharding.is_fully_replicated
    for path, array in spread.items():
        np.testing.assert_allclose(array, flat[path], atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 1}, {"num_attention_heads": 4}, {"hidden_size": 24}],
)
def test_too_small_a_model(changes):
    sizes = {"hidden_size": 128, "num_attention_heads": 8, "intermediate_size": 128, **changes}
    with pytest.raises(UserError, match="--initial-weights induction needs two layers and 8 heads"):
        check(micro_config(1000, **sizes))


def test_the_option(shards, micro_model, tmp_path, monkeypatch):
    """A run begins with them and goes on from its checkpoint; a model of --init has weights."""
    monkeypatch.setitem(PRESETS, "tiny", config())
    options = {"preset": "tiny", "initial_weights": "induction", "learning_rate": 1e-12}
    given = arguments(shards, tmp_path / "run", None, steps=1, warmup_steps=0, **options)
    run.main(given)
    words = model_dir.load(tmp_path / "run" / "model").params["bert"]["embeddings"]
    is_used = np.abs(words["word_embeddings"]).max(0) > 1e-6
    assert is_used[:10].all() and not is_used[-10:].any()  # words have dimensions of their own
    with pytest.raises(UserError, match="holds a run with initial_weights 'induction', now"):
        run.main([*given, "--initial-weights", "random"])
    given = arguments(shards, tmp_path / "other", micro_model, initial_weights="induction")
    with pytest.raises(UserError, match="--initial-weights is for a model without --init"):
        run.main(given)
    assert not (tmp_path / "other").exists()

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_config, random_params
from make_golden_params import GOLDEN, shapes_of

from clue_jax import losses
from clue_jax.config import PRESETS, ModelConfig
from clue_jax.convert import names, tf_bert
from clue_jax.convert.merge import flatten
from clue_jax.data.batches import document_columns
from clue_jax.model import Bert, PretrainingModel
from clue_jax.model.layers import dropout
from pretraining.evaluate import head_sums

# Encoder with pooler, and with both heads: computed from the published sizes by
# V*D + 512*D + 2*D + 2*D + L*(4*D*D + 4*D + 2*D*F + F + D + 4*D) + D*D + D.
COUNTS = {
    "tiny": (7_449_936, 7_556_863),
    "tiny3l312": (6_277_752, 6_384_679),
    "tiny3l768": (28_410_624, 29_012_311),
    "base": (92_201_472, 92_803_159),
    "large": (312_100_864, 313_162_583),
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_paths_are_the_contract(name):
    """Checkpoints and forks know parameters by these names: see make_golden_params.py."""
    shapes = shapes_of(name)
    assert shapes == json.loads(GOLDEN.read_text())[name]
    assert {path: list(shape) for path, shape in names.shapes(PRESETS[name]).items()} == shapes
    encoder = sum(math.prod(shape) for path, shape in shapes.items() if path.startswith("bert/"))
    assert (encoder, sum(map(math.prod, shapes.values()))) == COUNTS[name]


@pytest.fixture(scope="module")
def original(shared):
    folder = shared / "fixtures/tf_bert_original"
    config = ModelConfig.from_tf_bert(folder / "bert_config.json")
    params, _ = tf_bert.load(folder / "bert_model.ckpt", config)
    return config, params, np.load(folder / "forward.npz")


def test_every_recorded_tensor_of_the_encoder(original, agree):
    config, params, recorded = original
    inputs = [recorded[f"in_{name}"] for name in ("input_ids", "input_mask", "segment_ids")]
    output = Bert(config).apply({"params": params["bert"]}, *inputs)
    agree("embeddings", output.all_layers[0], recorded["embedding_output"], 1e-5)
    for i in range(config.num_hidden_layers):
        agree("every layer", output.all_layers[i + 1], recorded[f"layer_{i}"], 1e-5)
    agree("every layer", output.sequence_output, recorded["sequence_output"], 1e-5)
    agree("pooler", output.pooled_output, recorded["pooled_output"], 1e-5)


def test_every_recorded_tensor_of_the_heads(original, agree):
    config, params, recorded = original
    inputs = [recorded[f"in_{name}"] for name in ("input_ids", "input_mask", "segment_ids")]
    masked_lm, next_sentence = PretrainingModel(config).apply(
        {"params": params}, *inputs, recorded["in_masked_lm_positions"]
    )
    log_probs = jax.nn.log_softmax(masked_lm).reshape(-1, config.vocab_size)
    agree("log-probabilities of masked tokens", log_probs, recorded["masked_lm_log_probs"], 1e-5)
    log_probs = jax.nn.log_softmax(next_sentence)
    what = "log-probabilities of the next sentence"
    agree(what, log_probs, recorded["next_sentence_log_probs"], 1e-5)
    sums = losses.cross_entropy(
        masked_lm, recorded["in_masked_lm_ids"], recorded["in_masked_lm_weights"]
    )
    agree("losses", losses.mean(sums), recorded["masked_lm_loss"], 1e-5)
    ones = np.ones(len(next_sentence))
    sums = losses.cross_entropy(next_sentence, recorded["in_next_sentence_labels"], ones)
    agree("losses", sums["loss_sum"] / len(ones), recorded["next_sentence_loss"], 1e-5)


@pytest.fixture(scope="module")
def micro():
    config = micro_config(50, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return config, random_params(config)


def test_packed_documents_do_not_see_each_other(micro):
    """A row of two documents gives each the numbers it has alone; a leak would show at once."""
    config, params = micro
    random = np.random.default_rng(0)
    a, b = random.integers(5, 50, 7), random.integers(5, 50, 5)

    def run(documents, length):
        ids = np.zeros((1, length), np.int32)
        joined = np.concatenate(documents)
        ids[0, : len(joined)] = joined
        starts = np.zeros((1, length), bool)
        starts[0, np.cumsum([0] + [len(d) for d in documents[:-1]])] = True
        columns = document_columns(starts, np.array([len(joined)]))
        documents_of = columns["document_ids"]
        mask = (documents_of[:, :, None] == documents_of[:, None, :]) & (documents_of > 0)[:, None]
        output = Bert(config).apply(
            {"params": params["bert"]},
            ids,
            mask,
            np.zeros_like(ids),
            columns["position_ids"],
        )
        return np.asarray(output.sequence_output[0, : len(joined)])

    packed = run([a, b], 16)
    np.testing.assert_allclose(packed[:7], run([a], 8), atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(packed[7:], run([b], 8), atol=1e-6, rtol=1e-6)
    changed = run([a, np.flip(b)], 16)
    np.testing.assert_array_equal(packed[:7], changed[:7])
    assert np.abs(packed[7:] - changed[7:]).max() > 1e-3


def test_rows_of_padding_give_no_nan(micro):
    config, params = micro
    ids = np.zeros((2, 8), np.int32)
    mask = np.array([[0] * 8, [1] + [0] * 7])
    output = Bert(config).apply({"params": params["bert"]}, ids, mask, ids)
    assert np.isfinite(output.sequence_output).all()


@pytest.mark.parametrize("tokens", [0, 1])
def test_rows_of_hardly_anything_give_finite_gradients(micro, tokens):
    """All padding, and a single token, which is masked."""
    config, params = micro
    batch = {
        name: np.zeros(shape, np.int32)
        for name, shape in {
            "input_ids": (2, 8), "document_ids": (2, 8), "position_ids": (2, 8),
            "segment_ids": (2, 8), "masked_lm_positions": (2, 3), "masked_lm_ids": (2, 3),
            "masked_lm_weights": (2, 3), "next_sentence_labels": (2,),
            "next_sentence_weights": (2,),
        }.items()
    }  # fmt: skip
    batch["document_ids"][:, :tokens] = 1
    batch["masked_lm_weights"][:, :tokens] = 1

    def loss(params):
        sums = head_sums(PretrainingModel(config), params, batch)
        return losses.mean({"loss_sum": sums["masked_lm_loss_sum"],
                            "weight_sum": sums["masked_lm_weight_sum"]})  # fmt: skip

    value, gradients = jax.value_and_grad(loss)(params)
    assert np.isfinite(value) and (value > 0) == (tokens > 0)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_bfloat16_is_close_and_keeps_float32_parameters(micro):
    config, params = micro
    ids = np.random.default_rng(1).integers(5, 50, (2, 16))
    mask, zeros = np.ones_like(ids), np.zeros_like(ids)
    exact, _ = PretrainingModel(config).apply({"params": params}, ids, mask, zeros, ids[:, :3] % 16)
    model = PretrainingModel(config, jnp.bfloat16)
    rounded, _ = model.apply({"params": params}, ids, mask, zeros, ids[:, :3] % 16)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.1
    fresh = model.init(jax.random.key(0), ids, mask, zeros, ids[:, :3] % 16)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {np.dtype("float32")}


def test_too_long_sequences_are_refused(micro):
    config, params = micro
    ids = np.zeros((1, config.max_position_embeddings + 1), np.int32)
    with pytest.raises(ValueError, match="65 tokens, but the model has position embeddings for 64"):
        Bert(config).apply({"params": params["bert"]}, ids, ids, ids)


def test_initial_weights_are_the_originals_distribution():
    config = micro_config(3000)
    ids = jnp.zeros((1, 4), jnp.int32)
    params = flatten(PretrainingModel(config).init(jax.random.key(0), ids, ids, ids, ids)["params"])
    words = params["bert/embeddings/word_embeddings"]
    assert np.abs(words).max() <= 0.04  # cut at two deviations of 0.02
    # A standard normal cut at 2 has deviation 0.8796.
    assert np.std(words) == pytest.approx(0.02 * 0.8796, rel=0.01)
    for path, value in params.items():
        if path.endswith("bias"):
            assert (np.asarray(value) == 0).all()
        if path.endswith("scale"):
            assert (np.asarray(value) == 1).all()


def test_a_model_of_one_segment_kind_takes_pairs_as_that_kind():
    config = micro_config(50, type_vocab_size=1).without_dropout()
    params = {"params": random_params(config)}
    ids = jnp.arange(8).reshape(1, 8) + 5
    ones = jnp.ones_like(ids)
    of = [PretrainingModel(config).apply(params, ids, ones, kind, ids[:, :2] * 0)[0]
          for kind in (0 * ones, ones)]  # fmt: skip
    np.testing.assert_array_equal(*of)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("shape", [(64, 64), (100, 37), (3, 5, 7, 1), (2, 3, 20, 30)])
def test_dropout_drops_its_share_and_keeps_the_mean(shape, kind):
    x = jnp.ones(shape)
    drawn = np.stack([dropout(x, 0.1, jax.random.key(i, impl=kind)) for i in range(60)])
    share = 26 / 256
    assert set(np.unique(drawn)) <= {0.0, np.float32(1 / (1 - share))}
    n = drawn.size
    assert (drawn == 0).mean() == pytest.approx(share, abs=4 * (share / n) ** 0.5)
    # Each element on its own, and neighbours independently of each other.
    flat = (drawn == 0).reshape(60, -1)
    together = (flat[:, 1:] & flat[:, :-1]).mean()
    assert together == pytest.approx(share**2, abs=6 * share / flat[:, 1:].size ** 0.5)

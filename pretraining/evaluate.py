"""Masked-LM accuracy and loss of a model on all records of a data folder."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

from clue_jax import distributed, losses
from clue_jax.config import ModelConfig
from clue_jax.convert import merge, model_dir
from clue_jax.convert.names import shapes
from clue_jax.data.batches import Batch, stream
from clue_jax.errors import UserError, run_command
from clue_jax.model import PretrainingModel
from clue_jax.sharding import check_batch_size, make_mesh, replicated, state_shardings
from clue_jax.train_state import compute_dtype
from pretraining.examples import Examples
from pretraining.masking import Masking


@dataclass(frozen=True)
class Settings:
    """Evaluates a model directory on pretraining shards, every record once."""

    model: str
    """Model directory."""
    data: str
    """Folder of shards, such as DATA/held-out."""
    batch_size: int = 32
    """B, rows a step over all devices; the last batch is padded and the padding not counted."""
    mesh: str | None = None
    """Devices, such as data=8 (default: all on data)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the computation (default: float32 on CPU, bfloat16 elsewhere)."""
    masking: Literal["whole-word", "token"] = "whole-word"
    """How masks are drawn if the shards have none fixed."""
    masked_lm_prob: float = 0.15
    """Share of tokens to mask."""
    max_predictions: int | None = None
    """M, masked slots a row (default: as many as that share of T needs, 20 at T=128)."""
    mask_seed: int = 0
    """Of the drawn masks: the same seed gives the same masks."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    mesh = make_mesh(settings.mesh)
    loaded = model_dir.load(settings.model)
    if "masked_lm" not in loaded.params:
        raise UserError(f"{settings.model}: has no masked-LM head")
    masking = Masking(settings.masking, settings.masked_lm_prob, settings.max_predictions)
    examples = Examples(settings.data, loaded.tokenizer, masking, settings.mask_seed)
    check_fit(examples, loaded.config)
    params = complete(loaded.params, loaded.config)
    params = jax.device_put(params, state_shardings(params, mesh))
    model = PretrainingModel(loaded.config.without_dropout(), compute_dtype(settings.dtype))
    result = evaluate(model, params, examples, settings.batch_size, mesh)
    if "next_sentence" not in loaded.params:
        result = {k: v for k, v in result.items() if not k.startswith("next_sentence")}
    print(json.dumps(result))
    return result


def evaluate(
    model: PretrainingModel, params: Any, examples: Examples, batch_size: int, mesh: Mesh
) -> dict[str, Any]:
    """Exact sums over all records; the last batch is padded with rows of weight 0.

    Returns:
      "masked_lm_accuracy", "masked_lm_loss" (nats), "predictions", "sequences", for sentence pairs
      "next_sentence_accuracy" and "next_sentence_loss", and "most_frequent_token_accuracy": that of
      always answering the commonest label.
    """
    check_batch_size(batch_size, mesh)
    sums: dict[str, Any] = defaultdict(np.float64)
    places = distributed.own_rows(batch_size, mesh)
    for batch in stream(
        lambda i: _padded_batch(examples, i * batch_size + places),
        0,
        -(-len(examples) // batch_size),
    ):
        placed = distributed.put_rows(batch, batch_size, mesh)
        for name, value in jax.device_get(
            eval_step(params, placed, model=model, mesh=mesh)
        ).items():
            sums[name] += np.asarray(value, np.float64)
    predictions = int(sums["masked_lm_weight_sum"])
    result = {
        "masked_lm_accuracy": sums["masked_lm_correct_sum"] / max(1, predictions),
        "masked_lm_loss": sums["masked_lm_loss_sum"] / max(1, predictions),
        "predictions": predictions,
        "sequences": len(examples),
        "most_frequent_token_accuracy": float(sums["labels"].max()) / max(1, predictions),
    }
    pairs = sums["next_sentence_weight_sum"]
    if pairs:
        result["next_sentence_accuracy"] = sums["next_sentence_correct_sum"] / pairs
        result["next_sentence_loss"] = sums["next_sentence_loss_sum"] / pairs
    return result


@functools.partial(jax.jit, static_argnames=("model", "mesh"))
def eval_step(
    params: Any, batch: Batch, *, model: PretrainingModel, mesh: Mesh
) -> dict[str, jax.Array]:
    """Sums of one batch, dropout off, and "labels" [V]: how often each token is the answer."""
    counts = jnp.zeros(model.config.vocab_size)
    counts = counts.at[batch["masked_lm_ids"]].add(batch["masked_lm_weights"])
    sums = head_sums(model, params, batch) | {"labels": counts}
    return jax.lax.with_sharding_constraint(sums, replicated(mesh))


def head_sums(
    model: PretrainingModel, params: Any, batch: Batch, dropout_key: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Loss sums and counts of both heads, as "masked_lm_loss_sum" and so on, float32 scalars."""
    documents = batch["document_ids"]
    mask = (documents[:, :, None] == documents[:, None, :]) & (documents[:, None, :] > 0)
    masked_lm, next_sentence = model.apply(
        {"params": params},
        batch["input_ids"],
        mask,
        batch["segment_ids"],
        batch["masked_lm_positions"],
        batch["position_ids"],
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )
    sums = {}
    for head, logits in (("masked_lm", masked_lm), ("next_sentence", next_sentence)):
        labels = "ids" if head == "masked_lm" else "labels"
        head_result = losses.cross_entropy(
            logits, batch[f"{head}_{labels}"], batch[f"{head}_weights"]
        )
        sums |= {f"{head}_{name}": value for name, value in head_result.items()}
    return sums


def _padded_batch(examples: Examples, rows: np.ndarray) -> Batch:
    """These rows; behind the last come repeats of it, with weight 0."""
    batch = examples.batch(np.minimum(rows, len(examples) - 1))
    is_real = rows < len(examples)
    masked_lm = batch["masked_lm_weights"] * is_real[:, None]
    next_sentence = batch["next_sentence_weights"] * is_real
    return batch | {
        "masked_lm_weights": masked_lm.astype(np.float32),
        "next_sentence_weights": next_sentence.astype(np.float32),
    }


def check_fit(examples: Examples, config: ModelConfig) -> None:
    """Refuses rows longer than the model's positions, and pairs for a model of one segment kind.

    Raises:
      UserError: with both numbers.
    """
    if examples.seq_len > config.max_position_embeddings:
        raise UserError(
            f"{examples.directory}: rows of {examples.seq_len} slots, but the model has "
            f"{config.max_position_embeddings} positions"
        )
    if config.type_vocab_size < 2 and examples.batch(np.arange(1))["segment_ids"].any():
        raise UserError(
            f"{examples.directory}: holds sentence pairs, but the model has only "
            f"{config.type_vocab_size} segment kind"
        )


def complete(params: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The pretraining parameters alone, with zeros for a pooler or next-sentence head that is
    missing; what those give is not reported."""
    flat = merge.flatten(params)
    wanted = shapes(config)
    zeros = {path: np.zeros(shape, np.float32) for path, shape in wanted.items()}
    return merge.nest({path: flat.get(path, zeros[path]) for path in wanted})


if __name__ == "__main__":
    run_command(main)

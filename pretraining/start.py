"""What a run of pretraining starts from: its model, the sizes, the first parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clue_jax import distributed, zoo
from clue_jax.config import PRESETS, ModelConfig
from clue_jax.convert import merge
from clue_jax.convert.loaded import LoadedModel
from clue_jax.errors import UserError
from clue_jax.model import PretrainingModel
from pretraining.evaluate import check_fit
from pretraining.examples import Examples
from pretraining.settings import Settings


def initial_model(settings: Settings) -> LoadedModel | None:
    """The model of --init, with a vocabulary."""
    if settings.init is None:
        return None
    if zoo.find_model(settings.init) and not Path(settings.init).exists():
        initial = zoo.load(settings.init)
    else:
        initial = zoo.read(settings.init)
        if initial.tokenizer is None and settings.vocab:
            initial = zoo.read(settings.init, vocab=settings.vocab)
    if initial.tokenizer is None:
        raise UserError(f"{settings.init}: has no vocabulary; name it with --vocab")
    return initial


def model_config(
    settings: Settings, initial: LoadedModel | None, examples: Examples
) -> ModelConfig:
    """The size of the model: of --init, or the preset with the vocabulary in use."""
    vocab_size = examples.tokenizer.vocab_size
    config = initial.config if initial else PRESETS[settings.preset].replace(vocab_size=vocab_size)
    if initial:
        known, wanted = initial.tokenizer.vocabulary, examples.tokenizer.vocabulary
        for number, (old, new) in enumerate(zip(known, wanted, strict=False), 1):
            if old != new:
                raise UserError(
                    f"{examples.tokenizer.vocab_file}, line {number}: {new!r}, but the vocabulary "
                    f"of {settings.init} has {old!r} there; new entries may only follow the old"
                )
        config = config.replace(vocab_size=max(config.vocab_size, vocab_size))
    if settings.dropout is not None:
        config = config.replace(
            hidden_dropout_prob=settings.dropout, attention_probs_dropout_prob=settings.dropout
        )
    if config.vocab_size != vocab_size:
        raise UserError(
            f"{settings.init}: the model has {config.vocab_size} vocabulary entries, "
            f"{examples.tokenizer.vocab_file} has {vocab_size}"
        )
    if settings.seq_len not in (None, examples.seq_len):
        raise UserError(
            f"--seq-len {settings.seq_len}, but {examples.directory} holds rows of "
            f"{examples.seq_len} slots"
        )
    if settings.next_sentence and not examples.batch(np.arange(1))["next_sentence_weights"].any():
        raise UserError(f"--next-sentence needs sentence pairs; {examples.directory} holds none")
    check_fit(examples, config)
    return config


def random_params(model: PretrainingModel, key: jax.Array) -> Any:
    """Initial weights, as the original draws them."""
    ids = jnp.zeros((1, 8), jnp.int32)
    return model.init(key, ids, ids, ids, ids[:, :1])["params"]


def starting_params(drawn: Any, given: Any, mesh: Mesh) -> Any:
    """The parameters of a model to start from, in float32.

    A head of another task is left behind; what the model lacks keeps its random values, and so do
    the entries behind the end of its vocabulary.

    Args:
      drawn: random ones, all that the run has.
      given: the model's.
      mesh: where the random ones lie.
    """
    drawn = merge.flatten(distributed.to_host(drawn, mesh))
    given = merge.flatten(given)

    def start(path: str, random: np.ndarray) -> np.ndarray:
        array = np.asarray(given.get(path, random), np.float32)
        if len(array) < len(random) and array.shape[1:] == random.shape[1:]:
            array = np.concatenate([array, random[len(array) :]])
        return array

    return merge.nest({path: start(path, random) for path, random in drawn.items()})

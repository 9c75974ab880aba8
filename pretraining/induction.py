"""First weights with which attention looks words up by their neighbours: induction heads.

A model learns late, and on two CPU cores hardly at all, to guess a masked word from another place
where the same words stand around it. It needs two layers that fit each other for it: one brings
each position the words beside it, the next looks for positions with the same words beside them and
copies the word that stands there. Here both have it from the start; training goes on from there,
and may change every weight. Such heads are found in trained models (Elhage et al., "A Mathematical
Framework for Transformer Circuits", 2021; Olsson et al., "In-context Learning and Induction
Heads", 2022); to begin with attention like that of trained models is an idea of Trockman and
Kolter, "Mimetic Initialization of Self-Attention Layers", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clue_jax.config import ModelConfig
from clue_jax.convert import merge
from clue_jax.errors import UserError

_NEIGHBOURS = (-1, 1, -2, 2)  # what the first heads of layer 0 bring
# What the first heads of layer 1 compare: the words at these distances.
_LOOK_UPS = ((-1,), (1,), (-1, 1), (-1, 1), (-2, -1), (1, 2), _NEIGHBOURS, _NEIGHBOURS)
_FASTEST, _SLOWEST = 2.5, 2.5 / 150  # radians a position: a sinusoid's wave is 2.5 to 377 long
_OF_WIDTH = 0.074  # sinusoids, twice that many of the D dimensions


@dataclass(frozen=True)
class _Places:
    """Where in the residual stream things stand at first: words, then a place of H dimensions for
    each neighbour, sines, cosines, kinds of segment.

    Attributes:
      words: dimensions of a word's own embedding.
      neighbours: distance -> first dimension.
      sines, cosines: first dimension; rates: radians a position.
      kinds: first dimension.
    """

    words: int
    neighbours: dict[int, int]
    sines: int
    cosines: int
    rates: np.ndarray
    kinds: int


def check(config: ModelConfig) -> None:
    """Refuses a model too small for it.

    Raises:
      UserError: saying what it needs.
    """
    _places(config)


def induction_params(params: Any, config: ModelConfig, key: jax.Array) -> Any:
    """Random parameters with induction heads set into the first two layers.

    Args:
      params: of a pretraining model, as the original draws them. They stay but for the
        embeddings, the attention of the first two layers, the kernels of values and outputs of
        all layers (larger in models narrower than 768) and the transform of the masked words.
      config: of the model; two layers and eight heads at least.
      key: of the random projections.

    Raises:
      UserError: for a model too small for it.
    """
    places = _places(config)
    heads, size, width = config.num_attention_heads, config.head_size, config.hidden_size
    flat = merge.flatten(params)
    flat |= _embeddings(flat, config, places, key)

    def look(layer: int, name: str) -> str:
        return f"bert/encoder/layer_{layer}/attention/{name}/kernel"

    # The original's deviation suits a width of 768 and lets little through in narrower models.
    for layer in range(config.num_hidden_layers):
        for name in ("value", "output"):
            flat[look(layer, name)] *= max(1.0, (768 / width) ** 0.5)
    for layer, made in enumerate((_bring(config, places, key), _compare(config, places, key))):
        of_layer = {name: flat[look(layer, name)] for name in ("query", "key", "value")}
        split = {name: array.reshape(width, heads, size) for name, array in of_layer.items()}
        split["output"] = flat[look(layer, "output")].reshape(heads, size, width)
        for head, kernels in enumerate(made):
            for name, kernel in kernels.items():
                place = head if name == "output" else (slice(None), head)
                split[name] = split[name].at[place].set(kernel)
        for name, array in split.items():
            flat[look(layer, name)] = array.reshape(width, width)
    # What the layers copied is scored against the embeddings nearly as it is; GELU weakens what
    # is negative.
    flat["masked_lm/transform/kernel"] += jnp.eye(width)
    return merge.nest(flat)


def _places(config: ModelConfig) -> _Places:
    size = config.head_size
    sinusoids = max(size // 2, round(_OF_WIDTH * config.hidden_size))
    kinds = config.hidden_size - config.type_vocab_size
    sines = kinds - 2 * sinusoids
    words = sines - len(_NEIGHBOURS) * size
    is_fit = config.num_hidden_layers >= 2 and config.num_attention_heads >= len(_LOOK_UPS)
    if not is_fit or size % 2:
        raise UserError(
            f"--initial-weights induction needs two layers and {len(_LOOK_UPS)} heads of an even "
            f"size; the model has {config.num_hidden_layers} layers and "
            f"{config.num_attention_heads} heads of {size}"
        )
    neighbours = {distance: words + i * size for i, distance in enumerate(_NEIGHBOURS)}
    rates = np.geomspace(_FASTEST, _SLOWEST, sinusoids)
    return _Places(words, neighbours, sines, sines + sinusoids, rates, kinds)


def _embeddings(
    flat: dict[str, jax.Array], config: ModelConfig, places: _Places, key: jax.Array
) -> dict[str, jax.Array]:
    """Words, positions and kinds of segment in dimensions of their own; as large as each other, as
    the LayerNorm over all of them asks for."""
    table = {name: f"bert/embeddings/{name}_embeddings" for name in ("word", "position")}
    kinds = "bert/embeddings/token_type_embeddings"
    scale = 2 * config.initializer_range
    shape = (config.vocab_size, places.words)
    words = jax.random.normal(jax.random.fold_in(key, 1), shape) * scale
    angles = np.arange(config.max_position_embeddings)[:, None] * places.rates
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1) * scale * np.sqrt(2)
    signs = (2 * np.eye(config.type_vocab_size) - 1) * scale
    return {
        table["word"]: jnp.zeros_like(flat[table["word"]]).at[:, : places.words].set(words),
        table["position"]: jnp.zeros_like(flat[table["position"]])
        .at[:, places.sines : places.kinds]
        .set(waves),
        kinds: jnp.zeros_like(flat[kinds]).at[:, places.kinds :].set(signs),
    }


def _bring(config: ModelConfig, places: _Places, key: jax.Array) -> list[dict[str, jax.Array]]:
    """Kernels of layer 0: a head for each neighbour, then heads that look for the same word."""
    width, size = config.hidden_size, config.head_size
    half = size // 2
    waves, sharp = np.arange(half), 1.3  # 0.99 of the attention goes to the neighbour
    made = []
    for i, (distance, target) in enumerate(places.neighbours.items()):
        cos, sin = np.cos(distance * places.rates[:half]), np.sin(distance * places.rates[:half])
        asks, offers, writes = (np.zeros((width, size)) for _ in range(3))
        asks[places.sines + waves, waves] = asks[places.cosines + waves, half + waves] = sharp
        # Turned back by the distance: the neighbour offers what this position asks for.
        offers[places.sines + waves, waves] = offers[places.cosines + waves, half + waves] = (
            sharp * cos
        )
        offers[places.cosines + waves, waves] = -sharp * sin
        offers[places.sines + waves, half + waves] = sharp * sin
        writes[target + np.arange(size), np.arange(size)] = 1
        value = _of_words(config, places, jax.random.fold_in(key, 10 + i))
        made.append({"query": asks, "key": offers, "value": value, "output": writes.T})
    for i in range(config.num_attention_heads // 2 - 1):
        same = 1.1 * _of_words(config, places, jax.random.fold_in(key, 20 + i))
        made.append({"query": same, "key": same})
    return made


def _compare(config: ModelConfig, places: _Places, key: jax.Array) -> list[dict[str, jax.Array]]:
    """Kernels of layer 1: each head looks for positions with the same neighbours and copies a part
    of the word there."""
    width, size = config.hidden_size, config.head_size
    sharp = 1.3 * (26 / size) ** 0.25  # equal scores for heads of any size
    made = []
    for i, distances in enumerate(_LOOK_UPS):
        share = size // len(distances)
        same = jnp.zeros((width, size))
        for j, distance in enumerate(distances):
            turn = jax.random.orthogonal(jax.random.fold_in(key, 100 + 10 * i + j), size)
            first = places.neighbours[distance]
            same = same.at[first : first + size, j * share : (j + 1) * share].set(turn[:, :share])
        words = jax.random.orthogonal(jax.random.fold_in(key, 200 + i), places.words)[:, :size]
        copied = jnp.zeros((width, size)).at[: places.words].set(words)
        same = sharp * same
        made.append({"query": same, "key": same, "value": copied, "output": 1.5 * copied.T})
    return made


def _of_words(config: ModelConfig, places: _Places, key: jax.Array) -> jax.Array:
    """A random projection of a word's own embedding, [D, H]."""
    kernel = jax.random.normal(key, (places.words, config.head_size)) * places.words**-0.5
    return jnp.zeros((config.hidden_size, config.head_size)).at[: places.words].set(kernel)

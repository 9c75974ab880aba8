"""The BERT encoder: embeddings, layers and pooler."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from clue_jax.config import ModelConfig
from clue_jax.model.layers import (
    MASK_BIAS,
    Dropout,
    FeedForward,
    SelfAttention,
    by_parts,
    dense,
    initializer,
    layer_norm,
)


class EncoderOutput(NamedTuple):
    """What the encoder gives.

    Attributes:
      sequence_output: [B, T, D], the last layer.
      pooled_output: [B, D], tanh of a dense layer on the first position; None if the parameters
        hold no pooler.
      all_layers: L + 1 arrays [B, T, D], the embeddings first. Under `jax.jit` those that are not
        used cost nothing.
    """

    sequence_output: jax.Array
    pooled_output: jax.Array | None
    all_layers: tuple[jax.Array, ...]


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings, LayerNorm, dropout. [B, T] -> [B, T, D].

    The words' is kept as [P, V, D], a copy for each of `parts` parts of the batch, see `Bert`.
    """

    config: ModelConfig
    dtype: jnp.dtype
    parts: int = 1

    def setup(self) -> None:
        config, init = self.config, initializer(self.config)
        width = config.hidden_size
        words = self.param("word_embeddings", init, (config.vocab_size, width))
        self.word_embeddings = jnp.broadcast_to(words, (self.parts, *words.shape))
        self.position_embeddings = self.param(
            "position_embeddings", init, (config.max_position_embeddings, width)
        )
        self.token_type_embeddings = self.param(
            "token_type_embeddings", init, (config.type_vocab_size, width)
        )
        self.layer_norm = layer_norm(config, self.dtype, name=None)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: jax.Array,
        segment_ids: jax.Array,
        position_ids: jax.Array | None,
        deterministic: bool,
    ) -> jax.Array:
        length = input_ids.shape[1]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"sequences of {length} tokens, but the model has position embeddings for "
                f"{self.config.max_position_embeddings}"
            )
        if position_ids is None:
            positions = self.position_embeddings[:length]
        else:
            positions = _rows(self.position_embeddings, position_ids)
        # A product, since the gradient of picking rows is added row by row on a TPU.
        count = self.config.type_vocab_size
        kinds = jax.nn.one_hot(jnp.clip(segment_ids, 0, count - 1), count, dtype=jnp.float32)
        types = jnp.matmul(kinds, self.token_type_embeddings, precision=jax.lax.Precision.HIGHEST)
        x = by_parts(_rows, self.word_embeddings, input_ids) + types + positions
        return self.dropout(self.layer_norm(x.astype(self.dtype)), deterministic)


def _rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table; who makes the batch has checked that the ids are within it."""
    return jnp.take(table, ids, axis=0, mode="clip")


class Encoder(nn.Module):
    """L layers of attention and feed-forward."""

    config: ModelConfig
    dtype: jnp.dtype
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, deterministic: bool) -> tuple[jax.Array, ...]:
        outputs = [x]
        # The last argument, deterministic, is a Python value; 0 counts the module itself.
        kind = nn.remat(EncoderLayer, static_argnums=(3,)) if self.remat else EncoderLayer
        for i in range(self.config.num_hidden_layers):
            layer = kind(self.config, self.dtype, name=f"layer_{i}")
            outputs.append(layer(outputs[-1], bias, deterministic))
        return tuple(outputs)


class EncoderLayer(nn.Module):
    """One layer. [B, T, D] -> [B, T, D]."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, deterministic: bool) -> jax.Array:
        x = SelfAttention(self.config, self.dtype, name="attention")(x, bias, deterministic)
        return FeedForward(self.config, self.dtype, name="feed_forward")(x, deterministic)


class Bert(nn.Module):
    """The encoder with its embeddings and pooler.

    Args:
      config: the sizes.
      dtype: of the computation; parameters are float32.
      with_pooler: False for heads that have no use for it; new parameters then lack it.
      remat: what a layer made is computed anew in the backward pass, not kept.
      parts: of the batch, each of which sees a copy of the word embedding. The embedding gets
        gradients from the input and from the output; devices that have a part each add the two
        before they exchange the sum.
    """

    config: ModelConfig
    dtype: jnp.dtype = jnp.float32
    with_pooler: bool = True
    remat: bool = False
    parts: int = 1

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config, self.dtype, self.parts)
        self.encoder = Encoder(self.config, self.dtype, self.remat)
        if self.with_pooler:
            self.pooler = dense(self.config, self.config.hidden_size, self.dtype)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        segment_ids: jax.Array,
        position_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> EncoderOutput:
        """Encodes token ids.

        Args:
          input_ids: int32 [B, T].
          attention_mask: [B, T], nonzero for tokens that may be attended to; or [B, T, S], for
            each query on its own, which keeps documents packed in one row apart.
          segment_ids: int32 [B, T].
          position_ids: int32 [B, T]; 0..T-1 when absent.
          deterministic: no dropout. Otherwise `apply` needs `rngs={"dropout": key}`.

        Raises:
          ValueError: if T exceeds `max_position_embeddings`.
        """
        queries = (None, None) if attention_mask.ndim == 2 else (None,)
        mask = attention_mask[:, *queries]
        bias = (mask == 0) * jnp.float32(MASK_BIAS)
        x = self.embeddings(input_ids, segment_ids, position_ids, deterministic)
        all_layers = self.encoder(x, bias, deterministic)
        # Checkpoints that were made for masked-LM alone often lack the pooler.
        has_pooler = self.with_pooler and (
            self.is_initializing() or self.has_variable("params", "pooler")
        )
        pooled = jnp.tanh(self.pooler(all_layers[-1][:, 0])) if has_pooler else None
        return EncoderOutput(all_layers[-1], pooled, all_layers)

"""Output heads, and the encoder with them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from clue_jax.config import ModelConfig
from clue_jax.model.encoder import Bert, EncoderOutput
from clue_jax.model.layers import (
    ACTIVATIONS,
    MASK_BIAS,
    Dropout,
    by_parts,
    dense,
    initializer,
    layer_norm,
    precision,
)


class MaskedLMHead(nn.Module):
    """Scores of the vocabulary at some positions; the output matrix is the word embedding, or for
    a config without `tie_word_embeddings` its own."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: jax.Array, tables: jax.Array) -> jax.Array:
        """[B, M, D] and the word embedding [P, V, D] -> float32 logits [B, M, V]."""
        x = dense(self.config, self.config.hidden_size, self.dtype, "transform")(hidden)
        x = layer_norm(self.config, self.dtype)(ACTIVATIONS[self.config.hidden_act](x))
        if not self.config.tie_word_embeddings:
            tables = self.param("decoder", initializer(self.config), tables.shape[1:])[None]
        scores = functools.partial(
            jnp.einsum,
            "VD,BMD->BMV",
            precision=precision(self.dtype),
            preferred_element_type=jnp.float32,
        )
        logits = by_parts(scores, tables.astype(self.dtype), x)
        return logits + self.param("bias", nn.initializers.zeros, (self.config.vocab_size,))


class ClassificationModel(nn.Module):
    """The encoder with a classifier on the pooled first position, as the original's.

    Args:
      config: the sizes; its hidden dropout is also that of the pooled vector.
      classes: C; 1 for a score.
      dtype: of the computation; parameters are float32.
    """

    config: ModelConfig
    classes: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.bert = Bert(self.config, self.dtype)
        self.dropout = Dropout(self.config.hidden_dropout_prob)
        self.classifier = dense(self.config, self.classes, self.dtype)

    def __call__(
        self,
        input_ids: jax.Array,
        input_mask: jax.Array,
        segment_ids: jax.Array,
        deterministic: bool = True,
    ) -> jax.Array:
        """float32 logits [B, C]; for the arguments see `Bert`."""
        output = self.bert(input_ids, input_mask, segment_ids, deterministic=deterministic)
        pooled = self.dropout(output.pooled_output, deterministic)
        return self.classifier(pooled).astype(jnp.float32)


class ChoiceModel(nn.Module):
    """The encoder with a score for each choice, from the pooled first position of its row.

    Args:
      config: the sizes; its hidden dropout is also that of the pooled vector.
      dtype: of the computation; parameters are float32.
    """

    config: ModelConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.bert = Bert(self.config, self.dtype)
        self.dropout = Dropout(self.config.hidden_dropout_prob)
        self.classifier = dense(self.config, 1, self.dtype)

    def __call__(
        self,
        input_ids: jax.Array,
        input_mask: jax.Array,
        segment_ids: jax.Array,
        deterministic: bool = True,
    ) -> jax.Array:
        """Scores of the choices.

        Args:
          input_ids, input_mask, segment_ids: [B, C, T]. A row of at most one real token stands for
            a choice that is not there.
          deterministic: see `Bert`.

        Returns:
          float32 logits [B, C]; choices that are not there are out of the question.
        """
        rows = (x.reshape(-1, x.shape[-1]) for x in (input_ids, input_mask, segment_ids))
        output = self.bert(*rows, deterministic=deterministic)
        pooled = self.dropout(output.pooled_output, deterministic)
        logits = self.classifier(pooled).astype(jnp.float32).reshape(input_ids.shape[:2])
        return jnp.where(input_mask.sum(axis=-1) > 1, logits, MASK_BIAS)


class SpanModel(nn.Module):
    """The encoder with a score for each position to be the start, and the end, of an answer.

    Args:
      config: the sizes.
      dtype: of the computation; parameters are float32.
    """

    config: ModelConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.bert = Bert(self.config, self.dtype, with_pooler=False)
        self.span = dense(self.config, 2, self.dtype)

    def __call__(
        self,
        input_ids: jax.Array,
        input_mask: jax.Array,
        segment_ids: jax.Array,
        deterministic: bool = True,
    ) -> jax.Array:
        """float32 logits [B, 2, T] of starts and ends; for the arguments see `Bert`. Padding is out
        of the question."""
        output = self.bert(input_ids, input_mask, segment_ids, deterministic=deterministic)
        logits = self.span(output.sequence_output).astype(jnp.float32).swapaxes(1, 2)
        return jnp.where(input_mask[:, None] > 0, logits, MASK_BIAS)


class TagModel(nn.Module):
    """The encoder with scores of the tags of every position.

    Args:
      config: the sizes; its hidden dropout is also that of the last layer.
      classes: C.
      dtype: of the computation; parameters are float32.
    """

    config: ModelConfig
    classes: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.bert = Bert(self.config, self.dtype, with_pooler=False)
        self.dropout = Dropout(self.config.hidden_dropout_prob)
        self.classifier = dense(self.config, self.classes, self.dtype)

    def __call__(
        self,
        input_ids: jax.Array,
        input_mask: jax.Array,
        segment_ids: jax.Array,
        deterministic: bool = True,
    ) -> jax.Array:
        """float32 logits [B, T, C]; for the arguments see `Bert`."""
        output = self.bert(input_ids, input_mask, segment_ids, deterministic=deterministic)
        hidden = self.dropout(output.sequence_output, deterministic)
        return self.classifier(hidden).astype(jnp.float32)


class PretrainingModel(nn.Module):
    """The encoder with the masked-LM and next-sentence heads.

    Args:
      config: the sizes.
      dtype: of the computation; parameters are float32.
      remat, parts: see `Bert`.
    """

    config: ModelConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    parts: int = 1

    def setup(self) -> None:
        self.bert = Bert(self.config, self.dtype, remat=self.remat, parts=self.parts)
        self.masked_lm = MaskedLMHead(self.config, self.dtype)
        self.next_sentence = dense(self.config, 2, self.dtype)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        segment_ids: jax.Array,
        masked_lm_positions: jax.Array,
        position_ids: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Logits of both heads.

        Args:
          input_ids, attention_mask, segment_ids, position_ids, deterministic: see `Bert`.
          masked_lm_positions: int32 [B, M]. Only these positions go through the masked-LM head.

        Returns:
          float32 masked-LM logits [B, M, V] and next-sentence logits [B, 2] (0 = is next).
        """
        output = self.bert(input_ids, attention_mask, segment_ids, position_ids, deterministic)
        masked_lm = self._masked_lm_logits(output, masked_lm_positions)
        return masked_lm, self.next_sentence(output.pooled_output).astype(jnp.float32)

    def masked_lm_only(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        segment_ids: jax.Array,
        masked_lm_positions: jax.Array,
    ) -> jax.Array:
        """The masked-LM logits alone, no dropout; the next-sentence head may be missing."""
        output = self.bert(input_ids, attention_mask, segment_ids)
        return self._masked_lm_logits(output, masked_lm_positions)

    def _masked_lm_logits(self, output: EncoderOutput, positions: jax.Array) -> jax.Array:
        hidden = jnp.take_along_axis(output.sequence_output, positions[..., None], axis=1)
        return self.masked_lm(hidden, self.bert.embeddings.word_embeddings)

"""Text in, predictions out, from a model."""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from clue_jax.errors import UserError
from clue_jax.features.sequences import bucket, build_row, pad_rows
from clue_jax.pretrained import Model, load
from clue_jax.text.normalize import normalizer

Pooling = Literal["cls", "mean", "last2"]
_BATCH = 32  # rows a call, so that few programs are compiled


@functools.cache
def _warn(message: str) -> None:
    """Says something once."""
    logging.getLogger(__name__).warning(message)


class Filling(NamedTuple):
    """A token for a masked place, and its probability."""

    token: str
    probability: float


class Predictor:
    """A model ready to answer.

    Args:
      model: a `Model`, or what `clue_jax.load` takes.

    Raises:
      UserError: if it cannot be read, or has no vocabulary.
    """

    def __init__(self, model: Model | str | os.PathLike):
        self.model = model if isinstance(model, Model) else load(model)
        if self.model.tokenizer is None:
            raise UserError(f"{self.model.path}: has no vocabulary; load it with vocab=FILE")
        self.config, self.tokenizer = self.model.config, self.model.tokenizer
        self._normalize: Callable[[str], str] = normalizer(
            self.model.info.get("normalization", "none")
        )

    def fill_mask(self, text: str, top_k: int = 5) -> list[list[Filling]]:
        """The likeliest tokens for every `[MASK]` written in a text.

        Args:
          text: with at least one `[MASK]`.
          top_k: how many for each.

        Returns:
          A list for each mask in order, the likeliest token first.

        Raises:
          UserError: for a text without a mask, one that is too long, or a model without the head.
        """
        if self.model.info.get("heads", {}).get("masked_lm") == "fresh":
            _warn(f"{self.model.path}: its masked-LM head was never trained; its answers are noise")
        if not isinstance(top_k, int) or not 1 <= top_k <= self.config.vocab_size:
            raise UserError(f"top_k {top_k} must lie between 1 and {self.config.vocab_size}")
        tokenizer = self.tokenizer
        parts = text.split("[MASK]")
        if len(parts) == 1:
            raise UserError("the text holds no [MASK]")
        ids: list[int] = []
        for i, part in enumerate(parts):
            ids += [tokenizer.mask_id] * (i > 0) + tokenizer.encode(self._normalize(part)).ids
        row, segments = build_row(tokenizer, ids, None, len(ids) + 2)
        longest = self.config.max_position_embeddings
        if len(row) > longest:
            raise UserError(f"the text has {len(row)} tokens, the model takes {longest}")
        rows = pad_rows([(row, segments)], bucket(len(row), longest), tokenizer.pad_id, 1)
        positions = np.flatnonzero(rows.input_ids[0] == tokenizer.mask_id)
        slots = np.zeros((1, -(-len(positions) // 8) * 8), np.int32)
        slots[0, : len(positions)] = positions
        logits = self.model.masked_lm(*rows, positions=slots)
        probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits[0]), top_k)
        return [
            [
                Filling(tokenizer.vocabulary[token], float(p))
                for token, p in zip(tokens[i].tolist(), probabilities[i].tolist(), strict=True)
            ]
            for i in range(len(positions))
        ]

    def embed(
        self,
        texts: Sequence[str],
        pooling: Pooling = "mean",
        layers: Sequence[int] = (-1,),
        max_length: int | None = None,
    ) -> np.ndarray:
        """Sentence vectors.

        Args:
          texts: single texts; longer ones are cut.
          pooling: over the tokens: "cls" takes the first, "mean" averages all, special tokens
            included; "last2" is the mean over the average of the last two layers.
          layers: which are averaged; 0 is the embeddings, -1 the last. "last2" has its own.
          max_length: T at most (default: what the model takes).

        Returns:
          float32 [texts, D], in order.

        Raises:
          UserError: for an unknown pooling, or a layer that the model lacks.
        """
        if isinstance(texts, str):
            raise UserError("texts must be a list of texts, got one text")
        layers = (layers,) if isinstance(layers, int) else layers
        layers = (-2, -1) if pooling == "last2" else tuple(layers)
        count = self.config.num_hidden_layers + 1
        if pooling not in ("cls", "mean", "last2"):
            raise UserError(f"unknown pooling {pooling!r}; known: cls, mean, last2")
        wrong = [layer for layer in layers if not -count <= layer < count]
        if wrong or not layers:
            raise UserError(f"layers {list(layers)}: the model has {-count}..{count - 1}")
        longest = self.config.max_position_embeddings
        if max_length is not None:
            longest = min(longest, max_length)
        if longest < 2:
            raise UserError(f"max_length {max_length} must be at least 2")
        encoded = self.tokenizer.encode_batch([self._normalize(text) for text in texts])
        splits = encoded.row_splits
        rows = [
            build_row(self.tokenizer, encoded.ids[a:b].tolist(), None, longest)
            for a, b in itertools.pairwise(splits)
        ]
        vectors = np.zeros((len(rows), self.config.hidden_size), np.float32)
        # Neighbours in length share a batch, so that little is padded.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            length = bucket(len(rows[chosen[-1]][0]), longest)
            batch = pad_rows([rows[i] for i in chosen], length, self.tokenizer.pad_id, _BATCH)
            output = self.model.encode(*batch, all_layers=True)
            hidden = np.mean([np.asarray(output.all_layers[i], np.float32) for i in layers], axis=0)
            if pooling == "cls":
                pooled = hidden[:, 0]
            else:
                weights = batch.input_mask[..., None]
                pooled = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
            vectors[chosen] = pooled[: len(chosen)]
        return vectors

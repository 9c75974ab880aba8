"""Text in, predictions out, from a model directory."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
import numpy as np

from clue_jax.convert import model_dir
from clue_jax.errors import UserError
from clue_jax.model import PretrainingModel
from clue_jax.text.normalize import normalizer

_BUCKET = 32  # lengths are padded to multiples of this, so that few programs are compiled


class Filling(NamedTuple):
    """A token for a masked place, and its probability."""

    token: str
    probability: float


class Predictor:
    """A model directory ready to answer.

    Args:
      directory: see `clue_jax.convert.model_dir`.

    Raises:
      UserError: if it cannot be read.
    """

    def __init__(self, directory: str | os.PathLike):
        loaded = model_dir.load(directory)
        self.config, self.tokenizer = loaded.config, loaded.tokenizer
        self._directory = directory
        self._normalize = normalizer(loaded.info.get("normalization", "none"))
        self._params = jax.device_put(loaded.params)
        model = PretrainingModel(loaded.config.without_dropout())
        self._masked_lm = jax.jit(
            lambda params, *inputs: model.apply(
                {"params": params}, *inputs, method=PretrainingModel.masked_lm_only
            )
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
        if not 1 <= top_k <= self.config.vocab_size:
            raise UserError(f"top_k {top_k} must lie between 1 and {self.config.vocab_size}")
        if "masked_lm" not in self._params:
            raise UserError(f"{self._directory}: has no masked-LM head")
        tokenizer = self.tokenizer
        parts = text.split("[MASK]")
        if len(parts) == 1:
            raise UserError("the text holds no [MASK]")
        ids = [tokenizer.cls_id]
        for i, part in enumerate(parts):
            ids += [tokenizer.mask_id] * (i > 0) + tokenizer.encode(self._normalize(part)).ids
        ids.append(tokenizer.sep_id)
        longest = self.config.max_position_embeddings
        if len(ids) > longest:
            raise UserError(f"the text has {len(ids)} tokens, the model takes {longest}")
        length = min(longest, -(-len(ids) // _BUCKET) * _BUCKET)
        input_ids = np.full((1, length), tokenizer.pad_id, np.int32)
        input_ids[0, : len(ids)] = ids
        mask = (np.arange(length) < len(ids)).astype(np.int32)[None]
        positions = np.flatnonzero(input_ids[0] == tokenizer.mask_id)
        slots = np.zeros((1, -(-len(positions) // 8) * 8), np.int32)
        slots[0, : len(positions)] = positions
        logits = self._masked_lm(self._params, input_ids, mask, np.zeros_like(input_ids), slots)
        probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits[0]), top_k)
        return [
            [
                Filling(tokenizer.vocabulary[token], float(p))
                for token, p in zip(tokens[i].tolist(), probabilities[i].tolist(), strict=True)
            ]
            for i in range(len(positions))
        ]

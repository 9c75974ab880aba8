"""Models for notebooks and forks: load by name or path, encode, save."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from clue_jax import zoo
from clue_jax.config import ModelConfig
from clue_jax.convert import merge
from clue_jax.convert.loaded import LoadedModel
from clue_jax.convert.names import head_of
from clue_jax.convert.target import check_target, write
from clue_jax.errors import UserError
from clue_jax.model import Bert, EncoderOutput, PretrainingModel
from clue_jax.text import Tokenizer


class Model:
    """A model with its parameters, vocabulary and what is known of it.

    Args:
      loaded: as read by `clue_jax.convert`.
      dtype: of the computation.

    Attributes:
      config: `ModelConfig`.
      params: nested dict of arrays, to be used or replaced at will.
      tokenizer: None if no vocabulary was found.
      info: the content of `clue_jax.json`; `info["heads"]` says which heads were trained.
      notes: what one should know of how it was read.
    """

    def __init__(self, loaded: LoadedModel, dtype: jnp.dtype = jnp.float32):
        self.config: ModelConfig = loaded.config
        self.params: dict[str, Any] = jax.device_put(loaded.params)
        self.tokenizer: Tokenizer | None = loaded.tokenizer
        self.info = loaded.info
        self.notes = list(loaded.notes)
        if any(array.dtype == np.float64 for array in jax.tree.leaves(loaded.params)):
            self.notes.append("float64 parameters are held as float32; tools.convert keeps them")
        self._as_loaded = dict(merge.flatten(self.params))
        self.path = loaded.path
        self.dtype = jnp.dtype(dtype)

    def encode(
        self,
        input_ids: jax.Array | np.ndarray,
        input_mask: jax.Array | np.ndarray | None = None,
        segment_ids: jax.Array | np.ndarray | None = None,
        all_layers: bool = False,
    ) -> EncoderOutput:
        """Encodes token ids, no dropout.

        Args:
          input_ids: int [B, T].
          input_mask: [B, T], 0 for padding; default all ones.
          segment_ids: int [B, T]; default all zeros.
          all_layers: whether to give them as well.

        Returns:
          `sequence_output` [B, T, D], `pooled_output` [B, D] (None without a pooler) and
          `all_layers`, L + 1 arrays [B, T, D], the embeddings first; empty if not asked for.

        Raises:
          UserError: for ids outside of the vocabulary, or rows that are too long.
        """
        ids, mask, segments = self._inputs(input_ids, input_mask, segment_ids)
        static = {"config": self._plain, "dtype": self.dtype, "all_layers": all_layers}
        return _encode(self.params["bert"], ids, mask, segments, **static)

    def masked_lm(
        self,
        input_ids: jax.Array | np.ndarray,
        input_mask: jax.Array | np.ndarray | None = None,
        segment_ids: jax.Array | np.ndarray | None = None,
        positions: jax.Array | np.ndarray | None = None,
    ) -> jax.Array:
        """Scores of every vocabulary entry.

        Args:
          input_ids, input_mask, segment_ids: see `encode`.
          positions: int [B, M]; default all T positions.

        Returns:
          float32 logits [B, M, V], or [B, T, V].

        Raises:
          UserError: if the model has no masked-LM head; otherwise see `encode`.
        """
        if "masked_lm" not in self.params:
            raise UserError(f"{self.path}: has no masked-LM head")
        ids, mask, segments = self._inputs(input_ids, input_mask, segment_ids)
        if positions is None:
            positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        positions = np.asarray(positions, np.int32)
        if positions.ndim != 2 or len(positions) != len(ids):
            raise UserError(f"positions must be [B, M], got {positions.shape}")
        if positions.size and not (positions.min() >= 0 and positions.max() < ids.shape[1]):
            raise UserError(f"positions must lie in 0..{ids.shape[1] - 1}")
        return _masked_lm(
            self.params, ids, mask, segments, positions, config=self._plain, dtype=self.dtype
        )

    def save(self, path: str | os.PathLike, form: Literal["model", "tf"] = "model") -> None:
        """Writes a model directory (the default), or the TF-BERT files.

        Raises:
          UserError: if the folder exists and is not empty, or writing fails.
        """
        check_target(path)
        changed = {
            head_of(path)
            for path, array in merge.flatten(self.params).items()
            if array is not self._as_loaded.get(path)
        }
        # What was said of a head does not hold for other values: those tell by themselves.
        heads = {h: state for h, state in self.info["heads"].items() if h not in changed}
        info = {**self.info, "heads": heads}
        params = jax.device_get(self.params)
        write(LoadedModel(self.config, params, self.tokenizer, info, self.path), path, form)

    @property
    def _plain(self) -> ModelConfig:
        return self.config.without_dropout()

    def _inputs(self, ids: Any, mask: Any, segments: Any) -> tuple[Any, Any, Any]:
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu":
            raise UserError(f"input_ids are of type {ids.dtype}, expected whole numbers")
        ids = ids.astype(np.int32)
        mask = np.ones_like(ids) if mask is None else np.asarray(mask, np.int32)
        segments = np.zeros_like(ids) if segments is None else np.asarray(segments, np.int32)
        if (
            ids.ndim != 2
            or not ids.shape[1]
            or mask.shape != ids.shape
            or segments.shape != ids.shape
        ):
            raise UserError(
                f"input_ids, input_mask and segment_ids must be [B, T] alike, got {ids.shape}, "
                f"{mask.shape} and {segments.shape}"
            )
        for name, array, size in (
            ("input_ids", ids, self.config.vocab_size),
            ("segment_ids", segments, self.config.type_vocab_size),
        ):
            if array.size and not (array.min() >= 0 and array.max() < size):
                raise UserError(
                    f"{name} reach from {array.min()} to {array.max()}, the model has 0..{size - 1}"
                )
        longest = self.config.max_position_embeddings
        if ids.shape[1] > longest:
            raise UserError(f"rows of {ids.shape[1]} tokens, the model takes {longest}")
        return ids, mask, segments


def load(
    name_or_path: str | os.PathLike,
    *,
    dtype: jnp.dtype = jnp.float32,
    **options: Any,
) -> Model:
    """A model out of a published name (downloaded once) or anything that can be converted.

    Args:
      name_or_path: such as "RoBERTa-tiny-clue", a model directory, a TF-BERT checkpoint, a zip.
      dtype: of the computation.
      options: see `clue_jax.convert.source.load`; for a published name, `origin` "tf" or "hf".

    Raises:
      UserError: if there is no such file, or the model is not whole.
    """
    name = str(name_or_path)
    if Path(name).exists():
        options.pop("origin", None)  # it says which download is meant
    if zoo.find_model(name) and not Path(name).exists():
        return Model(zoo.load(name, **options), dtype)
    if not Path(name).exists() and "/" not in name and not Path(f"{name}.index").exists():
        raise UserError(
            f"{name}: no such file, and no published model; those are {', '.join(zoo.ZOO)}"
        )
    return Model(zoo.read(name_or_path, **options), dtype)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "all_layers"))
def _encode(
    params: Any,
    ids: jax.Array,
    mask: jax.Array,
    segments: jax.Array,
    *,
    config: ModelConfig,
    dtype: jnp.dtype,
    all_layers: bool,
) -> EncoderOutput:
    output = Bert(config, dtype).apply({"params": params}, ids, mask, segments)
    return output if all_layers else output._replace(all_layers=())


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _masked_lm(params: Any, *inputs: jax.Array, config: ModelConfig, dtype: jnp.dtype) -> jax.Array:
    model = PretrainingModel(config, dtype)
    return model.apply({"params": params}, *inputs, method=PretrainingModel.masked_lm_only)

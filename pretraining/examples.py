"""A data folder as batches: rows of any numbers, masks fixed in the data or drawn here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from clue_jax.data import records, tfrecords
from clue_jax.data.batches import Batch, document_columns
from clue_jax.data.order import rows_of_step
from clue_jax.data.remote import local_copy
from clue_jax.errors import UserError
from clue_jax.files import is_remote
from clue_jax.text import Tokenizer, load_tokenizer, vocabulary_digest
from pretraining.masking import Masking, Vocabulary, draw_masks, masked_columns


class Examples:
    """Pretraining examples of a data folder, by row number.

    Args:
      directory: shards with a manifest, here or in an object store, or the original's TFRecord
        files.
      vocabulary: the model's, as a tokenizer or a file; None takes the copy in the folder.
      masking: how masks are drawn if the data has none fixed; otherwise it is not used.
      seed: of the drawn masks.

    Raises:
      UserError: if the folder is damaged or was built with another vocabulary.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        vocabulary: Tokenizer | str | os.PathLike | None,
        masking: Masking,
        seed: int,
    ):
        directory = local_copy(directory) if is_remote(directory) else Path(directory)
        if not directory.is_dir():
            raise UserError(f"{directory}: no such data folder")
        is_tfrecord = tfrecords.is_tfrecord_folder(directory)
        self.shards = (
            tfrecords.TFRecordShards(directory) if is_tfrecord else records.RowShards(directory)
        )
        if not len(self.shards):
            raise UserError(f"{directory}: holds no rows; build shards from more text")
        self.manifest: dict[str, Any] | None = self.shards.manifest
        self.directory = directory
        if vocabulary is None:
            vocabulary = directory / "vocab.txt"
            if not vocabulary.exists():
                raise UserError(f"{directory}: holds no vocab.txt; name it with --vocab")
        lower_case = self._known("lower_case", None)
        if isinstance(vocabulary, str | os.PathLike):
            vocabulary = load_tokenizer(vocabulary, lower_case is not False)
        elif lower_case not in (None, vocabulary.lower_case):
            raise UserError(
                f"{directory}: built {'with' if lower_case else 'without'} lower-casing, which the "
                "model has otherwise; build them again with the model's vocabulary and casing"
            )
        self.tokenizer = vocabulary
        digest = self._known("vocab_sha256", None)
        if digest is not None and digest != vocabulary_digest(vocabulary):
            raise UserError(
                f"{directory}: these shards were built with another vocabulary than "
                f"{vocabulary.vocab_file} ({self.manifest['vocab_size']} entries against "
                f"{vocabulary.vocab_size}); build them again with this one"
            )
        self._vocabulary = Vocabulary.of(self.tokenizer)
        self._masking = masking
        self._seed = seed

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def seq_len(self) -> int:
        """T."""
        return self.shards.seq_len

    @property
    def vocabulary_sha256(self) -> str:
        """Digest of the vocabulary."""
        return vocabulary_digest(self.tokenizer)

    @property
    def normalization(self) -> str:
        """What was done to the text before tokenization."""
        return self._known("normalization", "none")

    def _known(self, key: str, otherwise: Any) -> Any:
        return self.manifest[key] if self.manifest else otherwise

    def step(
        self, step: int, batch_size: int, order_seed: int, places: np.ndarray | slice = slice(None)
    ) -> Batch:
        """The batch of a training step, or its rows at some places only, as each of several
        processes needs them: a pure function of its arguments and the data."""
        rows, epochs = rows_of_step(step, batch_size, len(self), order_seed)
        return self.batch(rows[places], epochs[places])

    def batch(self, rows: np.ndarray, epochs: np.ndarray | int = 0) -> Batch:
        """The batch (see `clue_jax.data.batches`) of some rows; drawn masks differ by epoch."""
        if isinstance(self.shards, tfrecords.TFRecordShards):
            batch = self._from_original(self.shards.read(rows))
        else:
            batch = self._from_rows(self.shards.read(rows), rows, epochs)
        vocab = ("vocabulary", self.tokenizer.vocab_size)
        for name, (what, size) in {
            "input_ids": vocab,
            "masked_lm_ids": vocab,
            "masked_lm_positions": ("row", self.seq_len),
            "segment_ids": ("pair", 2),
        }.items():
            low, high = int(batch[name].min()), int(batch[name].max())
            if low < 0 or high >= size:
                raise UserError(
                    f"{self.directory}: {name} holds {low if low < 0 else high}, but the {what} "
                    f"has {size} entries"
                )
        return batch

    def _from_rows(self, columns: Batch, rows: np.ndarray, epochs: np.ndarray | int) -> Batch:
        token_ids, lengths = columns["token_ids"], columns["length"]
        zeros = np.zeros(token_ids.shape, np.int32)
        if "masked" in columns:
            ids = columns["masked_lm_ids"]
            masks = masked_columns(columns["masked"], token_ids, ids.shape[1])
            masks |= {"input_ids": token_ids, "masked_lm_ids": ids}
        else:
            tokenizer = self.tokenizer
            frame = (token_ids == tokenizer.cls_id) | (token_ids == tokenizer.sep_id)
            masks = draw_masks(
                token_ids,
                lengths,
                columns["word_starts"],
                frame,
                self._masking,
                self._vocabulary,
                self._seed,
                epochs,
                rows,
            )
        labels = columns.get("next_sentence_label")
        return masks | {
            **document_columns(columns["document_starts"], lengths),
            "segment_ids": columns.get("segment_ids", zeros).astype(np.int32),
            "next_sentence_labels": np.zeros(len(rows), np.int32) if labels is None else labels,
            "next_sentence_weights": np.full(len(rows), labels is not None, np.float32),
        }

    def _from_original(self, columns: Batch) -> Batch:
        mask = columns.pop("input_mask")
        slots = np.arange(mask.shape[1], dtype=np.int32)
        # Only files of sentence pairs use a second segment; elsewhere the label means nothing.
        is_pair = columns["segment_ids"].any(axis=1)
        return columns | {
            "document_ids": mask,
            "position_ids": np.broadcast_to(slots, mask.shape),
            "next_sentence_weights": is_pair.astype(np.float32),
        }

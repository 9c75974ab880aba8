"""SentencePiece behind the interface of `WordPieceTokenizer`.

The model file, `tokenizer.model`, stands beside a `vocab.txt` that lists its pieces. Offsets are
code points of the given string, whatever the model's normalisation (NFKC, lower case) did to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import numpy as np
from etils import epath

from clue_jax.errors import UserError
from clue_jax.text.wordpiece import (
    SPECIAL_TOKENS,
    BatchEncoding,
    Encoding,
    read_vocabulary,
    special_ids,
)

MODEL_FILE = "tokenizer.model"
_SURROGATE = re.compile("[\ud800-\udfff]")


class SentencePieceTokenizer:
    """A SentencePiece model whose vocabulary has BERT's special tokens.

    Args:
      vocab_file: `vocab.txt`, the pieces one a line, with `tokenizer.model` beside it.
      lower_case: as the model was trained; kept for the record.

    Attributes:
      files: name -> content, what a copy of the vocabulary consists of.

    Raises:
      UserError: if a file is missing or damaged, or the two do not belong together.
    """

    def __init__(self, vocab_file: str | os.PathLike, lower_case: bool = True):
        import sentencepiece

        self.vocab_file = str(vocab_file)
        self.model_file = epath.Path(vocab_file).parent / MODEL_FILE
        self.lower_case = lower_case
        self.vocabulary = read_vocabulary(vocab_file)
        self.files = {"vocab.txt": epath.Path(vocab_file).read_bytes()}
        try:
            self.files[MODEL_FILE] = self.model_file.read_bytes()
            self._model = sentencepiece.SentencePieceProcessor(model_proto=self.files[MODEL_FILE])
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self.model_file}: cannot read ({error})") from error
        pieces = [self._model.id_to_piece(i) for i in range(self._model.get_piece_size())]
        if [piece.strip() for piece in pieces] != self.vocabulary:
            raise UserError(f"{vocab_file}: not the pieces of {self.model_file} beside it")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            self.vocabulary.index(token) for token in SPECIAL_TOKENS
        )
        self.special_ids = special_ids(self.vocabulary)

    @property
    def vocab_size(self) -> int:
        """V, the number of pieces."""
        return len(self.vocabulary)

    def token_id(self, token: str) -> int | None:
        """The id of a piece, or None."""
        return self.vocabulary.index(token) if token in self.vocabulary else None

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text."""
        return self.encode(text).tokens

    def encode(self, text: str) -> Encoding:
        """Encodes one text, without special tokens."""
        # A lone surrogate cannot be handed over as UTF-8; U+FFFD is one code point as well.
        text = _SURROGATE.sub("\ufffd", text)
        pieces = list(self._model.encode(text, return_type="proto").pieces)
        ids = [piece.id for piece in pieces]
        # The library counts in UTF-8 bytes.
        byte_starts = np.cumsum([0] + [len(c.encode()) for c in text])
        starts = np.searchsorted(byte_starts, [piece.begin for piece in pieces], side="right") - 1
        ends = np.searchsorted(byte_starts, [piece.end for piece in pieces])
        return Encoding(
            ids,
            [self.vocabulary[i] for i in ids],
            list(zip(starts.tolist(), ends.tolist(), strict=True)),
            [True] * len(ids),
        )

    def encode_batch(self, texts: Iterable[str]) -> BatchEncoding:
        """Encodes many texts, without special tokens."""
        encodings = [self.encode(text) for text in texts]
        ids = [i for encoding in encodings for i in encoding.ids]
        offsets = [pair for encoding in encodings for pair in encoding.offsets]
        sizes = [len(encoding.ids) for encoding in encodings]
        return BatchEncoding(
            np.array(ids, np.int32),
            np.array(offsets, np.int32).reshape(-1, 2),
            np.ones(len(ids), bool),
            np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64),
        )

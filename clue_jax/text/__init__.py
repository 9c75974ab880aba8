"""Text in, tokens out."""

from __future__ import annotations

import hashlib
import os

from etils import epath

from clue_jax.errors import UserError
from clue_jax.files import atomic_file
from clue_jax.text.sentencepiece import MODEL_FILE, SentencePieceTokenizer
from clue_jax.text.wordpiece import BatchEncoding, Encoding, WordPieceTokenizer

__all__ = [
    "BatchEncoding",
    "Encoding",
    "SentencePieceTokenizer",
    "Tokenizer",
    "WordPieceTokenizer",
    "copy_vocabulary",
    "load_tokenizer",
    "vocabulary_digest",
]

Tokenizer = WordPieceTokenizer | SentencePieceTokenizer


def load_tokenizer(
    vocab_file: str | os.PathLike, lower_case: bool = True, size: int | None = None
) -> Tokenizer:
    """The tokenizer of a vocabulary: SentencePiece if a `tokenizer.model` stands beside it.

    Args:
      vocab_file: `vocab.txt`.
      lower_case: see `WordPieceTokenizer`.
      size: pads a WordPiece vocabulary to so many entries.

    Raises:
      UserError: if a file is missing or damaged.
    """
    has_model = (epath.Path(vocab_file).parent / MODEL_FILE).exists()
    if not has_model:
        return WordPieceTokenizer(vocab_file, lower_case, size)
    if size is not None:
        raise UserError(f"{vocab_file}: the pieces of a SentencePiece model cannot be padded")
    return SentencePieceTokenizer(vocab_file, lower_case)


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """The SHA-256 of the content of `vocab.txt`, as lower-case hexadecimal."""
    return hashlib.sha256(tokenizer.files["vocab.txt"]).hexdigest()


def copy_vocabulary(tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
    """Copies `vocab.txt`, and `tokenizer.model` where there is one, byte for byte."""
    for name, content in tokenizer.files.items():
        with atomic_file(epath.Path(directory) / name) as file:
            file.write(content)

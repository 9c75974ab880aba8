"""Text in, tokens out."""

from __future__ import annotations

import os
from pathlib import Path

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
]

Tokenizer = WordPieceTokenizer | SentencePieceTokenizer


def load_tokenizer(vocab_file: str | os.PathLike, lower_case: bool = True) -> Tokenizer:
    """The tokenizer of a vocabulary: SentencePiece if a `tokenizer.model` stands beside it.

    Raises:
      UserError: if a file is missing or damaged.
    """
    has_model = (Path(vocab_file).parent / MODEL_FILE).exists()
    kind = SentencePieceTokenizer if has_model else WordPieceTokenizer
    return kind(vocab_file, lower_case)


def copy_vocabulary(tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
    """Copies `vocab.txt`, and `tokenizer.model` where there is one, byte for byte."""
    files = {"vocab.txt": tokenizer.vocab_file}
    if isinstance(tokenizer, SentencePieceTokenizer):
        files[MODEL_FILE] = tokenizer.model_file
    for name, source in files.items():
        with atomic_file(Path(directory) / name) as file:
            file.write(Path(source).read_bytes())

"""Text in, tokens out."""

from clue_jax.text.wordpiece import BatchEncoding, Encoding, WordPieceTokenizer

__all__ = ["BatchEncoding", "Encoding", "WordPieceTokenizer"]

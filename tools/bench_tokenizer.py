"""Speed of the tokenizer, with offsets, against what a user would pick instead.

The two run in turn over the same lines, and their ids are compared first.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.files import read_text
from clue_jax.text import WordPieceTokenizer
from clue_jax.text.wordpiece import MAX_WORD_LENGTH, SPECIAL_TOKENS
from tools.ratios import ratios, seconds_in_turn
from tools.result import print_result


@dataclass(frozen=True)
class Settings:
    """Times the tokenizer on real text against a peer; ends with one line of JSON."""

    input: str
    """UTF-8 text file."""
    vocab: str
    """vocab.txt."""
    peer: Literal["python", "rust"] = "python"
    """python: the original's algorithm as transformers keeps it (BasicTokenizer and
    WordpieceTokenizer), without offsets. rust: the tokenizers library, with offsets."""
    megabytes: float = 5.0
    """How much of the file is used."""
    pairs: int = 5
    """Timed runs of each, in turn, after one that is not counted."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    lines = first_lines(settings.input, settings.megabytes)
    size = sum(len(line.encode()) + 1 for line in lines) / 1e6
    tokenizer = WordPieceTokenizer(settings.vocab)
    peer = (python_peer if settings.peer == "python" else _rust_peer)(tokenizer)

    batch = tokenizer.encode_batch(lines)
    theirs = peer(lines)
    splits = batch.row_splits
    equal = sum(
        batch.ids[splits[i] : splits[i + 1]].tolist() == ids for i, ids in enumerate(theirs)
    )
    ours_seconds, peer_seconds = seconds_in_turn(
        lambda: tokenizer.encode_batch(lines), lambda: peer(lines), settings.pairs
    )
    result = {
        "benchmark": "tokenizer",
        "peer": settings.peer,
        "megabytes": round(size, 2),
        "tokens": len(batch.ids),
        "lines": len(lines),
        "lines_equal": equal,
        "ours_mb_per_s": round(size / statistics.median(ours_seconds), 2),
        "peer_mb_per_s": round(size / statistics.median(peer_seconds), 2),
        **ratios(peer_seconds, ours_seconds, 1),
    }
    print_result(result)
    return result


def first_lines(path: str, megabytes: float) -> list[str]:
    """The first lines of a text file, up to a size."""
    lines, size = [], 0
    for line in read_text(path).split("\n"):
        if size >= megabytes * 1e6:
            break
        lines.append(line)
        size += len(line.encode()) + 1
    return lines


def python_peer(tokenizer: WordPieceTokenizer) -> Callable[[Sequence[str]], list[list[int]]]:
    try:
        from transformers.models.bert_japanese import tokenization_bert_japanese as bert
    except ImportError as error:
        raise UserError("--peer python needs transformers: pip install transformers") from error
    ids = {token: i for i, token in enumerate(tokenizer.vocabulary)}
    basic = bert.BasicTokenizer(do_lower_case=True)
    pieces = bert.WordpieceTokenizer(ids, "[UNK]", MAX_WORD_LENGTH)

    def encode(lines: Sequence[str]) -> list[list[int]]:
        return [
            [ids[piece] for word in basic.tokenize(line) for piece in pieces.tokenize(word)]
            for line in lines
        ]

    return encode


def _rust_peer(tokenizer: WordPieceTokenizer) -> Callable[[Sequence[str]], list[list[int]]]:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("--peer rust needs tokenizers: pip install tokenizers") from error
    ids = {token: i for i, token in enumerate(tokenizer.vocabulary)}
    model = tokenizers.models.WordPiece(
        ids, unk_token=SPECIAL_TOKENS[1], max_input_chars_per_word=MAX_WORD_LENGTH
    )
    rust = tokenizers.Tokenizer(model)
    rust.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return lambda lines: [encoding.ids for encoding in rust.encode_batch(list(lines))]


if __name__ == "__main__":
    run_command(main)

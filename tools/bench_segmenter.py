"""Speed of the word boundaries for whole-word masking against jieba.

The two run in turn over the same lines, and their boundaries are compared first.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.text.words import word_boundaries
from tools.bench_tokenizer import first_lines
from tools.ratios import ratios, seconds_in_turn
from tools.result import print_result


@dataclass(frozen=True)
class Settings:
    """Times word segmentation on real text against jieba; ends with one line of JSON."""

    input: str
    """UTF-8 text file."""
    megabytes: float = 5.0
    """How much of the file is used."""
    pairs: int = 5
    """Timed runs of each, in turn, after one that is not counted."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    lines = first_lines(settings.input, settings.megabytes)
    size = sum(len(line.encode()) + 1 for line in lines) / 1e6
    peer = _jieba()
    compared, differing = _differences("".join(lines), word_boundaries(lines), peer(lines))
    our_seconds, peer_seconds = seconds_in_turn(
        lambda: word_boundaries(lines), lambda: peer(lines), settings.pairs
    )
    result = {
        "benchmark": "segmenter",
        "megabytes": round(size, 2),
        "lines": len(lines),
        "boundaries_compared": compared,
        "boundaries_differing": differing,
        "our_mb_per_s": round(size / statistics.median(our_seconds), 2),
        "peer_mb_per_s": round(size / statistics.median(peer_seconds), 2),
        **ratios(peer_seconds, our_seconds, 1),
    }
    print_result(result)
    return result


def _jieba() -> Callable[[Sequence[str]], np.ndarray]:
    """What the original does: jieba with its model for unknown words."""
    try:
        import jieba
    except ImportError as error:
        raise UserError("the peer needs jieba: pip install jieba") from error
    jieba.setLogLevel("ERROR")
    jieba.initialize()

    def boundaries(lines: Sequence[str]) -> np.ndarray:
        starts = [False] * sum(map(len, lines))
        at = 0
        for line in lines:
            for word in jieba.cut(line):
                starts[at] = True
                at += len(word)
        return np.array(starts)

    return boundaries


def _differences(text: str, ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int]:
    """Places between two Chinese characters, and at how many of them the two do not agree."""
    chinese = np.array(["\u4e00" <= character <= "\u9fff" for character in text])
    inner = chinese & np.concatenate([[False], chinese[:-1]])
    return int(inner.sum()), int((inner & (ours != theirs)).sum())


if __name__ == "__main__":
    run_command(main)

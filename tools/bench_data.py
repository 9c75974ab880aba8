"""Speed of making pretraining data from text, in one process, against the original's way.

The peer does what the original's scripts do, in Python: tokens by the original's algorithm, words
by jieba, sentences packed into rows, whole words masked, rows written as TFRecords. The two run in
turn on the same text; the tokens of all its lines are compared first. Ours draws masks while it
trains, so how fast batches are made of the shards stands beside it.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from clue_jax.data.tf import tensorflow
from clue_jax.errors import UserError, run_command
from clue_jax.text import WordPieceTokenizer
from pretraining import build_shards
from pretraining.examples import Examples
from pretraining.masking import Masking
from tools.bench_tokenizer import first_lines, python_peer
from tools.ratios import ratios, seconds_in_turn
from tools.result import print_result

_PROBABILITY, _BATCH = 0.15, 256


@dataclass(frozen=True)
class Settings:
    """Times making pretraining data against the original's way; ends with one line of JSON."""

    input: str
    """UTF-8 text file, a paragraph a line."""
    vocab: str
    """vocab.txt."""
    seq_len: int = 128
    """T."""
    megabytes: float = 2.0
    """How much of the file is used."""
    pairs: int = 5
    """Timed runs of each, in turn."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    tokenizer = WordPieceTokenizer(settings.vocab)
    lines = [line for line in first_lines(settings.input, settings.megabytes) if line.strip()]
    size = sum(len(line.encode()) + 1 for line in lines) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        peer = _Peer(tokenizer, settings.seq_len, Path(folder) / "rows.tfrecord")
        equal = _equal(tokenizer, peer.encode, lines)
        our_seconds, peer_seconds = seconds_in_turn(
            lambda: _build(settings, text), lambda: peer.build(lines), settings.pairs
        )
        examples = Examples(
            _build(settings, text), tokenizer, Masking("whole-word", _PROBABILITY, None), 0
        )
        slots_per_second = _batch_rate(examples)
    result = {
        "benchmark": "data",
        "megabytes": round(size, 2),
        "lines": len(lines),
        "lines_equal": equal,
        "seq_len": settings.seq_len,
        "our_rows": len(examples),
        "peer_rows": peer.rows,
        "our_mb_per_s": round(size / statistics.median(our_seconds), 2),
        "peer_mb_per_s": round(size / statistics.median(peer_seconds), 3),
        "batch_slots_per_second": round(slots_per_second),
        **ratios(peer_seconds, our_seconds, 1),
    }
    print_result(result)
    return result


def _build(settings: Settings, text: Path) -> Path:
    shards = Path(tempfile.mkdtemp(dir=text.parent)) / "shards"
    given = build_shards.Settings(
        input=(str(text),), vocab=settings.vocab, output=str(shards), seq_len=settings.seq_len,
        paragraphs=True, workers=1,
    )  # fmt: skip
    build_shards.build(given)
    return shards


def _equal(
    tokenizer: WordPieceTokenizer,
    peer: Callable[[Sequence[str]], list[list[int]]],
    lines: Sequence[str],
) -> int:
    """Lines whose tokens are the same.

    Raises:
      UserError: if they are not nearly all.
    """
    batch, theirs = tokenizer.encode_batch(lines), peer(lines)
    ours = np.split(batch.ids, batch.row_splits[1:-1])
    equal = sum(a.tolist() == b for a, b in zip(ours, theirs, strict=True))
    if equal < 0.99 * len(lines):
        raise UserError(f"only {equal} of {len(lines)} lines have the same tokens")
    return equal


def _batch_rate(examples: Examples) -> float:
    """Slots a second of masked batches, in one thread."""
    steps = max(1, len(examples) // _BATCH)
    started = time.perf_counter()
    for step in range(steps):
        examples.step(step, _BATCH, 0)
    return steps * _BATCH * examples.seq_len / (time.perf_counter() - started)


class _Peer:
    """The original's way, one line after the other."""

    def __init__(self, tokenizer: WordPieceTokenizer, seq_len: int, output: Path):
        try:
            import jieba
        except ImportError as error:
            raise UserError("the peer needs jieba: pip install jieba") from error
        jieba.setLogLevel("ERROR")
        jieba.initialize()
        self.encode = python_peer(tokenizer)
        self.rows = 0
        self._cut, self._tf = jieba.lcut, tensorflow("the peer")
        self._tokenizer, self._seq_len, self._output = tokenizer, seq_len, output

    def build(self, lines: Sequence[str]) -> None:
        """Writes the rows of some lines, each a sentence of one document."""
        draw = random.Random(0)
        self.rows = 0
        with self._tf.io.TFRecordWriter(str(self._output)) as writer:
            row: list[list[int]] = []
            for line in lines:
                words = self._words(line)
                if row and sum(map(len, row + words)) > self._seq_len - 2:
                    writer.write(self._example(row, draw))
                    row = []
                row += words
            writer.write(self._example(row, draw))

    def _words(self, line: str) -> list[list[int]]:
        """The tokens of each word, which are masked together; unknown ones may drift a little."""
        ids, at, words = self.encode([line])[0], 0, []
        for word in self._cut(line):
            left, start = len(word.strip()), at
            while left > 0 and at < len(ids):
                left -= len(self._tokenizer.vocabulary[ids[at]].removeprefix("##"))
                at += 1
            if at > start:
                words.append(ids[start:at])
        return words + [ids[at:]] * (at < len(ids))

    def _example(self, words: list[list[int]], draw: random.Random) -> bytes:
        self.rows += 1
        special = self._tokenizer
        ids, places = [special.cls_id], []
        for word in words:
            places.append(range(len(ids), len(ids) + len(word)))
            ids += word
        ids = [*ids[: self._seq_len - 1], special.sep_id]
        places = [place for place in places if place.stop < len(ids)]
        wanted = max(1, round(_PROBABILITY * len(ids)))
        draw.shuffle(places)
        chosen: list[int] = []
        for place in places:
            if len(chosen) + len(place) <= wanted:
                chosen += place
        chosen.sort()
        labels = [ids[i] for i in chosen]
        for i in chosen:
            if draw.random() < 0.8:
                ids[i] = special.mask_id
            elif draw.random() < 0.5:
                ids[i] = draw.randrange(special.vocab_size)
        padding = [0] * (self._seq_len - len(ids))
        unused = [0] * (int(_PROBABILITY * self._seq_len) + 1 - len(chosen))
        return self._serialized(
            {
                "input_ids": ids + padding,
                "input_mask": [1] * len(ids) + padding,
                "segment_ids": [0] * self._seq_len,
                "masked_lm_positions": chosen + unused,
                "masked_lm_ids": labels + unused,
                "next_sentence_labels": [0],
            },
            [1.0] * len(chosen) + [0.0] * len(unused),
        )

    def _serialized(self, integers: dict[str, list[int]], weights: list[float]) -> bytes:
        train = self._tf.train
        features = {
            name: train.Feature(int64_list=train.Int64List(value=values))
            for name, values in integers.items()
        }
        features["masked_lm_weights"] = train.Feature(float_list=train.FloatList(value=weights))
        return train.Example(features=train.Features(feature=features)).SerializeToString()


if __name__ == "__main__":
    run_command(main)

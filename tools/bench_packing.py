"""Real tokens a second in pretraining: short documents that share rows against padded rows.

Both kinds of rows are built from the same documents and train the same model by the same program,
in turn.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from clue_jax import optim, sharding
from clue_jax.config import PRESETS
from clue_jax.errors import UserError, run_command
from clue_jax.model import PretrainingModel
from clue_jax.train_state import TrainState, new_state
from pretraining import build_shards
from pretraining.examples import Examples
from pretraining.masking import Masking
from pretraining.start import random_params
from pretraining.step import train_step
from tools.bench_tokenizer import first_lines
from tools.ratios import ratios
from tools.result import print_result

_PACKINGS = ("lossless", "padded")


@dataclass(frozen=True)
class Settings:
    """Times pretraining on packed and on padded rows; ends with one line of JSON."""

    input: str
    """UTF-8 text file, a document a line."""
    vocab: str
    """vocab.txt."""
    preset: str = "tiny"
    """Size of the model."""
    seq_len: int = 128
    """T."""
    batch_size: int = 32
    """B."""
    megabytes: float = 5.0
    """How much of the file is used."""
    steps: int = 10
    """Timed steps of each in a pair."""
    pairs: int = 5
    """Timed runs of each, in turn, after one step that compiles."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    if settings.preset not in PRESETS:
        raise UserError(f"--preset {settings.preset}: is none of {', '.join(PRESETS)}")
    lines = [line for line in first_lines(settings.input, settings.megabytes) if line.strip()]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "documents.txt"
        text.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
        shards = {packing: _build(settings, text, packing) for packing in _PACKINGS}
        masking = Masking("whole-word", 0.15, None)
        examples = {packing: Examples(shards[packing], None, masking, 0) for packing in _PACKINGS}
        rates = _rates(settings, examples)
    result = {
        "benchmark": "packing",
        "documents": len(lines),
        "preset": settings.preset,
        "seq_len": settings.seq_len,
        "batch_size": settings.batch_size,
        "packed_padding_share": examples["lossless"].manifest["padding_share"],
        "padded_padding_share": examples["padded"].manifest["padding_share"],
        "packed_tokens_per_second": round(statistics.median(rates["lossless"])),
        "padded_tokens_per_second": round(statistics.median(rates["padded"])),
        **ratios(rates["lossless"], rates["padded"], 2),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    print_result(result)
    return result


def _build(settings: Settings, text: Path, packing: str) -> Path:
    output = text.parent / packing
    given = build_shards.Settings(
        input=(str(text),), vocab=settings.vocab, output=str(output), seq_len=settings.seq_len,
        paragraphs=True, packing=packing, workers=1,
    )  # fmt: skip
    build_shards.build(given)
    return output


def _rates(settings: Settings, examples: dict[str, Examples]) -> dict[str, list[float]]:
    """Real tokens a second of every timed run."""
    mesh = sharding.make_mesh("data=1")
    config = PRESETS[settings.preset].replace(vocab_size=examples["lossless"].tokenizer.vocab_size)
    model = PretrainingModel(config)
    optimizer = optim.adamw(optim.learning_rate("linear", 1e-4, 10_000, 100), b2=0.999)
    key = jax.random.key(0)
    state = new_state(lambda: random_params(model, key), optimizer, mesh)
    step = jax.jit(
        functools.partial(
            train_step, model=model, optimizer=optimizer, key=key, next_sentence=False
        ),
        donate_argnums=0,
    )

    def run(state: TrainState, packing: str, steps: range) -> tuple[TrainState, float]:
        started, tokens = time.perf_counter(), 0
        for number in steps:
            batch = examples[packing].step(number, settings.batch_size, 0)
            tokens += int(np.count_nonzero(batch["document_ids"]))
            state, sums = step(state, sharding.put_batch(batch, mesh))
        jax.block_until_ready(sums)
        return state, tokens / (time.perf_counter() - started)

    rates: dict[str, list[float]] = {packing: [] for packing in _PACKINGS}
    state, _ = run(state, "lossless", range(1))
    for pair in range(settings.pairs):
        steps = range(pair * settings.steps, (pair + 1) * settings.steps)
        for packing in _PACKINGS:
            state, rate = run(state, packing, steps)
            rates[packing].append(rate)
    return rates


if __name__ == "__main__":
    run_command(main)

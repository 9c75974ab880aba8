"""Token vectors of chosen layers for the lines of a file, in the original's JSON-lines format."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.features.sequences import build_row, pad_rows
from clue_jax.files import atomic_file, read_text
from clue_jax.pretrained import Model, load
from clue_jax.runlog import progress
from clue_jax.text.normalize import normalizer

_DEFAULT = "-1,-2,-3,-4"


@dataclass(frozen=True)
class Settings:
    """Writes a JSON object a line: "linex_index" and "features", per token its layers' values."""

    model: str
    """Model directory, or what else clue_jax.load takes."""
    input: str
    """UTF-8 text file, a text a line, or a pair with " ||| " between its halves."""
    output: str
    """JSON-lines file to write."""
    layers: str = _DEFAULT
    """Comma-separated; 0 is the first layer, -1 the last. By default all of a model that has fewer
    than four."""
    max_seq_length: int = 128
    """T, longer texts are cut."""
    batch_size: int = 32
    """B, lines a step."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the result."""
    settings = tyro.cli(Settings, args=argv)
    model = load(settings.model)
    if model.tokenizer is None:
        raise UserError(f"{settings.model}: has no vocabulary")
    if settings.batch_size < 1:
        raise UserError(f"--batch-size {settings.batch_size} must be at least 1")
    if os.path.realpath(settings.input) == os.path.realpath(settings.output):
        raise UserError(f"{settings.output}: is the input as well; choose another --output")
    layers = _layers(settings.layers, model)
    longest = model.config.max_position_embeddings
    if not 3 <= settings.max_seq_length <= longest:
        raise UserError(f"--max-seq-length {settings.max_seq_length}: the model has 3..{longest}")
    lines = read_text(settings.input).split("\n")
    lines = lines[:-1] if lines and not lines[-1] else lines
    lines = list(map(normalizer(model.info.get("normalization", "none")), lines))
    if not lines:
        raise UserError(f"{settings.input}: is empty")
    starts = range(0, len(lines), settings.batch_size)
    with atomic_file(settings.output) as file:
        for start in progress(starts, "batches"):
            for record in _records(model, lines, start, layers, settings):
                file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    result = {"output": settings.output, "lines": len(lines), "layers": layers}
    print(json.dumps(result))
    return result


def _layers(text: str, model: Model) -> list[int]:
    count = model.config.num_hidden_layers
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--layers {text!r}: expected numbers such as -1,-2") from None
    if text == _DEFAULT:
        layers = layers[:count]
    if any(not -count <= layer < count for layer in layers):
        raise UserError(f"--layers {text}: the model has {-count}..{count - 1}")
    return layers


def _records(
    model: Model, lines: list[str], start: int, layers: list[int], settings: Settings
) -> list[dict[str, Any]]:
    """The records of a batch; their format is that of google-research/bert extract_features.py."""
    tokenizer = model.tokenizer
    rows = []
    for line in lines[start : start + settings.batch_size]:
        # The halves as the original's greedy pattern finds them: at the last separator.
        first, separator, second = line.strip().rpartition(" ||| ")
        a = tokenizer.encode(first if separator else line).ids
        b = tokenizer.encode(second).ids if separator else None
        rows.append(build_row(tokenizer, a, b, settings.max_seq_length))
    batch = pad_rows(rows, settings.max_seq_length, tokenizer.pad_id, settings.batch_size)
    output = model.encode(*batch, all_layers=True)
    # The embeddings come first here; the original's layer 0 is the first layer above them.
    chosen = [np.asarray(output.all_layers[1:][layer], np.float32) for layer in layers]
    records = []
    for i, (ids, _) in enumerate(rows):
        features = [
            {
                "token": tokenizer.vocabulary[token],
                "layers": [
                    {"index": layer, "values": [round(v, 6) for v in values[i, t].tolist()]}
                    for layer, values in zip(layers, chosen, strict=True)
                ],
            }
            for t, token in enumerate(ids)
        ]
        records.append({"linex_index": start + i, "features": features})
    return records


if __name__ == "__main__":
    run_command(main)

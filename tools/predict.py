"""Predictions for the lines of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_file
from clue_jax.predictor import Predictor


@dataclass(frozen=True)
class Settings:
    """Reads a text a line and writes a JSON object a line, in the same order."""

    model: str
    """Model directory."""
    input: str = "-"
    """UTF-8 text file, or - for standard input."""
    output: str = "-"
    """JSON-lines file, or - for standard output."""
    task: Literal["fill-mask"] = "fill-mask"
    """fill-mask: the likeliest tokens for every [MASK] in the text."""
    top_k: int = 5
    """Answers for each place."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line."""
    settings = tyro.cli(Settings, args=argv)
    results = _predict(settings)
    if settings.output == "-":
        for result in results:
            print(json.dumps(result, ensure_ascii=False), flush=True)
        return
    count = 0
    with atomic_file(settings.output) as file:
        for result in results:
            file.write((json.dumps(result, ensure_ascii=False) + "\n").encode())
            count += 1
    print(json.dumps({"output": settings.output, "texts": count}))


def _predict(settings: Settings) -> Iterator[dict[str, Any]]:
    predictor = Predictor(settings.model)
    for number, text in _lines(settings.input):
        try:
            fillings = predictor.fill_mask(text, settings.top_k)
        except UserError as error:
            raise UserError(f"{settings.input}, line {number}: {error}") from error
        places = [[filling._asdict() for filling in place] for place in fillings]
        yield {"text": text, "masks": places}


def _lines(path: str) -> Iterator[tuple[int, str]]:
    try:
        file = sys.stdin.buffer if path == "-" else Path(path).open("rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from error
    with file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not UTF-8 text") from error
            if text:
                yield number, text


if __name__ == "__main__":
    run_command(main)

"""Draws the curves of a run out of its metrics.jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_file, read_text


@dataclass(frozen=True)
class Settings:
    """Draws loss and accuracy by step, training and held-out, as a picture."""

    run: str
    """Folder of a run, or its metrics.jsonl."""
    output: str
    """Picture to write; the ending chooses the format (.png, .svg)."""
    title: str = ""
    """Over the picture."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    settings = tyro.cli(Settings, args=argv)
    path = Path(settings.run)
    path = path / "metrics.jsonl" if path.is_dir() else path
    # The last line of a run that is under way, or was killed, may be cut short.
    lines = read_text(path).split("\n")[:-1]
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path}: not the metrics of a run ({error})") from error
    if not records:
        raise UserError(f"{path}: holds no entry yet")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, name, label in zip(
        axes, ("masked_lm_loss", "masked_lm_accuracy"), ("loss (nats)", "accuracy"), strict=True
    ):
        for prefix, style in (("", {"lw": 0.8}), ("held_out/", {"marker": "o", "ms": 3})):
            points = [(r["step"], r[prefix + name]) for r in records if prefix + name in r]
            if points:
                source = prefix.strip("/") or "training"
                axis.plot(*zip(*points, strict=True), label=source, **style)
        axis.set(xlabel="step", ylabel=f"masked-LM {label}")
        axis.grid(alpha=0.3)
    floors = [r["held_out/most_frequent_token_accuracy"] for r in records
              if "held_out/most_frequent_token_accuracy" in r]  # fmt: skip
    if floors:
        axes[1].axhline(floors[-1], ls="--", c="grey", label="always the most frequent token")
    for axis in axes:
        axis.legend()
    figure.suptitle(settings.title)
    ending = Path(settings.output).suffix.removeprefix(".") or "png"
    try:
        with atomic_file(settings.output) as file:
            figure.savefig(file, format=ending, dpi=110)
    except ValueError as error:
        raise UserError(f"{settings.output}: {error}") from error
    summary = {"output": settings.output, "steps": records[-1]["step"]}
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    run_command(main)

"""Draws the curves of runs, of pretraining or fine-tuning, out of their metrics.jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from clue_jax.errors import UserError, run_command
from clue_jax.files import atomic_file, read_text

# Prefix of the held-out numbers, the loss, and the score: the first of these that a run has.
_PRETRAINING = ("held_out/", "masked_lm_loss", ("masked_lm_accuracy",))
_FINE_TUNING = ("dev/", "loss", ("average", "f1", "micro_f1", "spearman", "accuracy"))
_FLOOR = "held_out/most_frequent_token_accuracy"


@dataclass(frozen=True)
class Settings:
    """Draws loss and score by step, training and held-out, as a picture; several runs together."""

    run: tuple[str, ...]
    """Folders of runs, or their metrics.jsonl."""
    output: str
    """Picture to write; the ending chooses the format (.png, .svg)."""
    title: str = ""
    """Over the picture."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command line; prints and returns the summary."""
    settings = tyro.cli(Settings, args=argv)
    paths = [Path(run) for run in settings.run]
    runs = [(p.parent.name if p.is_file() else p.name, read_metrics(p)) for p in paths]

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for number, (name, records) in enumerate(runs):
        is_pretraining = any("masked_lm_loss" in record for record in records)
        held_out, loss, scores = _PRETRAINING if is_pretraining else _FINE_TUNING
        score = next((s for s in scores if any(held_out + s in r for r in records)), scores[-1])
        for axis, quantity in zip(axes, (loss, score), strict=True):
            for prefix, style in (("", {"lw": 0.8}), (held_out, {"marker": "o", "ms": 3})):
                points = [
                    (r["step"], r[prefix + quantity]) for r in records if prefix + quantity in r
                ]
                if points:
                    source = prefix.strip("/").replace("_", " ") or "training"
                    label = source if len(runs) == 1 else f"{name}, {source}"
                    axis.plot(*zip(*points, strict=True), label=label, color=f"C{number}", **style)
            axis.set(xlabel="step", ylabel=quantity.replace("_", " "))
        floors = [record[_FLOOR] for record in records if _FLOOR in record]
        if floors:
            label = None if number else "always the most frequent token"
            axes[1].axhline(floors[-1], ls="--", c="grey", label=label)
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_lines():
            axis.legend(fontsize="small")
    figure.suptitle(settings.title)
    ending = Path(settings.output).suffix.removeprefix(".") or "png"
    try:
        with atomic_file(settings.output) as file:
            figure.savefig(file, format=ending, dpi=110)
    except ValueError as error:
        raise UserError(f"{settings.output}: {error}") from error
    finally:
        plt.close(figure)
    summary = {"output": settings.output, "steps": max(r[-1]["step"] for _, r in runs)}
    print(json.dumps(summary))
    return summary


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's metrics.jsonl, by step.

    Args:
      run: its folder, or the file.

    Raises:
      UserError: for another file, or one without an entry.
    """
    path = run / "metrics.jsonl" if run.is_dir() else run
    # The last line of a run that is under way, or was killed, may be cut short.
    lines = read_text(path).split("\n")[:-1]
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path}: not the metrics of a run ({error})") from error
    if not records:
        raise UserError(f"{path}: holds no entry yet")
    return records


if __name__ == "__main__":
    run_command(main)

"""What a sweep reached, as numbers, a table and a picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clue_jax.files import atomic_file
from finetune.forms import FORMS
from finetune.history import Entry, best
from finetune.job import Job


@dataclass(frozen=True)
class Cell:
    """A point of the grid."""

    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Such as lr0.0001-seed0."""
        return f"lr{self.learning_rate!r}-seed{self.seed}"


def summary(job: Job, histories: dict[Cell, list[Entry]]) -> dict[str, Any]:
    """What a sweep reached: of each cell, of each rate over its seeds, and the best."""
    metric, task = FORMS[job.task.kind].metric, job.task
    cells = []
    for cell, history in histories.items():
        top = best(history, task)
        cells.append(
            {"learning_rate": cell.learning_rate, "seed": cell.seed, "best_value": top[metric],
             "best_step": top["step"], "dev": history}
        )  # fmt: skip
    rates = []
    for rate in dict.fromkeys(cell.learning_rate for cell in histories):
        values = [c["best_value"] for c in cells if c["learning_rate"] == rate]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        rates.append(
            {"learning_rate": rate, "mean": float(np.mean(values)), "deviation": deviation,
             "best": max(values), "seeds": len(values)}
        )  # fmt: skip
    # Equal scores are told apart by the loss, as within a run; so is the model in best/.
    tops = {cell: best(history, task) for cell, history in histories.items()}
    winner = next(c for c, top in tops.items() if top is best(list(tops.values()), task))
    return {
        "task": task.name,
        "version": job.settings.version,
        "metric": metric,
        "best_value": tops[winner][metric],
        "best_cell": dataclasses.asdict(winner) | {"step": tops[winner]["step"]},
        "steps": job.steps,
        "train_examples": job.examples,
        "rates": rates,
        "cells": cells,
        "best": str(Path(job.settings.output) / "best"),
    }


def table(result: dict[str, Any]) -> str:
    """Mean, deviation and best by learning rate, in Markdown."""
    lines = [
        f"| learning rate | {result['metric']}, mean | deviation | best | seeds |",
        "|---|---|---|---|---|",
    ]
    for row in result["rates"]:
        lines.append(
            f"| {row['learning_rate']!r} | {100 * row['mean']:.2f} | {100 * row['deviation']:.2f} "
            f"| {100 * row['best']:.2f} | {row['seeds']} |"
        )
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Score on dev by step: a line for each cell, a colour for each rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, row in enumerate(result["rates"]):
        rate = row["learning_rate"]
        cells = [c for c in result["cells"] if c["learning_rate"] == rate]
        for number, cell in enumerate(cells):
            axis.plot(
                [entry["step"] for entry in cell["dev"]],
                [entry[result["metric"]] for entry in cell["dev"]],
                color=f"C{i}", marker="o", markersize=3, alpha=0.7,
                label=None if number else f"{rate:g}",
            )  # fmt: skip
    axis.set(xlabel="step", ylabel=f"{result['metric']} on dev", title=result["task"])
    axis.grid(alpha=0.3)
    axis.legend(title="learning rate")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
